"""The actor against the whole pass over the same steps, and the learner on one device and on four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config, data, offline, types
from podracer.agents import generalist
from podracer.agents.generalist import agent as agent_lib
from podracer.agents.generalist import batches, decoding, prompts, tokeniser
from podracer.agents.generalist import layout as layout_lib
from podracer.data import sources

F, M, L = types.FIRST, types.MID, types.LAST
# Two environments whose episodes end at different times, one of them in a single step.
COURSE = np.array([[F, M, M, M, M, M, L, F, M, M, L, F], [F, L, F, M, M, L, F, M, M, M, M, M]]).T


def vector_layout(**options):
  part = layout_lib.Part("observation", "continuous", (2,))
  return layout_lib.Layout(
    (part,), **{"num_actions": 3, "action_size": 1, "patch_size": 4, **options}
  )


def vector_spec(action, masked=False):
  observation = types.ArraySpec((2,), np.dtype("float32"))
  if masked:
    observation = {"observation": observation}
  return types.EnvironmentSpec("task", observation, action)


def make_course(seed=0):
  """Returns the time steps of COURSE, `[T, B, ...]`."""
  rng = np.random.default_rng(seed)
  step_type = jnp.asarray(COURSE, jnp.int8)
  reward = jnp.asarray(rng.normal(size=COURSE.shape), jnp.float32)
  return types.TimeStep(
    step_type=step_type,
    reward=jnp.where(step_type == F, 0.0, reward),
    discount=jnp.ones(COURSE.shape),
    observation=jnp.asarray(rng.normal(size=(*COURSE.shape, 2)), jnp.float32),
  )


def play(actor, params, timesteps, explore):
  """Returns what the actor says at every time step."""
  act = jax.jit(actor.act, static_argnums=4)
  state, outputs = actor.initial_state(COURSE.shape[1]), []
  for t in range(len(COURSE)):
    timestep = jax.tree.map(lambda x, t=t: x[t], timesteps)
    output, state = act(params, jax.random.key(t), timestep, state, explore)
    outputs.append(output)
  return jax.tree.map(lambda *xs: np.stack(xs), *outputs)


def make_whole_pass(settings, layout, decoder=None):
  """Returns what reads steps `[S, ...]` at once: logits of the first action token of each, `[S, V]`."""
  decoder = decoder or agent_lib.make_network(settings, {"task": layout})

  @jax.jit
  def read(params, steps):
    tokens = tokeniser.tokenise(layout, jax.tree.map(lambda x: x[None], steps))
    embedded = decoder.apply(params, layout, tokens, method="embed")
    hidden = decoder.apply(params, embedded)[0].reshape(-1, layout.step_tokens, settings.width)
    return decoder.apply(params, hidden[:, layout.action_start - 1], method="logits")

  return read


def remembered(settings, timesteps, actions, row, demonstration):
  """Yields (time, steps): for each time what the actor may remember from then on to the episode's end."""
  is_last = COURSE[:, row] == L
  taken = actions[:, row]
  # A recording has zeros at the last step.
  action = np.where(is_last.reshape(-1, *(1,) * (taken.ndim - 1)), 0, taken)
  steps = {
    "observation": np.asarray(timesteps.observation)[:, row],
    "reward": np.asarray(timesteps.reward)[:, row],
    "action": action,
  }
  starts = [0] if settings.histories else np.flatnonzero(COURSE[:, row] == F).tolist()
  for begin, end in zip(starts, [*starts[1:], len(COURSE)], strict=True):
    part = {name: value[begin:end] for name, value in steps.items()}
    num_shown = 0
    if demonstration is not None:
      which = row % len(demonstration.lengths)
      num_shown = int(demonstration.lengths[which])
      front = {name: value[which, :num_shown] for name, value in demonstration.steps.items()}
      part = {n: np.concatenate([front[n], part[n]]) for n in ("observation", "action")}
    yield begin, end, num_shown, part


def make_demonstrations(layout, lengths=(3, 2, 1)):
  rng = np.random.default_rng(5)
  size = max(lengths)
  shape = (len(lengths), size) if layout.num_actions else (len(lengths), size, layout.action_size)
  action = rng.integers(0, 3, shape) if layout.num_actions else rng.normal(size=shape)
  steps = {
    "observation": rng.normal(size=(len(lengths), size, 2)).astype(np.float32),
    "action": action.astype(np.int32 if layout.num_actions else np.float32),
    "is_last": np.zeros((len(lengths), size), bool),
  }
  return prompts.Prompts(steps, np.array(lengths, np.int32))


def mean_of_bins(logits):
  """Returns the means within [-1, 1] of distributions over bins, `[n, 1024]`, in float64."""
  logits = np.asarray(logits, np.float64)
  probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
  probs /= probs.sum(axis=-1, keepdims=True)
  return np.clip(probs @ np.asarray(tokeniser.from_bins(jnp.arange(1024))), -1.0, 1.0)


