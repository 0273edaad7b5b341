"""Environments: the contract of one JAX-native environment, and its batch with resets.

A suite supplies an `Environment`: pure functions of *one* environment that never resets itself. The
core makes a batch of it and resets it by the one convention (see `types`): the step after LAST ignores
its action and returns FIRST.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer import config, types

EnvironmentState = Any


class Outcome(NamedTuple):
  """What one un-reset step of one environment returns.

  Attributes:
    observation: the observation arrived at, the true last one where the episode is over.
    reward: scalar.
    terminated: True where the episode ended, so that no reward can follow.
    truncated: True where it was cut, by a time limit say; may be True together with `terminated`.
  """

  observation: types.Observation
  reward: types.Array
  terminated: types.Array
  truncated: types.Array


class Environment(NamedTuple):
  """One JAX-native environment as pure functions, without batch axis and without resets.

  Attributes:
    spec: what an agent must know.
    reset: key -> (state, observation).
    step: (key, state, action) -> (state, Outcome).
    render: state -> `[H, W, 3]` uint8 on the host (NumPy, not traced), or None.
    frames_per_second: of a rendered video.
    reset_chunk: 0 computes a reset for every environment on every step and selects, right where a
      reset is cheap; n > 0 computes resets only for those that need one, n at a time.
    evaluation: the environment to evaluate in where it is not this one: of a game that the agent plays
      against itself, the game against an opponent. It has the same observations and actions.
    tasks: of a multi-task environment (see `podracer.multitask`) one environment for each task, whose
      observations are those of the whole; () else. It is reset and stepped in batches only.
  """

  spec: types.EnvironmentSpec
  reset: Callable[[types.Key], tuple[EnvironmentState, types.Observation]]
  step: Callable[[types.Key, EnvironmentState, types.Array], tuple[EnvironmentState, Outcome]]
  render: Callable[[EnvironmentState], np.ndarray] | None = None
  frames_per_second: int = 30
  reset_chunk: int = 0
  evaluation: "Environment | None" = None
  tasks: tuple["Environment", ...] = ()


class BatchState(NamedTuple):
  """State of a batch of environments, leaves `[B, ...]`.

  Attributes:
    key: one key an environment, constant during an episode: a step folds `num_steps` into it.
    num_steps: int32 steps since the episode began.
    needs_reset: True where the last time step was LAST.
    state: the environments' own; of N tasks a tuple of N, leaves `[B / N, ...]`.
  """

  key: types.Key
  num_steps: types.Array
  needs_reset: types.Array
  state: EnvironmentState


def reset(environment: Environment, key: types.Key) -> tuple[BatchState, types.TimeStep]:
  """Starts an episode in each environment.

  Args:
    environment: the environment.
    key: `[B]` keys; an environment's course depends on its own key only, not on the batch. Of N tasks
      the i-th has those from i * B / N on.

  Returns:
    The state and the FIRST time step, `[B, ...]`.

  Raises:
    InputError: if the tasks can't have equal shares of the batch.
  """
  if environment.tasks:
    shares = _shares(environment, key)
    return _join([reset(task, own) for task, own in zip(environment.tasks, shares, strict=True)])
  return jax.vmap(lambda k: _reset_one(environment, k))(key)


def step(
  environment: Environment, state: BatchState, action: types.Array
) -> tuple[BatchState, types.TimeStep]:
  """Takes one step in each environment, or resets it where the previous time step was LAST.

  Args:
    environment: the environment.
    state: `[B, ...]`.
    action: `[B]` or `[B, k]`; ignored where an environment resets.

  Returns:
    The state and the time step arrived at, `[B, ...]`.
  """
  if environment.tasks:
    return _step_tasks(environment, state, action)
  stepped = jax.vmap(lambda s, a: _step_one(environment, s, a))(state, action)
  if environment.reset_chunk <= 0:
    fresh = reset(environment, state.key)
    return _select(state.needs_reset, fresh, stepped)
  return _reset_in_chunks(environment, state, stepped)


def check_shares(name: str, batch_size: int, num_tasks: int) -> None:
  """Raises InputError unless the tasks of an environment can have equal shares of a batch."""
  config.check(
    batch_size % num_tasks == 0,
    f"environment {name} has {num_tasks} tasks: a batch of it must be a multiple of {num_tasks}, got "
    f"{batch_size}",
  )


def _step_tasks(
  environment: Environment, state: BatchState, action: types.Array
) -> tuple[BatchState, types.TimeStep]:
  """Steps each task's environments by that task alone."""
  bare = state._replace(state=())
  shares = _shares(environment, (bare, action))
  return _join(
    [
      step(task, share._replace(state=own), task_action)
      for task, own, (share, task_action) in zip(
        environment.tasks, state.state, shares, strict=True
      )
    ]
  )


