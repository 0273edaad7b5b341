"""A chain MDP and probe environments: a step or two, with known values."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from podracer import environment as environment_lib
from podracer import types

TERMINATE = "terminate"
TRUNCATE = "truncate"


def _make(
  name: str,
  observation: types.ArraySpec,
  action: types.ActionSpec,
  reset: Any,
  step: Any,
) -> environment_lib.Environment:
  spec = types.EnvironmentSpec(name=name, observation=observation, action=action)
  return environment_lib.Environment(spec=spec, reset=reset, step=step)


def _outcome(
  observation: Any, reward: Any, terminated: Any = False, truncated: Any = False
) -> environment_lib.Outcome:
  return environment_lib.Outcome(
    observation=jnp.asarray(observation, jnp.float32),
    reward=jnp.asarray(reward, jnp.float32),
    terminated=jnp.asarray(terminated, bool),
    truncated=jnp.asarray(truncated, bool),
  )


def chain_environment(
  episodes: Sequence[tuple[int, str]] = ((3, TERMINATE),),
  rewards: Sequence[float] | None = None,
  num_actions: int = 2,
) -> environment_lib.Environment:
  """Returns a chain of states 0, 1, 2 ... walked from left to right whatever the action.

  Args:
    episodes: `(steps, end)` of each kind of episode, `end` being "terminate", "truncate" or "both";
      one kind gives the same episode always, of several each reset draws one.
    rewards: of arriving at states 1, 2 ...; the default is 1, 2, 3 ...
    num_actions: that there are, all the same.

  Returns:
    An environment that observes its state as one-hot `[longest + 1]`.

  Raises:
    ValueError: for an end of another name, no steps, or too few rewards.
  """
  for steps, end in episodes:
    if steps < 1 or end not in (TERMINATE, TRUNCATE, "both"):
      raise ValueError(
        f'an episode is (steps >= 1, "terminate", "truncate" or "both"), got {(steps, end)}'
      )
  longest = max(steps for steps, _ in episodes)
  if rewards is None:
    rewards = tuple(float(i + 1) for i in range(longest))
  if len(rewards) < longest:
    raise ValueError(f"{longest} rewards are needed, got {len(rewards)}")
  num_steps = jnp.asarray([steps for steps, _ in episodes])
  terminates = jnp.asarray([end != TRUNCATE for _, end in episodes])
  truncates = jnp.asarray([end != TERMINATE for _, end in episodes])
  reward_of = jnp.asarray(rewards, jnp.float32)

  def observe(position: types.Array) -> types.Array:
    return jax.nn.one_hot(position, longest + 1, dtype=jnp.float32)

  def reset(key: types.Key) -> Any:
    kind = jax.random.randint(key, (), 0, len(episodes), jnp.int32)
    position = jnp.zeros((), jnp.int32)
    return (kind, position), observe(position)

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key, action
    kind, position = state
    is_end = position + 1 >= num_steps[kind]
    return (kind, position + 1), _outcome(
      observe(position + 1),
      reward_of[position],
      terminated=is_end & terminates[kind],
      truncated=is_end & truncates[kind],
    )

  return _make(
    "chain",
    types.ArraySpec((longest + 1,), jnp.dtype("float32"), 0.0, 1.0),
    types.DiscreteActions(num_actions),
    reset,
    step,
  )


_UNIT = types.ArraySpec((1,), jnp.dtype("float32"), -1.0, 1.0)


def _start_at_zero(key: types.Key) -> Any:
  """Resets to no state, and observation 0."""
  del key
  return (), jnp.zeros((1,))


def _start_at_a_sign(key: types.Key) -> Any:
  """Resets to a state that is the observation, -1 or 1."""
  sign = jax.random.rademacher(key, (1,), jnp.float32)
  return sign, sign


def probe_constant() -> environment_lib.Environment:
  """One step, reward 1, observation 0: the value of the start is 1 whatever the discount."""

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key, action
    return state, _outcome(jnp.zeros((1,)), 1.0, terminated=True)

  return _make("probe_constant", _UNIT, types.DiscreteActions(2), _start_at_zero, step)


def probe_observation() -> environment_lib.Environment:
  """One step whose reward is the observation, -1 or 1: the value is the observation."""

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key, action
    return state, _outcome(jnp.zeros((1,)), state[0], terminated=True)

  return _make("probe_observation", _UNIT, types.DiscreteActions(2), _start_at_a_sign, step)


def probe_discount() -> environment_lib.Environment:
  """Two steps, reward 1 at the end: the value is gamma at observation 0 and 1 at observation 1."""
  return chain_environment(((2, TERMINATE),), rewards=(0.0, 1.0))._replace(
    spec=types.EnvironmentSpec(
      "probe_discount",
      types.ArraySpec((3,), jnp.dtype("float32"), 0.0, 1.0),
      types.DiscreteActions(2),
    )
  )


def probe_truncation() -> environment_lib.Environment:
  """Reward 1 and observation 0 for ever, truncated after each step: the value is 1 / (1 - gamma).

  A learner that takes a truncation for an end finds 1.
  """

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key, action
    return state, _outcome(jnp.zeros((1,)), 1.0, truncated=True)

  return _make("probe_truncation", _UNIT, types.DiscreteActions(2), _start_at_zero, step)


def probe_action() -> environment_lib.Environment:
  """One step, reward 1 for action 1 and -1 for action 0: the best return is 1."""

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key
    return state, _outcome(jnp.zeros((1,)), jnp.where(action == 1, 1.0, -1.0), terminated=True)

  return _make("probe_action", _UNIT, types.DiscreteActions(2), _start_at_zero, step)


def probe_policy() -> environment_lib.Environment:
  """One step, reward 1 for action 1 at observation 1 or 0 at -1, else -1: the best return is 1."""

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key
    is_right = (action == 1) == (state[0] > 0)
    return state, _outcome(jnp.zeros((1,)), jnp.where(is_right, 1.0, -1.0), terminated=True)

  return _make("probe_policy", _UNIT, types.DiscreteActions(2), _start_at_a_sign, step)


def probe_memory(length: int = 4) -> environment_lib.Environment:
  """A cue at the first step is to be named at the last: reward 1 or -1; 0 on average without memory.

  Args:
    length: steps of an episode; the action of the last one counts.

  Returns:
    An environment that observes `[cue is 0, cue is 1, it is time to answer]`.
  """

  def observe(cue: types.Array, position: types.Array) -> types.Array:
    shown = jnp.where(position == 0, jax.nn.one_hot(cue, 2), jnp.zeros(2))
    return jnp.append(shown, jnp.where(position == length - 1, 1.0, 0.0)).astype(jnp.float32)

  def reset(key: types.Key) -> Any:
    cue = jax.random.randint(key, (), 0, 2, jnp.int32)
    position = jnp.zeros((), jnp.int32)
    return (cue, position), observe(cue, position)

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key
    cue, position = state
    is_end = position + 1 >= length
    reward = jnp.where(is_end, jnp.where(action == cue, 1.0, -1.0), 0.0)
    return (cue, position + 1), _outcome(observe(cue, position + 1), reward, terminated=is_end)

  return _make(
    "probe_memory",
    types.ArraySpec((3,), jnp.dtype("float32"), 0.0, 1.0),
    types.DiscreteActions(2),
    reset,
    step,
  )


def probe_continuous(target: float = 0.5, size: int = 1) -> environment_lib.Environment:
  """One step, reward -|action - target|^2, actions in [-1, 1]: the best return is 0."""

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    del key
    return state, _outcome(jnp.zeros((1,)), -jnp.sum((action - target) ** 2), terminated=True)

  actions = types.ContinuousActions(minimum=(-1.0,) * size, maximum=(1.0,) * size)
  return _make("probe_continuous", _UNIT, actions, _start_at_zero, step)
