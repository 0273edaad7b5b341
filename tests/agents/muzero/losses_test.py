"""Targets and loss against slow references, over every course of time steps there can be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config as config_lib
from podracer import types
from podracer.agents import muzero
from podracer.agents.muzero import losses
from podracer.agents.muzero import model as model_lib

NUM_ACTIONS = 3
# Time steps as letters: the first of an episode, one inside, the last that ends or cuts (truncates) it.
STEP_TYPES = {"F": types.FIRST, "M": types.MID, "E": types.LAST, "C": types.LAST}
NEXT = {"F": "MEC", "M": "MEC", "E": "F", "C": "F"}


@functools.cache
def all_courses(length):
  """Returns every string of the time steps 0 .. length that an unroll can hold."""
  courses = list(NEXT)
  for _ in range(length):
    courses = [course + after for course in courses for after in NEXT[course[-1]]]
  return courses


def timesteps_of(course, reward):
  return types.TimeStep(
    step_type=np.asarray([STEP_TYPES[kind] for kind in course], np.int8),
    reward=np.asarray(reward, np.float32),
    discount=np.asarray([kind != "E" for kind in course], np.float32),
    observation=(),
  )


def random_stream(rng, course):
  """Returns rewards and values `[T+1]`, actions `[T]` and policies `[T, A]`."""
  length = len(course) - 1
  reward = np.where([kind == "F" for kind in course], 0.0, rng.normal(size=length + 1))
  value = rng.normal(size=length + 1)
  action = rng.integers(NUM_ACTIONS, size=length)
  policy = rng.dirichlet(np.ones(NUM_ACTIONS), size=length)
  return (
    reward.astype(np.float32),
    value.astype(np.float32),
    action.astype(np.int32),
    policy.astype(np.float32),
  )


def reference_returns(course, reward, value, gamma, num_players, num_steps, lambda_):
  """The n-step returns of appendix F as sums, and the mean of the shorter ones by lambda."""
  length = len(course) - 1

  def n_step(t, n):
    total = 0.0
    for s in range(t + 1, min(t + n, length) + 1):
      # A reward goes to who moved, and is a loss to the other one.
      sign = -1 if num_players == 2 and (s - 1 - t) % 2 else 1
      total += sign * gamma ** (s - 1 - t) * reward[s]
      if course[s] == "E":
        return total
      if course[s] == "C":
        break
    sign = -1 if num_players == 2 and (s - t) % 2 else 1
    return total + sign * gamma ** (s - t) * value[s]

  def by_lambda(t):
    shorter = sum(lambda_ ** (n - 1) * n_step(t, n) for n in range(1, num_steps))
    return (1 - lambda_) * shorter + lambda_ ** (num_steps - 1) * n_step(t, num_steps)

  return np.asarray([by_lambda(t) for t in range(length)])


def reference_targets(course, reward, action, value, policy, num_unroll_steps):
  """Walks the K steps from each root, knowing where it is: NaN is no target, -1 any action."""
  length = len(action)
  actions = np.full((length, num_unroll_steps), -1)
  rewards = np.full((length, num_unroll_steps), np.nan)
  values = np.full((length, num_unroll_steps + 1), np.nan)
  policies = np.full((length, num_unroll_steps + 1, NUM_ACTIONS), np.nan)
  for t in range(length):
    place = "nowhere" if course[t] in "EC" else "episode"
    for k in range(num_unroll_steps + 1):
      if k > 0 and place == "episode":
        actions[t, k - 1], rewards[t, k - 1] = action[t + k - 1], reward[t + k]
        if course[t + k] == "E":
          place = "end"
        elif course[t + k] == "C" or t + k == length:
          place = "nowhere"
      elif k > 0 and place == "end":
        rewards[t, k - 1] = 0.0
      if place == "episode":
        values[t, k], policies[t, k] = value[t + k], policy[t + k]
      elif place == "end":
        values[t, k] = 0.0
  return actions, rewards, values, policies


def returns_of(timesteps, value, gamma, num_steps, lambda_):
  """Calls `value_targets`; `gamma` is negative for two players."""
  discount_t = gamma * timesteps.discount[1:]
  return losses.value_targets(
    timesteps.step_type, timesteps.reward[1:], discount_t, value[1:], num_steps, lambda_
  )


def stack(trees, axis=0):
  return jax.tree.map(lambda *x: np.stack(x, axis), *trees)


def every_course(length):
  """Returns every course, a random stream of each, and their time steps `[N, T+1]`."""
  courses, rng = all_courses(length), np.random.default_rng(length)
  streams = [random_stream(rng, course) for course in courses]
  timesteps = [timesteps_of(c, s[0]) for c, s in zip(courses, streams, strict=True)]
  return courses, streams, stack(timesteps)


# gamma 0.5, V = 10, 20, 30, 40 and R = 1, 2, 3 on arrival at 1, 2, 3; n = 2. By hand.
V, R = [10.0, 20.0, 30.0, 40.0], [0.0, 1.0, 2.0, 3.0]
BY_HAND = {
  # 1 + 1 + 30/4; 2 + 1.5 + 40/4; 3 + 40/2
  "inside": ("MMMM", 1, 1.0, [9.5, 13.5, 23.0]),
  # 1 - 1 + 30/4; 2 - 1.5 + 40/4; 3 - 40/2
  "two players": ("MMMM", 2, 1.0, [7.5, 10.5, -17.0]),
  # 1 + ((20 + 2 + 30/2) / 2) / 2; 2 + ((30 + 3 + 40/2) / 2) / 2; 3 + 40/2
  "lambda": ("MMMM", 1, 0.5, [10.25, 15.25, 23.0]),
  "one step": ("MMMM", 1, 0.0, [11.0, 17.0, 23.0]),
  "ends inside": ("MMEF", 1, 1.0, [2.0, 2.0, None]),
  "ends inside, two players": ("MMEF", 2, 1.0, [0.0, 2.0, None]),
  "cut inside": ("MMCF", 1, 1.0, [9.5, 17.0, None]),
  "cut inside, two players": ("MMCF", 2, 1.0, [7.5, -13.0, None]),
  "ends at the first": ("FEFM", 1, 1.0, [1.0, None, 23.0]),
  "cut at the first": ("FCFM", 1, 1.0, [11.0, None, 23.0]),
  "begins with an end": ("EFMM", 1, 1.0, [None, 13.5, 23.0]),
  "ends at the last": ("MMME", 1, 1.0, [9.5, 3.5, 3.0]),
  "one step after another": ("EFEF", 1, 1.0, [None, 2.0, None]),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("jit", [False, True])
def test_returns_by_hand(name, jit):
  course, num_players, lambda_, expected = BY_HAND[name]
  function = jax.jit(returns_of, static_argnums=3) if jit else returns_of
  gamma = 0.5 if num_players == 1 else -0.5
  returns = function(timesteps_of(course, R), jnp.asarray(V), gamma, 2, lambda_)
  for found, target in zip(returns, expected, strict=True):
    assert target is None or found == target


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_returns_of_every_course(length, num_steps):
  courses, streams, batch = every_course(length)
  value = np.stack([stream[1] for stream in streams])
  has_target = batch.step_type[:, :-1] != types.LAST
  function = jax.jit(jax.vmap(returns_of, in_axes=(0, 0, None, None, None)), static_argnums=3)
  for num_players, lambda_ in ((1, 1.0), (1, 0.7), (1, 0.0), (2, 1.0), (2, 0.7)):
    found = function(batch, value, 0.9 if num_players == 1 else -0.9, num_steps, lambda_)
    expected = [
      reference_returns(course, *stream[:2], 0.9, num_players, num_steps, lambda_)
      for course, stream in zip(courses, streams, strict=True)
    ]
    np.testing.assert_allclose(found[has_target], np.stack(expected)[has_target], atol=1e-5)


# K = 2; rewards and values are the number of the time step, actions 0, 1, 2. By hand: per root the
# rewards, the values and the roots whose policy is the target; _ is no target.
_ = np.nan
UNROLLS = {
  "inside": ("FMMM", [[1, 2], [2, 3], [3, _]], [[0, 1, 2], [1, 2, _], [2, _, _]], "012 12_ 2__"),
  "ends": ("FMEF", [[1, 2], [2, 0], [_, _]], [[0, 1, 0], [1, 0, 0], [_, _, _]], "01_ 1__ ___"),
  "cut": ("FMCF", [[1, 2], [2, _], [_, _]], [[0, 1, _], [1, _, _], [_, _, _]], "01_ 1__ ___"),
  "ends at the first": (
    "FEFM",
    [[1, 0], [_, _], [3, _]],
    [[0, 0, 0], [_, _, _], [2, _, _]],
    "0__ ___ 2__",
  ),
  "cut at the first": (
    "FCFM",
    [[1, _], [_, _], [3, _]],
    [[0, _, _], [_, _, _], [2, _, _]],
    "0__ ___ 2__",
  ),
  "begins with a reset": (
    "EFMM",
    [[_, _], [2, 3], [3, _]],
    [[_, _, _], [1, 2, _], [2, _, _]],
    "___ 12_ 2__",
  ),
  # An episode that ended goes on past the end of the stream, a cut one doesn't.
  "ends at the last": (
    "MMME",
    [[1, 2], [2, 3], [3, 0]],
    [[0, 1, 2], [1, 2, 0], [2, 0, 0]],
    "012 12_ 2__",
  ),
  "cut at the last": (
    "MMMC",
    [[1, 2], [2, 3], [3, _]],
    [[0, 1, 2], [1, 2, _], [2, _, _]],
    "012 12_ 2__",
  ),
  "ends, and the next is cut": (
    "FEFC",
    [[1, 0], [_, _], [3, _]],
    [[0, 0, 0], [_, _, _], [2, _, _]],
    "0__ ___ 2__",
  ),
}


@pytest.mark.parametrize("name", UNROLLS)
@pytest.mark.parametrize("jit", [False, True])
def test_unrolls_by_hand(name, jit):
  course, reward, value, policy = UNROLLS[name]
  number = np.arange(4.0)
  arguments = (number[:3].astype(np.int32), jnp.asarray(number[:3]), jnp.eye(NUM_ACTIONS), 2)
  function = jax.jit(losses.unroll_targets, static_argnums=4) if jit else losses.unroll_targets
  targets = function(timesteps_of(course, number), *arguments)
  rows = policy.split()
  expected = np.asarray([[np.eye(3)[int(x)] if x != "_" else [_] * 3 for x in row] for row in rows])
  check_targets(targets, np.full((3, 2), -1), np.asarray(reward), np.asarray(value), expected)


def check_targets(targets, actions, reward, value, policy):
  assert targets.actions.dtype == jnp.int32
  assert np.all((targets.actions >= 0) & (targets.actions < NUM_ACTIONS))
  np.testing.assert_array_equal(np.where(actions < 0, -1, targets.actions), actions)
  if np.any(actions >= 0):  # Those by hand name none.
    np.testing.assert_array_equal(targets.arrival_mask, actions >= 0)
  for found, mask, expected in (
    (targets.reward, targets.reward_mask, reward),
    (targets.value, targets.value_mask, value),
    (targets.policy, targets.policy_mask[..., None], policy),
  ):
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(np.where(mask, found, np.nan), expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("length", "num_unroll_steps"),
  [(1, 1), (1, 4), (2, 2), (3, 1), (3, 6), (4, 3), (5, 5), (6, 2), (7, 6), (8, 4)],
)
def test_unrolls_of_every_course(length, num_unroll_steps):
  courses, streams, batch = every_course(length)
  _, value, action, policy = (np.stack(x) for x in zip(*streams, strict=True))
  function = jax.vmap(losses.unroll_targets, in_axes=(0, 0, 0, 0, None))
  arguments = (batch, action, value[:, :-1], policy, num_unroll_steps)
  found = jax.jit(function, static_argnums=4)(*arguments)
  expected = [
    reference_targets(course, reward, action, value, policy, num_unroll_steps)
    for course, (reward, value, action, policy) in zip(courses, streams, strict=True)
  ]
  check_targets(found, *(np.stack(x) for x in zip(*expected, strict=True)))


def test_nothing_after_the_end_of_an_episode_counts():
  """Targets are linear in rewards and values: their derivatives say all that they depend on."""
  courses = [course for course in all_courses(5) if course[0] != "E"]
  batch = stack([timesteps_of(course, np.ones(6)) for course in courses])

  def targets_of(reward, value, timesteps):
    timesteps = timesteps._replace(reward=reward)
    returns = returns_of(timesteps, value, 0.9, 10, 0.7)
    targets = losses.unroll_targets(timesteps, jnp.zeros(5, int), returns, jnp.ones((5, 2)), 3)
    return tuple(
      jnp.where(mask, x, 0.0)
      for x, mask in ((targets.reward, targets.reward_mask), (targets.value, targets.value_mask))
    )

  jacobian = jax.jit(jax.vmap(jax.jacobian(targets_of, argnums=(0, 1)), in_axes=(0, 0, 0)))
  found = jacobian(batch.reward, batch.reward, batch)
  for i, course in enumerate(courses):
    for t in range(5):
      end = next((s for s in range(t, 6) if course[s] in "EC"), 5)
      for by_reward, by_value in found:
        assert not np.any(by_reward[i, t, :, end + 1 :]), (course, t)
        # Nor does the value of the state in which it ended.
        assert not np.any(by_value[i, t, :, end + (course[end] != "E") :]), (course, t)
        assert not np.any(by_reward[i, t, :, : t + 1]) and not np.any(by_value[i, t, :, : t + 1])


def test_all_actions_are_taken_in_an_absorbing_state():
  timesteps = timesteps_of("FEFM", np.ones(4))
  policy = jnp.ones((3, 4))
  actions = losses.unroll_targets(timesteps, jnp.full(3, 2), jnp.ones(3), policy, 5).actions
  assert actions[0, 0] == 2 and set(np.asarray(actions[0, 1:])) == {0, 1, 2, 3}


def test_codes_of_unrolls_by_hand():
  """Of T = 3 and K = 2; where no action led anywhere codes take turns."""
  codes = jnp.asarray([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.4, 0.6]])
  arrival = jnp.asarray([[True, True], [True, False], [False, False]])
  found = losses.unroll_codes(codes, arrival)
  expected = [[codes[0], codes[1]], [codes[1], [1, 0, 0]], [[1, 0, 0], [0, 1, 0]]]
  np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_code_is_one_hot_and_has_the_gradient_of_its_probabilities():
  probabilities, weights = jnp.asarray([[0.2, 0.5, 0.3]]), jnp.asarray([[3.0, 5.0, 7.0]])
  np.testing.assert_allclose(losses.straight_through(probabilities), [[0, 1, 0]], atol=1e-6)
  gradient = jax.grad(lambda p: jnp.sum(weights * losses.straight_through(p)))(probabilities)
  np.testing.assert_array_equal(gradient, weights)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_weights_by_unroll_step(num_steps):
  weights = losses.unroll_weights(num_steps)
  np.testing.assert_allclose(weights, [1.0] + [1 / num_steps] * num_steps, rtol=1e-6)


def test_losses_by_hand():
  logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]]))
  target = jnp.asarray([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
  expected = [np.log(4.0), -(np.log(0.2) + np.log(0.4)) / 2]
  np.testing.assert_allclose(losses.cross_entropy(logits, target), expected, rtol=1e-6)
  uniform = jnp.asarray([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
  np.testing.assert_allclose(losses.entropy(uniform), [np.log(4.0), 0.0], atol=1e-6)


# The loss of the agent against equation (1) written out.

LENGTH, BATCH, K, LATENT, BINS = 5, 8, 3, 4, 7
MAX_VALUE, MAX_REWARD = 6.0, 3.0
CONFIG = muzero.MuZeroConfig(
  network=config_lib.NetworkConfig(hidden_sizes=(5,)),
  model=muzero.ModelConfig(
    latent_size=LATENT,
    hidden_sizes=(6,),
    num_bins=BINS,
    max_value=MAX_VALUE,
    max_reward=MAX_REWARD,
  ),
  search=muzero.SearchConfig(num_simulations=1),
  discount=0.8,
  unroll_steps=K,
  td_steps=3,
  td_lambda=0.7,
  value_cost=0.3,
  reward_cost=0.6,
  entropy_cost=0.2,
)
CHANCE_CONFIG = dataclasses.replace(
  CONFIG,
  model=dataclasses.replace(CONFIG.model, num_chance_codes=3),
  search=muzero.SearchConfig(policy="stochastic", num_simulations=1),
  chance_cost=0.7,
  commitment_cost=0.4,
)
SPEC = types.EnvironmentSpec(
  "probe", types.ArraySpec((2,), jnp.dtype("float32")), types.DiscreteActions(NUM_ACTIONS)
)


def squash(x):
  return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 0.001 * x


def two_hot(x, limit):
  """Shares each number between the two bins beside it."""
  bins = np.linspace(-squash(limit), squash(limit), BINS)
  x = np.clip(squash(x), bins[0], bins[-1])
  return np.maximum(0.0, 1 - np.abs(x[..., None] - bins) / (bins[1] - bins[0]))


def from_logits(logits, limit):
  """Inverts `squash` by bisection; the bins' mean is of squashed numbers."""
  mean = np.asarray(jax.nn.softmax(logits)) @ np.linspace(-squash(limit), squash(limit), BINS)
  low, high = np.full_like(mean, -limit), np.full_like(mean, limit)
  for _step in range(60):
    middle = (low + high) / 2
    is_above = squash(middle) > mean
    low, high = np.where(is_above, low, middle), np.where(is_above, middle, high)
  return low


