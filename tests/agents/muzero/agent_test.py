import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from podracer import config as config_lib
from podracer import testing, types
from podracer.agents import muzero
from podracer.agents.muzero import model as model_lib

A, T, B, SIZE = 3, 6, 4, 5
NUM_BINS, MAX_VALUE = 11, 20.0
VECTOR = types.EnvironmentSpec(
  "probe", types.ArraySpec((SIZE,), jnp.dtype("float32")), types.DiscreteActions(A)
)
MASKED = VECTOR._replace(
  observation={
    "vector": VECTOR.observation,
    types.ACTION_MASK: types.ArraySpec((A,), jnp.dtype(bool)),
  }
)
SPECS = {"vector": VECTOR, "masked": MASKED}
ONE_ACTION = VECTOR._replace(action=types.DiscreteActions(1))
SEARCH_FIELDS = ("search_visits", "search_value", "search_depth")
KEY = jax.random.key(0)
F, M, L = types.FIRST, types.MID, types.LAST


def config_of(search=None, **options):
  return muzero.MuZeroConfig(
    network=config_lib.NetworkConfig(hidden_sizes=(8,)),
    model=muzero.ModelConfig(
      latent_size=8, hidden_sizes=(8,), num_bins=NUM_BINS, max_value=MAX_VALUE
    ),
    search=muzero.SearchConfig(**{"num_simulations": 4, **(search or {})}),
    **{"unroll_steps": 3, **options},
  )


def make(spec=VECTOR, seed=0, **options):
  """Returns an agent and random parameters, quicker drawn than by compiling `init`."""
  agent, rng = muzero.make_agent(config_of(**options), spec), np.random.default_rng(seed)
  shapes = jax.eval_shape(agent.init, KEY)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  if "gradient_steps" in params:
    params["gradient_steps"] = np.zeros((), np.float32)
  return agent, params


def observations(spec, shape, rng):
  mask = rng.uniform(size=(*shape, A)) < 0.5
  vector = rng.normal(size=(*shape, SIZE)).astype(np.float32)
  is_masked = isinstance(spec.observation, dict)
  return {"vector": vector, types.ACTION_MASK: mask} if is_masked else vector


def trajectory_of(step_type, discount, reward, spec=VECTOR, seed=0):
  """Returns random actions, searches and observations with the time steps `[T+1, B]` given."""
  rng, step_type = np.random.default_rng(seed), np.asarray(step_type, np.int8)
  shape = (step_type.shape[0] - 1, step_type.shape[1])
  num_actions = spec.action.num_actions
  floats = lambda: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  visits = rng.dirichlet(np.ones(num_actions), size=shape).astype(np.float32)
  return types.Trajectory(
    timesteps=types.TimeStep(
      step_type=step_type,
      reward=np.asarray(reward, np.float32),
      discount=np.asarray(discount, np.float32),
      observation=observations(spec, step_type.shape, rng),
    ),
    actor_outputs=types.ActorOutput(
      action=rng.integers(num_actions, size=shape).astype(np.int32),
      logits=np.log(visits),
      log_prob=floats(),
      value=floats(),
      search_visits=visits,
      search_value=floats(),
      search_depth=np.ones(shape, np.float32),
    ),
    initial_state=(),
  )


def random_trajectory(spec=VECTOR, seed=0, reward_scale=1.0):
  """Returns streams of short episodes, of which some end and some are cut."""
  rng = np.random.default_rng(seed)
  is_last = rng.uniform(size=(T + 1, B)) < 0.4
  for t in range(T):
    is_last[t + 1] &= ~is_last[t]
  is_first = np.concatenate([rng.uniform(size=(1, B)) < 0.5, is_last[:-1]]) & ~is_last
  step_type = np.where(is_last, types.LAST, np.where(is_first, types.FIRST, types.MID))
  discount = np.where(is_last & (rng.uniform(size=is_last.shape) < 0.5), 0.0, 1.0)
  assert np.any(discount == 0) and np.any(is_last & (discount == 1))
  reward = np.where(is_first, 0.0, reward_scale * rng.normal(size=is_last.shape))
  return trajectory_of(step_type, discount, reward, spec, seed)


def assert_same(x, y, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), x, y)


# Acting.


def act(agent, params, timestep, explore):
  return jax.jit(agent.act, static_argnums=4)(params, KEY, timestep, (), explore)


def act_by_prior(agent, params, timestep, explore):
  return jax.jit(agent.act_by_prior, static_argnums=4)(params, KEY, timestep, (), explore)