KINDS = ["discrete", "continuous", "histories", "without prompt", "without actions"]


@pytest.mark.parametrize("kind", KINDS)
def test_acting_is_the_whole_pass_over_what_is_remembered(small, kind):
  """Through resets, at rows of their own lengths, and beyond a window of three steps and more."""
  settings = small(
    context=16, histories=kind == "histories", reads_actions=kind != "without actions"
  )
  action = types.DiscreteActions(3)
  layout = vector_layout(has_reward=settings.histories)
  if kind == "continuous":
    action = types.ContinuousActions((-1.0, -1.0), (1.0, 2.0))
    layout = vector_layout(num_actions=0, action_size=2)
  shown = (
    make_demonstrations(layout) if kind in ("discrete", "continuous", "without actions") else None
  )
  actor = agent_lib.make_actor(settings, {"task": layout}, "task", vector_spec(action), shown)
  params = jax.jit(actor.init)(jax.random.key(0))
  timesteps = make_course()
  read, size = make_whole_pass(settings, layout), len(COURSE) + 3
  valid = decoding.valid_tokens(layout, action)[0]
  for explore in (False, True):
    found = play(actor, params, timesteps, explore)
    assert np.isfinite(found.log_prob).all()
    for row in range(COURSE.shape[1]):
      for begin, end, skip, steps in remembered(settings, timesteps, found.action, row, shown):
        logits = read(params.network, sources.pad(steps, size))[skip : skip + end - begin]
        best = np.argmax(np.where(valid, logits, -np.inf), axis=-1)
        if layout.num_actions:
          np.testing.assert_allclose(found.logits[begin:end, row], logits[:, :3], atol=5e-5)
        else:
          best = mean_of_bins(logits[:, 1024:])
        taken = found.action[begin:end, row].reshape(end - begin, -1)[:, 0]
        # A continuous action is the middle of the bin of the mean: less than half a bin away.
        assert explore or np.allclose(taken, best, rtol=0.0105, atol=2e-3)


@pytest.mark.parametrize("reads_actions", [True, False])
def test_what_was_done_is_read_or_hidden(small, reads_actions):
  settings, layout = small(context=16, reads_actions=reads_actions), vector_layout()
  agent = generalist.make_agent(settings, {"task": layout})
  params = jax.jit(agent.init)(jax.random.key(0))
  read = make_whole_pass(settings, layout)
  observation = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
  one, other = (
    read(params, {"observation": observation, "action": np.full(4, action, np.int32)})
    for action in (0, 2)
  )
  np.testing.assert_array_equal(one[0], other[0])  # In front of the first there is none.
  is_same = np.all(one[1:] == other[1:], axis=-1)
  assert not is_same.any() if reads_actions else is_same.all()


def test_actions_are_valid_whatever_the_network_likes(small):
  layout = vector_layout(num_actions=0, action_size=2)
  spec = types.ContinuousActions((-1.0, 0.5), (1.0, np.inf))
  valid = decoding.valid_tokens(layout, spec)
  assert not valid[:, :1024].any()
  edges = [np.flatnonzero(row)[[0, -1]] - 1024 for row in valid]
  values = np.array([[float(tokeniser.from_bins(edge)) for edge in pair] for pair in edges])
  np.testing.assert_allclose(values[0], [-1, 1], atol=0.02)
  assert values[1, 0] == pytest.approx(0.5, abs=0.01)
  assert edges[1][1] == 1023


def test_illegal_actions_are_never_taken(small):
  settings, layout = small(context=16), vector_layout()
  part = layout.parts[0]._replace(name="observation/observation")
  layout = layout._replace(parts=(part,))
  spec = vector_spec(types.DiscreteActions(3), masked=True)
  actor = agent_lib.make_actor(settings, {"task": layout}, "task", spec)
  params = jax.jit(actor.init)(jax.random.key(0))
  timesteps = make_course()
  legal = np.random.default_rng(1).integers(0, 3, COURSE.shape)
  mask = np.arange(3) == legal[..., None]
  mask[COURSE == L] = False
  observation = {"observation": timesteps.observation, types.ACTION_MASK: jnp.asarray(mask)}
  for explore in (False, True):
    found = play(actor, params, timesteps._replace(observation=observation), explore)
    np.testing.assert_array_equal(found.action[COURSE != L], legal[COURSE != L])
    # Where none is legal any that there is will do.
    assert (found.action < 3).all()


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    (vector_spec(types.DiscreteActions(4)), "task is not task: it has 4 actions, not 3 actions"),
    (
      vector_spec(types.ContinuousActions((0.0,), (1.0,))),
      "it has 1 dimensions, not 3 actions",
    ),
    (
      types.EnvironmentSpec(
        "other", types.ArraySpec((5,), np.dtype("float32")), types.DiscreteActions(3)
      ),
      r"other is not task: observation is \[5\], not \[2\]",
    ),
    (
      types.EnvironmentSpec(
        "other", {"a": types.ArraySpec((2,), np.dtype("float32"))}, types.DiscreteActions(3)
      ),
      r"other is not task: observation is None, not \[2\]",
    ),
  ],
)
def test_another_environment_is_refused(small, spec, message):
  with pytest.raises(config.InputError, match=message) as info:
    agent_lib.make_actor(small(), {"task": vector_layout()}, "task", spec)
  assert "\n" not in str(info.value)