def equation_one(config, params, target_params, trajectory, courses, streams, num_players):
  """Returns the loss of equation (1) as a function of the parameters, step by step.

  With chance, plus that of Antonoglou et al. (2022), section 4.
  """
  num_codes = config.num_chance_codes
  model = model_lib.Model(config.network, config.model, SPEC, num_codes)
  call = lambda params, *x, method: model.apply(params["model"], *x, method=method)  # noqa: E731
  observation = trajectory.timesteps.observation  # [T+1, B, 2]
  weights = trajectory.importance_weights
  weights = np.tile(np.ones(BATCH) if weights is None else weights, LENGTH)[:, None]

  latent = call(target_params, observation.reshape(-1, 2), method="represent")
  logits = call(target_params, latent, method="predict").value_logits
  value_t = from_logits(logits, MAX_VALUE).reshape(LENGTH + 1, BATCH)
  rows = []
  for b, (course, (reward, _, action, visits)) in enumerate(zip(courses, streams, strict=True)):
    arguments = (config.discount, num_players, config.td_steps, config.td_lambda)
    returns = reference_returns(course, reward, value_t[:, b], *arguments)
    targets = reference_targets(course, reward, action, returns, visits, K)
    # What is done after an end is free; take the same.
    free = losses.unroll_targets(timesteps_of(course, reward), action, returns, visits, K).actions
    arrived = 1.0 * (targets[0] >= 0)
    rows.append((np.where(targets[0] < 0, free, targets[0]), *targets[1:], arrived))
  # [B] of [T, ...] -> [T*B, ...]
  merged = (
    np.stack(x, 1).reshape(LENGTH * BATCH, *x[0].shape[1:]) for x in zip(*rows, strict=True)
  )
  actions, reward, value, policy, arrived = merged
  time, stream = (x.reshape(-1) for x in np.indices((LENGTH, BATCH)))
  acts = ~np.isnan(policy)
  # Where there is no target, none of the bins and actions has any.
  reward, value = two_hot(reward, MAX_REWARD), two_hot(value, MAX_VALUE)
  reward, value, policy = (np.nan_to_num(x) for x in (reward, value, policy))

  def cross_entropy(target, logits):
    loss = -target * jax.nn.log_softmax(logits) * weights
    return jnp.sum(loss) / (LENGTH * BATCH)

  def loss(params):
    latent = call(params, observation[:-1].reshape(-1, 2), method="represent")
    total = 0.0
    for k in range(K + 1):
      scale = 1.0 if k == 0 else 1.0 / K
      if k > 0:
        halved = 0.5 * latent + 0.5 * jax.lax.stop_gradient(latent)
        if num_codes:
          after = call(params, halved, actions[:, k - 1], method="decide")
          at = np.minimum(time + k - 1, LENGTH - 1)
          pair = (observation[at, stream], observation[at + 1, stream])
          share = call(params, *pair, method="encode")
          has_code = arrived[:, k - 1, None]
          code = has_code * jnp.eye(num_codes)[jnp.argmax(share, axis=-1)]
          total += config.value_cost * scale * cross_entropy(value[:, k - 1], after.value_logits)
          total += config.chance_cost * scale * cross_entropy(code, after.chance_logits)
          distance = has_code * weights * (code - share) ** 2
          total += config.commitment_cost * scale * jnp.sum(distance) / (LENGTH * BATCH)
          code += has_code * (share - jax.lax.stop_gradient(share))
          code += (1 - has_code) * np.eye(num_codes)[(time + k) % num_codes]
          latent, logits = call(params, after.latent, code, method="happen")
        else:
          latent, logits = call(params, halved, actions[:, k - 1], method="step")
        total += config.reward_cost * scale * cross_entropy(reward[:, k - 1], logits)
      own, logits = call(params, latent, method="predict")
      total += config.value_cost * scale * cross_entropy(value[:, k], logits)
      total += scale * cross_entropy(policy[:, k], own)
      acting = jnp.where(acts[:, k], jax.nn.softmax(own), 0.0)
      total -= config.entropy_cost * scale * cross_entropy(acting, own)
    return total

  return loss