@pytest.mark.parametrize(
  ("policy", "spec_name", "explore"),
  [
    ("gumbel", "vector", True),
    ("gumbel", "masked", False),
    ("muzero", "vector", False),
    ("muzero", "masked", True),
  ],
)
def test_acting(policy, spec_name, explore):
  batch, spec = 32, SPECS[spec_name]
  agent, params = make(spec, search={"policy": policy})
  timestep = types.zero_timestep(spec, batch)._replace(
    observation=observations(spec, (batch,), np.random.default_rng(0))
  )
  output, state = act(agent, params, timestep, explore)
  prior, prior_state = act_by_prior(agent, params, timestep, explore)
  assert state == prior_state == ()
  mask = types.action_mask(timestep.observation)
  # Where none is legal, after an end, every action is.
  mask = np.ones((batch, A), bool) if mask is None else mask | ~np.any(mask, axis=1, keepdims=True)
  for each in (output, prior):
    assert each.action.shape == (batch,) and each.action.dtype == jnp.int32
    assert np.all(mask[np.arange(batch), each.action])
    assert each.logits.shape == (batch, A)
    probabilities = np.asarray(jax.nn.softmax(each.logits))
    assert not np.any(probabilities[~mask])
    chosen = probabilities[np.arange(batch), each.action]
    np.testing.assert_allclose(each.log_prob, np.log(chosen), rtol=1e-3, atol=1e-5)
    assert all(np.all(np.isfinite(x)) and x.dtype != jnp.float64 for x in jax.tree.leaves(each))
  np.testing.assert_allclose(np.sum(output.search_visits, axis=1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(jax.nn.softmax(output.logits), output.search_visits, atol=1e-5)
  np.testing.assert_allclose(output.value, prior.value, rtol=1e-4, atol=1e-4)
  assert output.search_value.shape == (batch,)
  assert np.all((output.search_depth >= 1) & (output.search_depth <= 4))
  assert all(getattr(prior, name) is None for name in SEARCH_FIELDS)
  if not explore:
    np.testing.assert_array_equal(prior.action, np.argmax(prior.logits, axis=1))


def test_acting_by_the_prior_draws_from_the_network():
  agent, params = make()
  params = jax.tree.map(lambda x: 0.3 * x, params)
  batch = 4000
  observation = np.broadcast_to(np.float32(np.arange(SIZE)), (batch, SIZE))
  timestep = types.zero_timestep(VECTOR, batch)._replace(observation=observation)
  output, _ = act_by_prior(agent, params, timestep, True)
  shares = np.bincount(output.action, minlength=A) / batch
  np.testing.assert_allclose(shares, jax.nn.softmax(output.logits[0]), atol=0.03)
  model = model_lib.Model(config_of().network, config_of().model, VECTOR)
  prediction, _ = model.apply(params["model"], observation[:1], np.zeros(1, np.int32))
  np.testing.assert_allclose(output.logits[:1], prediction.policy_logits, atol=1e-5)


def test_reanalysis_searches_anew_and_changes_nothing_else():
  agent, params = make(MASKED, search={"temperature": 10.0})
  trajectory = random_trajectory(MASKED)._replace(importance_weights=np.ones(B, np.float32))
  found = jax.jit(agent.reanalyse)(params, KEY, trajectory)
  flat = jax.tree.map(lambda x: x[:-1].reshape(-1, *x.shape[2:]), trajectory.timesteps)
  fresh, _ = act(agent, params, flat, True)
  for name in SEARCH_FIELDS:
    now, then = (getattr(x.actor_outputs, name) for x in (found, trajectory))
    assert now.shape == then.shape and now.dtype == then.dtype and not np.allclose(now, then)
    np.testing.assert_allclose(now, getattr(fresh, name).reshape(now.shape), atol=1e-5)
  kept = trajectory.actor_outputs._replace(
    **{name: getattr(found.actor_outputs, name) for name in SEARCH_FIELDS}
  )
  assert_same(found, trajectory._replace(actor_outputs=kept), rtol=0)


def number(logits, limit):
  return model_lib.make_transform(NUM_BINS, limit).apply_inv(jax.nn.softmax(logits))


@pytest.mark.parametrize("num_players", [1, 2])
def test_the_search_takes_turns(num_players):
  """Where there is one action and one simulation, the value is the mean of two that are known."""
  options = {"search": {"num_simulations": 1}, "discount": 0.8}
  agent, params = make(ONE_ACTION._replace(num_players=num_players), **options)
  timestep = types.zero_timestep(VECTOR, B)
  timestep = timestep._replace(observation=observations(VECTOR, (B,), np.random.default_rng(1)))
  output, _ = act(agent, params, timestep, False)
  config = config_of(**options)
  model = model_lib.Model(config.network, config.model, ONE_ACTION)

  @jax.jit
  def known(params, observation):
    latent = model.apply(params, observation, method="represent")
    after, reward_logits = model.apply(params, latent, jnp.zeros(B, int), method="step")
    logits = [model.apply(params, x, method="predict").value_logits for x in (latent, after)]
    return *(number(x, MAX_VALUE) for x in logits), number(reward_logits, config.model.max_reward)

  root, leaf, reward = known(params["model"], timestep.observation)
  backed_up = reward + (0.8 if num_players == 1 else -0.8) * leaf
  np.testing.assert_allclose(output.value, root, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(output.search_value, (root + backed_up) / 2, rtol=1e-4, atol=1e-3)
  assert np.all(np.abs(leaf) > 0.1)


def test_the_temperature_follows_the_gradient_steps():
  schedule = {"temperature": 3.0, "final_temperature": 0.5, "temperature_steps": 10}
  agent, params = make(search=schedule)
  constant, _ = make(search={"temperature": 1.75})
  assert constant.update_statistics is None
  timestep = types.zero_timestep(VECTOR, 64)._replace(
    observation=observations(VECTOR, (64,), np.random.default_rng(1))
  )
  found = []
  for steps in (0, 5, 10, 40):
    while params["gradient_steps"] < steps:
      params = agent.update_statistics(params, ())
    found.append(act(agent, params, timestep, True)[0])
  start, middle, end, later = found
  assert np.any(start.action != middle.action) and np.any(middle.action != end.action)
  assert_same(end, later, rtol=0)
  assert_same(middle, act(constant, params, timestep, True)[0], atol=1e-5)


# Learning.


def test_learning_from_a_probe_is_finite_and_teaches_no_target():
  env = testing.chain_environment(((3, "terminate"), (2, "truncate"), (1, "terminate")))
  course = testing.random_course(env, jax.random.split(jax.random.key(1), B), T)
  assert np.any(course.discount == 0) and np.any((course.discount == 1) & (course.step_type == L))
  agent, params = make(env.spec, search={"temperature_steps": 5})
  trajectory = trajectory_of(course.step_type, course.discount, course.reward, env.spec)
  trajectory = trajectory._replace(timesteps=course)
  gradient_of = jax.jit(jax.value_and_grad(agent.loss, argnums=(0, 1), has_aux=True))
  (loss, info), (gradient, target_gradient) = gradient_of(params, params, KEY, trajectory)
  assert np.isfinite(loss) and loss.shape == ()
  assert all(np.isfinite(x) and x.shape == () for x in info.metrics.values())
  assert info.priorities.shape == (B,) and np.all(info.priorities >= 0)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))
  assert gradient["gradient_steps"] == 0
  assert all(np.any(x != 0) for x in jax.tree.leaves(gradient["model"]))
  assert not any(np.any(x != 0) for x in jax.tree.leaves(target_gradient))


def streams(trajectory, index):
  """Returns some environments of a trajectory."""
  return types.map_batch(lambda axis, x: np.take(x, index, axis), trajectory)


def test_the_loss_is_the_mean_over_streams_by_their_weights():
  agent, params = make()
  trajectory = random_trajectory()
  function = jax.jit(jax.value_and_grad(agent.loss, has_aux=True))
  parts = [function(params, params, KEY, streams(trajectory, [b])) for b in range(B)]
  for weights in ([1, 1, 1, 1], [0.5, 2, 0, 1], [0, 0, 0, 0]):
    weighted = trajectory._replace(importance_weights=np.float32(weights))
    (whole, info), gradient = function(params, params, KEY, weighted)

    def mean(*x, weights=weights):
      return np.tensordot(weights, np.stack(x), 1) / B

    np.testing.assert_allclose(whole, mean(*(part[0][0] for part in parts)), rtol=1e-4, atol=1e-6)
    expected = jax.tree.map(mean, *(part[1] for part in parts))
    assert_same(gradient, expected, rtol=1e-3, atol=1e-4)
    # By its errors a stream is drawn again, whatever it weighs now.
    errors = np.concatenate([part[0][1].priorities for part in parts])
    np.testing.assert_allclose(info.priorities, errors, rtol=1e-4, atol=1e-4)


def test_clipped_rewards():
  (_, params), trajectory = make(), random_trajectory(reward_scale=5.0)
  clipped = trajectory.timesteps._replace(reward=np.clip(trajectory.timesteps.reward, -1, 1))
  clipped = trajectory._replace(timesteps=clipped)
  unit, none = (jax.jit(make(reward_clip=kind)[0].loss) for kind in ("unit", "none"))
  found = unit(params, params, KEY, trajectory)[0]
  np.testing.assert_allclose(found, none(params, params, KEY, clipped)[0], rtol=1e-6)
  assert abs(found - none(params, params, KEY, trajectory)[0]) > 0.1


# gamma 0.5. Values of the last observation, of the target network, are written as v.
@pytest.mark.parametrize(
  ("num_players", "step_type", "discount", "expected"),
  [
    # The first moves for nothing, the second wins 1.
    (1, [F, M, L], [1, 1, 0], lambda v: [0.5, 1.0]),
    (2, [F, M, L], [1, 1, 0], lambda v: [-0.5, 1.0]),
    (1, [F, M, L], [1, 1, 1], lambda v: [0.5 + v / 4, 1 + v / 2]),
    (2, [F, M, L], [1, 1, 1], lambda v: [-0.5 + v / 4, 1 - v / 2]),
    (2, [F, M, M], [1, 1, 1], lambda v: [-0.5 + v / 4, 1 - v / 2]),
  ],
)
def test_returns_of_a_game_of_two_moves(num_players, step_type, discount, expected):
  """The searches are said to have found the expected returns: then they have no error."""
  agent, params = make(
    VECTOR._replace(num_players=num_players), discount=0.5, unroll_steps=1, td_steps=5
  )
  _, target_params = make(seed=1)
  columns = (np.repeat(np.asarray(x)[:, None], B, axis=1) for x in (step_type, discount, [0, 0, 1]))
  trajectory = trajectory_of(*columns)
  last = types.zero_timestep(VECTOR, B)._replace(observation=trajectory.timesteps.observation[-1])
  value = np.asarray(act_by_prior(agent, target_params, last, False)[0].value)
  assert np.all(np.abs(value) > 1e-2)
  returns = np.stack([np.broadcast_to(x, B) for x in expected(value)])
  outputs = trajectory.actor_outputs._replace(search_value=np.float32(returns))
  loss = jax.jit(agent.loss)
  _, info = loss(params, target_params, KEY, trajectory._replace(actor_outputs=outputs))
  np.testing.assert_allclose(info.metrics["search/value_error"], 0.0, atol=1e-4)
  np.testing.assert_allclose(info.metrics["search/value_mean"], np.mean(returns), atol=1e-4)


# What is refused.


def test_continuous_actions_are_refused():
  with pytest.raises(config_lib.InputError, match=r"^MuZero takes discrete actions, those of .*$"):
    muzero.make_agent(config_of(), testing.probe_continuous().spec)


@pytest.mark.parametrize(
  ("make_config", "message"),
  [
    (lambda: muzero.SearchConfig(num_simulations=0), "search.num_simulations must be above 0"),
    (lambda: muzero.SearchConfig(max_depth=-1), "max_depth must be at least 0"),
    (lambda: muzero.SearchConfig(temperature=-1.0), "temperature must be at least 0"),
    (lambda: muzero.SearchConfig(dirichlet_fraction=2.0), "dirichlet_fraction must be between"),
    (lambda: muzero.SearchConfig(evaluation_simulations=-1), "evaluation_simulations must be at"),
    (lambda: muzero.ModelConfig(num_bins=4), "model.num_bins must be odd"),
    (lambda: muzero.ModelConfig(hidden_sizes=(8, 0)), "model.hidden_sizes must all be above 0"),
    (lambda: muzero.ModelConfig(latent_size=0), "latent_size must be above 0"),
    (lambda: config_of(unroll_steps=0), "unroll_steps must be above 0"),
    (lambda: config_of(td_steps=0), "td_steps must be above 0"),
    (lambda: config_of(td_lambda=1.5), "td_lambda must be between 0 and 1"),
    (lambda: config_of(value_cost=-1.0), "value_cost must be at least 0"),
    (lambda: config_of(unroll_steps=7).check_unroll(6), "unroll_steps=7 of the model is more than"),
  ]
  + [
    (
      lambda name=name, value=value: muzero.MuZeroConfig(
        network=config_lib.NetworkConfig(**{name: value})
      ),
      "MuZero reads single observations: network.lstm_size",
    )
    for name, value in (
      ("lstm_size", 8),
      ("use_previous_action", True),
      ("use_previous_reward", True),
    )
  ],
)
def test_wrong_values_are_refused_in_a_line(make_config, message):
  with pytest.raises(config_lib.InputError) as error:
    make_config()
  assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_unroll_longer_than_the_trajectory_is_refused():
  config_of(unroll_steps=T).check_unroll(T)
  agent, params = make(unroll_steps=T + 1)
  with pytest.raises(config_lib.InputError, match=rf"^unroll_steps={T + 1} .* the {T} steps of"):
    jax.eval_shape(agent.loss, params, params, KEY, random_trajectory())


def test_slow_settings_are_warned_of():
  assert not config_of().warnings()
  slow = dataclasses.replace(
    config_of(), search=muzero.SearchConfig(policy="muzero", num_simulations=1000)
  )
  assert [line.split()[0] for line in slow.warnings()] == [
    "search.policy=muzero",
    "search.num_simulations=1000:",
  ]
  chance = config_of({"policy": "stochastic"}).warnings()
  assert len(chance) == 2 and "loss/num_chance_codes_used" in chance[1]


def chance_batch(rng, length, batch_size):
  """Returns streams without end: observation and reward are +1 or -1, by P[action]."""
  action = rng.integers(2, size=(length, batch_size)).astype(np.int32)
  is_up = rng.uniform(size=action.shape) < np.asarray(P)[action]
  outcome = np.where(is_up, 1.0, -1.0).astype(np.float32)
  outcome = np.concatenate([np.ones((1, batch_size), np.float32), outcome])
  zeros = np.zeros(action.shape, np.float32)
  visits = np.full((*action.shape, 2), 0.5, np.float32)
  return types.Trajectory(
    timesteps=types.TimeStep(
      step_type=np.full(outcome.shape, types.MID, np.int8),
      reward=outcome,
      discount=np.ones_like(outcome),
      observation=outcome[..., None],
    ),
    actor_outputs=types.ActorOutput(action, visits, zeros, zeros, visits, zeros, zeros),
    initial_state=(),
  )


P = (0.8, 0.3)


@pytest.mark.parametrize("seed", range(3))
def test_what_chance_does_is_learnt(seed):
  """Codes tell the outcomes apart, are foretold by their probabilities, and have their rewards."""
  config = muzero.MuZeroConfig(
    network=config_lib.NetworkConfig(hidden_sizes=(16,)),
    model=muzero.ModelConfig(
      latent_size=16, hidden_sizes=(16,), num_bins=21, max_value=4.0, max_reward=2.0
    ),
    search=muzero.SearchConfig(policy="stochastic", num_simulations=1),
    discount=0.5,
    unroll_steps=2,
  )
  spec = types.EnvironmentSpec(
    "dice", types.ArraySpec((1,), jnp.dtype("float32")), types.DiscreteActions(2)
  )
  agent = muzero.make_agent(config, spec)
  params = agent.init(jax.random.key(seed))
  optimizer = optax.adam(3e-3)
  state, rng = optimizer.init(params), np.random.default_rng(seed)

  @jax.jit
  def update(params, state, trajectory):
    gradient, _ = jax.grad(agent.loss, has_aux=True)(params, params, jax.random.key(0), trajectory)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  for _ in range(400):
    params, state = update(params, state, chance_batch(rng, 8, 32))

  model = model_lib.Model(config.network, config.model, spec, config.num_chance_codes)
  call = lambda method, *x: model.apply(params["model"], *x, method=method)  # noqa: E731
  reward_of = model_lib.make_transform(21, 2.0).apply_inv
  up, down = jnp.ones((1, 1)), -jnp.ones((1, 1))
  latent = call("represent", up)
  for action, probability in enumerate(P):
    afterstate = call("decide", latent, jnp.asarray([action]))
    shares = jax.nn.softmax(afterstate.chance_logits)[0]
    codes = [int(jnp.argmax(call("encode", up, outcome))) for outcome in (up, down)]
    assert codes[0] != codes[1]
    np.testing.assert_allclose(shares[jnp.asarray(codes)], [probability, 1 - probability], atol=0.1)
    for code, reward in zip(codes, (1.0, -1.0), strict=True):
      happened = call("happen", afterstate.latent, jnp.asarray([code]))
      np.testing.assert_allclose(
        reward_of(jax.nn.softmax(happened.reward_logits)), reward, atol=0.15
      )
