"""The student and its teachers on unrolls in which episodes end and are cut."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import learner, multitask, testing, types
from podracer.agents import distillation, impala, muzero
from podracer.anakin import rollout

LENGTH, BATCH = 6, 4
CHAIN = testing.chain_environment(((3, "terminate"), (2, "truncate"), (1, "terminate")))
NETWORK = config_lib.NetworkConfig(hidden_sizes=(8,))
RECURRENT = config_lib.NetworkConfig(
  hidden_sizes=(8,), lstm_size=4, use_previous_action=True, use_previous_reward=True
)
LOSS_KEY = jax.random.key(5)


def make_teacher(environment=CHAIN, network=NETWORK, seed=9, task=0):
  agent = impala.make_agent(impala.ImpalaConfig(network=network), environment.spec)
  params = jax.tree.map(lambda x: x + 0.3, agent.init(jax.random.key(seed)))
  return agent_lib.Teacher(agent, params, environment.spec, task)


def make_muzero_teacher(search):
  config = muzero.MuZeroConfig(
    network=NETWORK,
    model=muzero.ModelConfig(latent_size=8, hidden_sizes=(8,), num_bins=11, max_value=5.0),
    search=muzero.SearchConfig(num_simulations=4),
  )
  agent = muzero.make_agent(config, CHAIN.spec)
  params = agent.init(jax.random.key(9))
  agent = agent if search else agent_lib.without_search(agent)
  return agent_lib.Teacher(agent, params, CHAIN.spec)


def make_config(**values):
  return distillation.DistillationConfig(**{"network": NETWORK, "value_loss": "mse", **values})


def make_student(teachers, environment=CHAIN, **values):
  return distillation.make_agent(make_config(**values), environment.spec, teachers)


def play(agent, environment=CHAIN, params=None, length=LENGTH):
  """Returns parameters and an unroll that begins in the midst of episodes."""
  params = agent.init(jax.random.key(0)) if params is None else params
  state = rollout.initial_state(agent, environment, jax.random.split(jax.random.key(1), BATCH))
  unroll = jax.jit(
    functools.partial(rollout.unroll, agent, environment, length=length, explore=True)
  )
  state, _ = unroll(params, jax.random.key(3), state)
  _, trajectory = unroll(params, jax.random.key(4), state)
  return params, trajectory


def gradient(agent, params, trajectory):
  trained, frozen = agent_lib.split_frozen(agent, params)

  def loss(trained):
    merged = agent_lib.merge_frozen(trained, frozen)
    return agent.loss(merged, merged, LOSS_KEY, trajectory)

  (value, info), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
  return value, info, found


def ask(teacher, timesteps):
  """Returns what a teacher without memory says of time steps `[B, ...]`."""
  state = teacher.agent.initial_state(timesteps.reward.shape[0])
  return teacher.agent.act(teacher.params, LOSS_KEY, timesteps, state, False)[0]


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_the_unroll_has_every_kind_of_end():
  _, trajectory = play(make_student([make_teacher()]))
  timesteps = trajectory.timesteps
  is_last = np.asarray(timesteps.step_type == types.LAST)
  ended = is_last & np.asarray(timesteps.discount == 0)
  cut = is_last & np.asarray(timesteps.discount == 1)
  assert ended[1:-1].any() and cut[1:-1].any()
  assert is_last[0].any() and is_last[-1].any()


@pytest.mark.parametrize(
  "values", [pytest.param({}, marks=pytest.mark.slow), {"popart": True, "entropy": "adaptive"}]
)
def test_without_lambda_it_is_impala(values):
  student = make_student([make_teacher()], reinforcement_cost=1.0, distillation_cost=0.0, **values)
  params, trajectory = play(student)
  plain = impala.make_agent(impala.ImpalaConfig(network=NETWORK, **values), CHAIN.spec)
  trained, _ = agent_lib.split_frozen(student, params)
  assert_close(plain.init(jax.random.key(0)), trained, rtol=0, atol=0)
  _, own = play(plain, params=trained)
  assert_close(own, trajectory, rtol=0, atol=0)
  loss, info, found = gradient(student, params, trajectory)
  expected_loss, expected_info, expected = gradient(plain, trained, trajectory)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  assert_close(found, expected)
  for name, value in expected_info.metrics.items():
    np.testing.assert_allclose(info.metrics[name], value, rtol=1e-6)


def reference(agent, params, trajectory, teachers, policy_loss):
  """Sums what the definition says, step by step."""
  timesteps = trajectory.timesteps
  student, _ = agent.act(
    params, LOSS_KEY, flat(timesteps), agent.initial_state(timesteps.reward.size), False
  )
  total = 0.0
  for teacher in teachers:
    output = ask(teacher, flat(timesteps))
    for t, b in itertools.product(range(LENGTH), range(BATCH)):
      if timesteps.step_type[t, b] == types.LAST:
        continue
      i = t * BATCH + b
      p, q = (np.asarray(jax.nn.softmax(x.logits[i])) for x in (output, student))
      if policy_loss == "kl":
        total += np.sum(p * np.log(p / q))
      elif policy_loss == "nll":
        total -= np.log(q[np.argmax(p)])
      else:
        total += np.sum(q * np.log(q / p))
      total += 0.5 * 0.5 * (output.value[i] - student.value[i]) ** 2
  return total / (LENGTH * BATCH)


def flat(timesteps):
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), timesteps)


@pytest.mark.parametrize(
  ("policy_loss", "num_teachers", "inference"),
  [
    ("kl", 1, "actor"),
    ("kl", 2, "actor"),
    ("kl", 2, "learner"),
    ("nll", 1, "actor"),
    ("reverse_kl", 1, "learner"),
  ],
)
def test_the_loss_is_that_of_its_definition(policy_loss, num_teachers, inference):
  teachers = [make_teacher(seed=i) for i in range(num_teachers)]
  student = make_student(teachers, policy_loss=policy_loss, teacher_inference=inference)
  params, trajectory = play(student)
  loss, info, found = gradient(student, params, trajectory)
  alone = make_student(teachers, teacher_inference="none")
  np.testing.assert_allclose(
    loss, reference(alone, params, trajectory, teachers, policy_loss), rtol=1e-5
  )
  acted = trajectory.actor_outputs
  if inference == "learner":
    assert acted.teacher_logits is None and acted.teacher_value is None
  else:
    axis = (num_teachers,) if num_teachers > 1 else ()
    assert acted.teacher_logits.shape == (LENGTH, BATCH, *axis, 2)
    assert acted.teacher_value.shape == acted.teacher_action.shape == (LENGTH, BATCH, *axis)
  assert f"distillation/lambda_{num_teachers - 1}" in info.metrics
  assert 0 <= info.metrics["distillation/agreement"] <= 1
  # Asked on the actor, the same is learnt.
  other = make_student(teachers, policy_loss=policy_loss)
  bare = acted._replace(teacher_logits=None, teacher_value=None, teacher_action=None)
  state = other.initial_state(BATCH)
  trajectory = trajectory._replace(actor_outputs=bare, initial_state=state)
  assert_close(found, gradient(other, params, trajectory)[2])


def test_what_recorded_data_says_is_learnt_without_teachers():
  teacher = make_teacher()
  asked = make_student([teacher], teacher_inference="actor")
  params, trajectory = play(asked)
  from_data = make_student([])
  trajectory = trajectory._replace(initial_state=from_data.initial_state(BATCH))
  own = {**params, "teachers": ()}
  nothing = trajectory.actor_outputs._replace(log_prob=None, value=None, logits=None)
  loss, _, found = gradient(from_data, own, trajectory._replace(actor_outputs=nothing))
  with_teacher = trajectory._replace(initial_state=asked.initial_state(BATCH))
  expected_loss, _, expected = gradient(asked, params, with_teacher)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  assert_close(found, expected)
  mute = trajectory.actor_outputs._replace(
    teacher_logits=None, teacher_value=None, teacher_action=None
  )
  with pytest.raises(config_lib.InputError, match="there is nothing to learn from"):
    gradient(from_data, own, trajectory._replace(actor_outputs=mute))
  without_value = trajectory.actor_outputs._replace(teacher_value=None)
  with pytest.raises(config_lib.InputError, match="the data has no teacher_value"):
    gradient(from_data, own, trajectory._replace(actor_outputs=without_value))


def test_the_gate_lets_through_where_the_teacher_expects_more():
  high, low = make_teacher(seed=1), make_teacher(seed=1)
  raised = jax.tree.map(lambda x: x, high.params)
  bias = raised["network"]["params"]["value"]["Dense_0"]["bias"]
  raised["network"]["params"]["value"]["Dense_0"]["bias"] = bias + 1e3
  high = high._replace(params=raised)
  lowered = jax.tree.map(lambda x: x, raised)
  lowered["network"]["params"]["value"]["Dense_0"]["bias"] = bias - 1e3
  low = low._replace(params=lowered)
  options = {"value_distillation_cost": 0.0}
  found = {}
  for name, teacher in (("high", high), ("low", low)):
    for gate in (False, True):
      student = make_student([teacher], value_gate=gate, **options)
      found[name, gate] = gradient(student, *play(student))[0]
  np.testing.assert_allclose(found["high", True], found["high", False], rtol=1e-6)
  assert found["low", False] > 0 and found["low", True] == 0


def test_a_recurrent_teacher_sees_every_step_and_the_action_taken():
  teacher = make_teacher(network=RECURRENT)
  student = make_student([teacher], network=RECURRENT)
  _, trajectory = play(student)
  acted, timesteps = trajectory.actor_outputs, trajectory.timesteps
  assert acted.teacher_logits is not None
  state = trajectory.initial_state.teachers[0]
  for t in range(LENGTH):
    step = jax.tree.map(lambda x, t=t: x[t], timesteps)
    output, state = teacher.agent.act(teacher.params, LOSS_KEY, step, state, False)
    np.testing.assert_allclose(acted.teacher_logits[t], output.logits, rtol=1e-5, atol=1e-6)
    # The student's action, not what the teacher would have done.
    state = state._replace(previous_action=acted.action[t])
  assert np.any(acted.teacher_action != acted.action)
  with pytest.raises(config_lib.InputError, match="a teacher has recurrent state"):
    make_student([teacher], teacher_inference="learner")


@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["feed_forward", "recurrent"])
def test_the_student_s_unroll_is_what_it_acted_by(network):
  """Its state too remembers what a teacher in control did: on policy, rho is 1 at each step."""
  student = make_student(
    [make_teacher(network=network)],
    network=network,
    control="mixture",
    reinforcement_cost=1.0,
    teacher_inference="actor",
  )
  params = student.init(jax.random.key(0))
  late = params["distillation"]._replace(gradient_steps=jnp.asarray(10_000, jnp.int32))
  params, trajectory = play(student, params={**params, "distillation": late})
  info = gradient(student, params, trajectory)[1]
  valid = types.is_valid_transition(trajectory.timesteps.step_type[:-1])
  np.testing.assert_allclose(info.metrics["loss/rho_mean"], np.mean(valid), rtol=1e-5)
  assert info.metrics["distillation/teacher_control"] == 0.0


def test_a_teacher_in_control_acts_and_importance_weights_know_it():
  teacher = make_teacher()
  student = make_student([teacher], control="teacher", reinforcement_cost=1.0)
  params, trajectory = play(student)
  acted = trajectory.actor_outputs
  np.testing.assert_allclose(
    jax.nn.log_softmax(acted.logits), jax.nn.log_softmax(acted.teacher_logits), atol=1e-5
  )
  log_probs = jax.nn.log_softmax(acted.teacher_logits)
  expected = jnp.take_along_axis(log_probs, acted.action[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(acted.log_prob, expected, rtol=1e-5)
  info = gradient(student, params, trajectory)[1]
  assert info.metrics["distillation/teacher_control"] == 1.0
  assert abs(info.metrics["loss/rho_mean"] - 1.0) > 1e-3


@pytest.mark.parametrize(
  ("search", "inference"),
  [
    (False, "actor"),
    *(pytest.param(True, x, marks=pytest.mark.slow) for x in ("actor", "learner")),
  ],
)
def test_muzero_teaches(search, inference):
  teacher = make_muzero_teacher(search)
  student = make_student([teacher], teacher_inference=inference)
  params, trajectory = play(student)
  loss, info, found = gradient(student, params, trajectory)
  assert np.isfinite(loss) and any(np.any(x != 0) for x in jax.tree.leaves(found))
  assert np.isfinite(info.metrics["distillation/kl"])
  if inference == "actor":
    timestep = jax.tree.map(lambda x: x[0], trajectory.timesteps)
    output = ask(teacher, timestep)
    acted = trajectory.actor_outputs
    if not search:
      np.testing.assert_allclose(acted.teacher_logits[0], output.logits, rtol=1e-4, atol=1e-5)
    else:
      # Log visit shares sum to 1; the value is that of the root.
      shares = np.sum(np.exp(acted.teacher_logits), axis=-1)
      np.testing.assert_allclose(shares, 1.0, atol=1e-4)
      assert np.any(acted.teacher_value[0] != output.value)


def test_rows_learn_from_the_teachers_of_their_task():
  small = testing.chain_environment(((3, "terminate"), (2, "truncate")))
  large = testing.chain_environment(((4, "terminate"), (2, "truncate")), num_actions=3)
  large = large._replace(spec=large.spec._replace(name="large"))
  both = multitask.make([small, large], "both")
  teachers = [
    make_teacher(small, task=0),
    make_teacher(large, task=1),
    make_teacher(large, seed=3, task=1),
  ]
  student = make_student(teachers, both, teacher_inference="actor")
  params = student.init(jax.random.key(0))
  _, trajectory = play(student, both, params)
  acted, timesteps = trajectory.actor_outputs, trajectory.timesteps
  tasks = np.asarray(timesteps.observation["task_id"][0])
  np.testing.assert_array_equal(tasks, [0, 0, 1, 1])
  for number, slot in ((0, 0), (1, 0), (2, 1)):
    teacher = teachers[number]
    rows = tasks == teacher.task
    view = multitask.task_timestep(both.spec, timesteps, teacher.task)
    view = jax.tree.map(lambda x, rows=rows: x[:-1, rows].reshape(-1, *x.shape[2:]), view)
    output = ask(teacher, view)
    found = acted.teacher_logits[:, rows, slot].reshape(-1, 3)
    width = output.logits.shape[-1]
    np.testing.assert_allclose(found[:, :width], output.logits, rtol=1e-5, atol=1e-6)
    assert np.all(jax.nn.softmax(found)[:, width:] == 0)
    np.testing.assert_allclose(
      acted.teacher_value[:, rows, slot].ravel(), output.value, rtol=1e-5, atol=1e-6
    )
  loss, info, found = gradient(student, params, trajectory)
  assert np.isfinite(loss) and {f"distillation/lambda_{i}" for i in range(3)} <= set(info.metrics)
  # A task of which a teacher's weight is 0 has none of the gradient of its rows.
  for task, silent in ((0, teachers[1:]), (1, teachers[:1])):
    alone = make_student(silent, both)
    _, _, of_others = gradient(
      alone,
      {**params, "teachers": alone.init(jax.random.key(0))["teachers"]},
      trajectory._replace(
        actor_outputs=acted._replace(teacher_logits=None, teacher_value=None, teacher_action=None),
        initial_state=alone.initial_state(BATCH),
      ),
    )
    head = of_others["network"]["params"]["value"]["Dense_0"]["bias"]
    assert head[task] == 0 and head[1 - task] != 0
  assert any(np.any(x != 0) for x in jax.tree.leaves(found))


def test_one_teacher_of_all_tasks_sees_the_whole():
  both = multitask.make([CHAIN, testing.probe_constant()], "both")
  teacher = make_teacher(both, task=None)
  student = make_student([teacher], both)
  loss, _, _ = gradient(student, *play(student, both))
  assert np.isfinite(loss) and loss > 0


@pytest.mark.parametrize(
  ("teacher", "message"),
  [
    (testing.chain_environment(num_actions=4), "with 4 actions, but chain has 2 actions"),
    (
      testing.probe_action(),
      r"with observations float32\[1\], but those of chain are float32\[4\]",
    ),
    (testing.probe_continuous(), "actions in a box of 1"),
  ],
)
def test_a_teacher_of_something_else_is_one_line(teacher, message):
  with pytest.raises(config_lib.InputError, match=message) as caught:
    make_student([make_teacher(teacher)])
  assert "\n" not in str(caught.value) and "teacher 0" in str(caught.value)


def test_what_continuous_actions_do_not_take():
  environment = testing.probe_continuous()
  teacher = make_teacher(environment)
  with pytest.raises(config_lib.InputError, match="policy_loss=mse is for discrete actions"):
    make_student([teacher], environment, policy_loss="mse")
  with pytest.raises(config_lib.InputError, match="both must be the same"):
    make_student([teacher], environment, action_distribution="tanh_gaussian")
  student = make_student([teacher], environment)
  info = gradient(student, *play(student, environment))[1]
  assert info.metrics["distillation/action_distance"] > 0


def test_a_student_that_plays_has_the_state_and_the_parameters_of_one_that_learns():
  config = make_config(network=RECURRENT, control="mixture")
  teachers = [make_teacher(network=RECURRENT)]
  learning = distillation.make_agent(config, CHAIN.spec, teachers)
  playing = distillation.make_agent(config.for_evaluation(), CHAIN.spec, teachers)
  params = learning.init(jax.random.key(0))
  assert jax.tree.structure(params) == jax.tree.structure(playing.init(jax.random.key(0)))
  plain = impala.make_agent(impala.ImpalaConfig(network=RECURRENT), CHAIN.spec)
  timestep = types.zero_timestep(CHAIN.spec, BATCH)
  state = plain.initial_state(BATCH)
  assert jax.tree.structure(playing.initial_state(BATCH)) == jax.tree.structure(state)
  found = playing.act(params, LOSS_KEY, timestep, state, True)
  assert_close(found, plain.act(params, LOSS_KEY, timestep, state, True), rtol=0, atol=0)
  # Not even asked for: no teacher is in the program.
  without = {**params, "teachers": None}
  assert_close(found, playing.act(without, LOSS_KEY, timestep, state, True), rtol=0, atol=0)


def test_popart_follows_the_teacher_s_values_where_there_is_no_reward():
  teacher = make_teacher()
  student = make_student([teacher], popart=True, popart_step_size=1.0)
  params, trajectory = play(student)
  info = gradient(student, params, trajectory)[1]
  moved = student.update_statistics(params, info.statistics)
  output = ask(teacher, flat(trajectory.timesteps))
  values = np.asarray(output.value).reshape(LENGTH + 1, BATCH)[:-1]
  valid = np.asarray(types.is_valid_transition(trajectory.timesteps.step_type[:-1]))
  np.testing.assert_allclose(moved["popart"].mean[0], values[valid].mean(), rtol=1e-5)
  assert moved["distillation"].gradient_steps == 1


def test_a_student_better_than_its_teacher_ends_it():
  """Action 1 is right; a teacher that knows its own worth is passed by a student that is always right."""
  environment = testing.probe_action()
  config = make_config(
    distillation_schedule="until_passed", distillation_steps=5, learning_rate=1e-9
  )

  def final_lambda(bias):
    teacher = make_teacher(environment)
    # The uniform policy is worth 0, and the teacher says so.
    zero = jax.tree.map(jnp.zeros_like, teacher.params)
    student = distillation.make_agent(config, environment.spec, [teacher._replace(params=zero)])
    params = student.init(jax.random.key(0))
    head = params["network"]["params"]["policy"]["Dense_0"]
    head["bias"] = jnp.asarray([0.0, bias])
    learn = learner.make_learner(student, config)
    state = learn.init(jax.random.key(0))._replace(params=params)
    for _ in range(6):
      _, trajectory = play(student, environment, state.params)
      state, sums = jax.jit(learn.update)(state, LOSS_KEY, trajectory)
    return sums["distillation/lambda_0"], sums["distillation/advantage_0"]

  weight, advantage = final_lambda(9.0)
  assert weight == 0.0 and advantage == 1.0
  weight, advantage = final_lambda(-9.0)
  assert weight == 1.0 and advantage == -1.0


# Two actions lead to two states, in each of which two actions end the episode: a tree of four courses.
def tree_environment():
  def reset(key):
    del key
    return jnp.zeros((), jnp.int32), jax.nn.one_hot(0, 3)

  def step(key, state, action):
    del key
    is_end = state > 0
    reward = jnp.where(is_end, 1.0 + state * action, 0.5 * action)
    return 1 + action, outcome_of(jax.nn.one_hot(1 + action, 3), reward, is_end)

  return CHAIN._replace(
    spec=types.EnvironmentSpec(
      "tree", types.ArraySpec((3,), jnp.dtype("float32")), types.DiscreteActions(2)
    ),
    reset=reset,
    step=step,
  )


def outcome_of(observation, reward, terminated):
  from podracer import environment as environment_lib

  return environment_lib.Outcome(
    observation, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated), jnp.asarray(False)
  )


def course(first, second, logits):
  """Returns the unroll `[3, 1]` of two actions in the tree, with what a policy says of them."""
  observation = jax.nn.one_hot(jnp.asarray([0, 1 + first, 0]), 3)[:, None]
  reward = jnp.asarray([0.0, 0.5 * first, 1.0 + (1 + first) * second])[:, None]
  timesteps = types.TimeStep(
    step_type=jnp.asarray([types.FIRST, types.MID, types.LAST], jnp.int8)[:, None],
    reward=reward,
    discount=jnp.asarray([1.0, 1.0, 0.0])[:, None],
    observation=observation,
  )
  action = jnp.asarray([first, second], jnp.int32)[:, None]
  log_probs = jax.nn.log_softmax(logits)
  log_prob = jnp.stack([log_probs[0, first], log_probs[1 + first, second]])[:, None]
  acted = types.ActorOutput(action, jnp.zeros((2, 1, 2)), log_prob, jnp.zeros((2, 1)))
  return types.Trajectory(timesteps, acted, ())


@pytest.mark.parametrize(
  ("policy_loss", "reinforcement_cost"),
  [
    ("reverse_cross_entropy", 0.7),
    pytest.param("reverse_cross_entropy", 0.0, marks=pytest.mark.slow),
    pytest.param("reverse_kl", 0.7, marks=pytest.mark.slow),
    pytest.param("kl", 0.0, marks=pytest.mark.slow),
  ],
)
def test_expected_entropy_has_the_gradient_of_the_expected_sum(policy_loss, reinforcement_cost):
  """Over all courses of a small tree, weighed by their probabilities, against the exact gradient."""
  environment = tree_environment()
  linear = config_lib.NetworkConfig(hidden_sizes=())
  teacher = make_teacher(environment, network=linear)
  lambda_, gamma = 3.0, 1.0
  student = make_student(
    [teacher],
    environment,
    network=linear,
    policy_loss=policy_loss,
    expected_entropy=True,
    value_loss="none",
    distillation_cost=lambda_,
    reinforcement_cost=reinforcement_cost,
    value_cost=0.0,
    entropy_cost=0.0,
    discount=gamma,
  )
  params = student.init(jax.random.key(2))
  params = {**params, "network": jax.tree.map(lambda x: 3 * x + 0.1, params["network"])}
  head = lambda p: p["network"]["params"]["policy"]["Dense_0"]  # noqa: E731
  logits_of = lambda p: head(p)["kernel"] + head(p)["bias"]  # noqa: E731
  teacher_probs = jax.nn.softmax(logits_of(teacher.params))

  def exact(trained):
    """Minus the expected return, plus lambda times the expected sum of the losses."""
    q = jax.nn.softmax(logits_of(trained))
    p = teacher_probs
    per_state = {
      "kl": jnp.sum(p * jnp.log(p / q), axis=1),
      "reverse_kl": jnp.sum(q * jnp.log(q / p), axis=1),
      "reverse_cross_entropy": -jnp.sum(q * jnp.log(p), axis=1),
    }[policy_loss]
    total = lambda_ * per_state[0]
    for first, second in itertools.product(range(2), repeat=2):
      reward = 0.5 * first + gamma * (1.0 + (1 + first) * second)
      cost = lambda_ * gamma * per_state[1 + first]
      total += q[0, first] * q[1 + first, second] * (cost - reinforcement_cost * reward)
    return total

  trained, _ = agent_lib.split_frozen(student, params)
  expected = head(jax.grad(exact)(trained))
  probs = jax.nn.softmax(logits_of(params))

  @jax.jit
  def weighed(first, second):
    found = gradient(student, params, course(first, second, logits_of(params)))[2]
    # The loss is a mean over two steps.
    weight = 2 * probs[0, first] * probs[1 + first, second]
    return jax.tree.map(lambda x: weight * x, head(found))

  parts = [weighed(*actions) for actions in itertools.product(range(2), repeat=2)]
  summed = jax.tree.map(lambda *xs: sum(xs), *parts)
  assert_close(summed, expected, rtol=1e-4, atol=1e-5)
  assert np.max(np.abs(expected["kernel"])) > 1e-3


def test_expected_entropy_where_the_last_state_is_not_spoken_of():
  """Asked on the actor the trace ends one step before: all but the last step as in the learner."""
  options = {
    "expected_entropy": True,
    "policy_loss": "kl",
    "value_loss": "none",
    "vtrace_lambda": 0.0,
    "reinforcement_cost": 1.0,
  }
  teacher = make_teacher()
  actor = make_student([teacher], teacher_inference="actor", **options)
  params, trajectory = play(actor)
  found = gradient(actor, params, trajectory)[2]
  on_learner = make_student([teacher], **options)
  bare = trajectory.actor_outputs._replace(
    teacher_logits=None, teacher_value=None, teacher_action=None
  )
  shorter = types.Trajectory(
    timesteps=jax.tree.map(lambda x: x[:-1], trajectory.timesteps),
    actor_outputs=jax.tree.map(lambda x: x[:-1], bare),
    initial_state=on_learner.initial_state(BATCH),
  )
  of_shorter = gradient(on_learner, params, shorter)[2]
  # The last step only adds its own loss, of which the value head has none.
  value = lambda x: x["network"]["params"]["value"]  # noqa: E731
  scaled = jax.tree.map(lambda x: x * (LENGTH - 1) / LENGTH, value(of_shorter))
  assert_close(value(found), scaled, rtol=1e-4)


def test_the_temperature_sharpens_the_teacher_alone():
  teacher = make_teacher()
  cold = make_student([teacher], temperature=1e-6, value_loss="none")
  best = make_student([teacher], policy_loss="nll", value_loss="none")
  params, trajectory = play(cold)
  np.testing.assert_allclose(
    gradient(cold, params, trajectory)[0], gradient(best, params, trajectory)[0], rtol=1e-4
  )


def test_parameters_of_the_student_alone_are_trained():
  student = make_student([make_teacher()])
  config = dataclasses.replace(make_config(), optimizer="adam", learning_rate=0.1)
  learn = learner.make_learner(student, config)
  state = learn.init(jax.random.key(0))
  _, trajectory = play(student)
  new, sums = jax.jit(learn.update)(state, LOSS_KEY, trajectory)
  assert_close(state.params["teachers"], new.params["teachers"], rtol=0, atol=0)
  trained, _ = agent_lib.split_frozen(student, state.params)
  num_trained = sum(x.size for x in jax.tree.leaves(trained))
  # Adam keeps two moments of each, and a count.
  assert sum(x.size for x in jax.tree.leaves(state.optimizer_state)) <= 2 * num_trained + 2
  assert new.params["distillation"].gradient_steps == 1
  moved = jax.tree.map(
    lambda a, b: np.max(np.abs(a - b)), trained["network"], new.params["network"]
  )
  assert max(jax.tree.leaves(moved)) > 1e-2
  assert sums["distillation/lambda_0"] == 1.0