def _shares(environment: Environment, batch: Any) -> list[Any]:
  """Returns the share of each task of leaves `[B, ...]`."""
  num_tasks = len(environment.tasks)
  batch_size = jax.tree.leaves(batch)[0].shape[0]
  check_shares(environment.spec.name, batch_size, num_tasks)
  size = batch_size // num_tasks
  return [
    jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], batch) for i in range(num_tasks)
  ]


def _join(
  parts: list[tuple[BatchState, types.TimeStep]],
) -> tuple[BatchState, types.TimeStep]:
  """Lays the tasks' shares one after the other; their own states stay apart."""
  states, timesteps = zip(*parts, strict=True)
  bare = [state._replace(state=()) for state in states]
  whole, timestep = jax.tree.map(
    lambda *xs: jnp.concatenate(xs), *zip(bare, timesteps, strict=True)
  )
  return whole._replace(state=tuple(state.state for state in states)), timestep


def _reset_one(environment: Environment, key: types.Key) -> tuple[BatchState, types.TimeStep]:
  next_key, reset_key = jax.random.split(key)
  state, observation = environment.reset(reset_key)
  timestep = types.TimeStep(
    step_type=jnp.asarray(types.FIRST, jnp.int8),
    reward=jnp.zeros((), jnp.float32),
    discount=jnp.ones((), jnp.float32),
    observation=observation,
  )
  batch_state = BatchState(
    key=next_key,
    num_steps=jnp.zeros((), jnp.int32),
    needs_reset=jnp.zeros((), bool),
    state=state,
  )
  return batch_state, timestep


def _step_one(
  environment: Environment, state: BatchState, action: types.Array
) -> tuple[BatchState, types.TimeStep]:
  spec = environment.spec.action
  if isinstance(spec, types.ContinuousActions):
    action = jnp.clip(action, jnp.asarray(spec.minimum), jnp.asarray(spec.maximum))
  # The key is constant during an episode, so a deterministic environment pays nothing for it.
  step_key = jax.random.fold_in(state.key, state.num_steps)
  env_state, outcome = environment.step(step_key, state.state, action)
  is_over = jnp.logical_or(outcome.terminated, outcome.truncated)
  timestep = types.TimeStep(
    step_type=jnp.where(is_over, types.LAST, types.MID).astype(jnp.int8),
    reward=jnp.asarray(outcome.reward, jnp.float32),
    discount=1.0 - jnp.asarray(outcome.terminated, jnp.float32),
    observation=outcome.observation,
  )
  batch_state = BatchState(
    key=state.key,
    num_steps=state.num_steps + 1,
    needs_reset=jnp.asarray(is_over, bool),
    state=env_state,
  )
  return batch_state, timestep


def _select(condition: types.Array, on_true: Any, on_false: Any) -> Any:
  """Selects along the leading axis of every leaf; the dtypes of `on_false` are kept."""

  def select(a: types.Array, b: types.Array) -> types.Array:
    mask = condition.reshape(condition.shape + (1,) * (b.ndim - condition.ndim))
    return jnp.where(mask, a if a.dtype == b.dtype else a.astype(b.dtype), b)

  return jax.tree.map(select, on_true, on_false)


def _reset_in_chunks(environment: Environment, state: BatchState, stepped: Any) -> Any:
  """Resets only the environments that need it, `reset_chunk` at a time.

  Most steps reset few environments of a batch, so this computes about as many resets as there are
  episodes, where a select computes one an environment a step. The law is that of the select: every
  environment is reset with its own key.
  """
  num_environments = state.needs_reset.shape[0]
  size = min(environment.reset_chunk, num_environments)

  def some_need_reset(carry: tuple[types.Array, Any]) -> types.Array:
    return jnp.any(carry[0])

  def reset_chunk(carry: tuple[types.Array, Any]) -> tuple[types.Array, Any]:
    needs_reset, current = carry
    # Out-of-range indices pad a chunk that is not full: gathers clip them and scatters drop them.
    (index,) = jnp.nonzero(needs_reset, size=size, fill_value=num_environments)
    fresh = reset(environment, state.key[jnp.minimum(index, num_environments - 1)])
    current = jax.tree.map(
      lambda x, y: x.at[index].set(y if y.dtype == x.dtype else y.astype(x.dtype), mode="drop"),
      current,
      fresh,
    )
    return needs_reset.at[index].set(False, mode="drop"), current

  _, result = jax.lax.while_loop(some_need_reset, reset_chunk, (state.needs_reset, stepped))
  return result