def test_the_learner_acts_in_no_task(small):
  agent = generalist.make_agent(small(), {"task": vector_layout()})
  with pytest.raises(config.InputError, match="acts in one task"):
    agent.initial_state(1)


@pytest.fixture(scope="module")
def learning(mixed, small):
  """Configuration, layouts, and batches of three tasks."""
  settings = small(optimizer="sgd", learning_rate=0.1, learning_rate_schedule="constant")
  collection = data.open(mixed)
  layouts = {d.task: layout_lib.from_dataset(d, settings) for d in collection}
  samplers = {d.task: batches.Sampler(d, layouts[d.task], settings) for d in collection}
  return settings, layouts, list(batches.batches(samplers, 4, seed=0, num_batches=3))


def test_the_loss_is_the_mean_over_tasks_of_their_action_tokens(learning):
  """Against sequences read one by one."""
  settings, layouts, (batch, *_) = learning
  agent = generalist.make_agent(settings, layouts)
  params = jax.jit(agent.init)(jax.random.key(0))
  # Of an action of two dimensions the whole pass here gives the first alone.
  batch = {task: steps for task, steps in batch.items() if layouts[task].action_size == 1}
  total, info = jax.jit(agent.loss)(params, params, jax.random.key(0), batch)
  expected = []
  for task, steps in batch.items():
    decoder = agent_lib.make_network(settings, layouts)
    read = make_whole_pass(settings, layouts[task], decoder)
    mask = steps["mask"] & ~steps["is_last"]
    loss = 0.0
    for row in range(len(mask)):
      one = {name: value[row] for name, value in steps.items() if name in layouts[task].fields}
      log_probs = np.asarray(jax.nn.log_softmax(read(params, one)))
      loss -= sum(log_probs[t, one["action"][t]] for t in np.flatnonzero(mask[row]))
    expected.append(loss / mask.size)
  assert float(total) == pytest.approx(np.mean(expected), rel=1e-4)
  assert set(info.metrics) == {"accuracy/frames", "accuracy/vector"}


def test_no_gradient_from_what_is_filled_up_or_ignored(learning):
  """Neither steps behind the end nor the action of a last step change the gradient."""
  settings, layouts, (batch, *_) = learning
  agent = generalist.make_agent(settings, layouts)
  params = jax.jit(agent.init)(jax.random.key(0))
  gradient = jax.jit(jax.grad(lambda p, b: agent.loss(p, p, jax.random.key(0), b)[0]))
  changed = {task: dict(steps) for task, steps in batch.items()}
  steps = changed["vector"]
  assert not steps["mask"].all()
  filled = ~steps["mask"]
  steps["observation"] = np.where(filled[..., None], 9.0, steps["observation"]).astype(np.float32)
  steps["action"] = np.where(filled, 2, steps["action"])
  for a, b in zip(
    jax.tree.leaves(gradient(params, batch)),
    jax.tree.leaves(gradient(params, changed)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-7)


def test_one_device_equals_four(learning):
  settings, layouts, made = learning
  agent = generalist.make_agent(settings, layouts)
  found = []
  for devices in (jax.devices()[:1], jax.devices()[:4]):
    machine = offline.OfflineLearner(agent, settings, num_updates=3, devices=devices)
    state = machine.init(0)
    for batch in made:
      state, metrics = machine.update(state, batch)
    found.append(jax.device_get((state.learner.params, metrics["loss/total"])))
  assert len(jax.devices()) >= 4
  before = jax.device_get(machine.init(0).learner.params)
  for one, four, old in zip(*map(jax.tree.leaves, (*found, (before, np.inf))), strict=True):
    np.testing.assert_allclose(one, four, atol=1e-5)
    assert not np.array_equal(one, old)


def test_the_best_continuous_action_is_the_mean_of_the_bins():
  spec = types.ContinuousActions((-2.0,), (2.0,))
  bins = np.asarray(tokeniser.to_bins(jnp.array([[0.2, 1.0], [-1.5, -1.5], [3.0, 3.0]])))
  scores = np.full((3, tokeniser.NUM_OUTPUTS), -1e9, np.float32)
  scores[np.arange(3)[:, None], tokeniser.NUM_VALUES + bins] = 0.0
  tokens = decoding._mean_bin(spec, 0, jnp.asarray(scores))
  action = tokeniser.from_bins(tokens - tokeniser.NUM_VALUES)
  # Bins are a hundredth wide at 1; what is out of bounds is clipped.
  np.testing.assert_allclose(action, [0.6, -1.5, 2.0], atol=0.03)