def noisy(params, seed):
  """Returns parameters of the same shapes, none of them near 0."""
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(structure, [rng.normal(size=x.shape).astype(x.dtype) for x in leaves])


@pytest.mark.parametrize("config", [CONFIG, CHANCE_CONFIG], ids=["sure", "chance"])
@pytest.mark.parametrize(("num_players", "has_weights"), [(1, False), (2, True)])
def test_the_loss_is_equation_one(num_players, has_weights, config):
  rng = np.random.default_rng(num_players)
  courses = rng.choice(all_courses(LENGTH), BATCH, replace=False)
  assert all(any(end in course[1:-1] for course in courses) for end in "EC")
  streams = [random_stream(rng, course) for course in courses]
  _, _, action, visits = (np.stack(x, axis=1) for x in zip(*streams, strict=True))
  timesteps = stack([timesteps_of(c, s[0]) for c, s in zip(courses, streams, strict=True)], axis=1)
  zeros = np.zeros((LENGTH, BATCH), np.float32)
  trajectory = types.Trajectory(
    timesteps=timesteps._replace(
      observation=rng.normal(size=(LENGTH + 1, BATCH, 2)).astype(np.float32)
    ),
    actor_outputs=types.ActorOutput(action, visits, zeros, zeros, visits, zeros, zeros),
    initial_state=(),
    importance_weights=rng.uniform(0, 2, BATCH).astype(np.float32) if has_weights else None,
  )
  agent = muzero.make_agent(config, SPEC._replace(num_players=num_players))
  shapes = jax.eval_shape(agent.init, jax.random.key(0))
  params, target_params = noisy(shapes, 1), noisy(shapes, 2)
  loss_of = lambda p: agent.loss(p, target_params, jax.random.key(0), trajectory)  # noqa: E731
  (found, _), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
  written_out = equation_one(
    config, params, target_params, trajectory, courses, streams, num_players
  )
  expected, expected_gradient = jax.jit(jax.value_and_grad(written_out))(params)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), gradient, expected_gradient
  )
  # A wrong scale of the gradient would show, in the representation and in the dynamics.
  parts = ("representation_net", "dynamics_net")
  for name in (*parts, "afterstate_net", "encoder_net") if config.num_chance_codes else parts:
    leaves = jax.tree.leaves(gradient["model"]["params"][name])
    assert np.mean([np.mean(np.abs(leaf)) for leaf in leaves]) > 1e-2
