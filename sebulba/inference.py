"""The programs of an actor device: act and write into the trajectory that is kept there.

An observation crosses to the device once. `act` writes it into a preallocated, donated trajectory, so
that nothing is gathered or stacked on the host.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer import agent as agent_lib
from podracer import episodes, learner, types


class Storage(NamedTuple):
  """A trajectory being filled.

  Attributes:
    timesteps: `[T+1, B, ...]`.
    actor_outputs: `[T, B, ...]`.
  """

  timesteps: types.TimeStep
  actor_outputs: types.ActorOutput


class ActingState(NamedTuple):
  """What acting carries from step to step, leaves `[B, ...]`."""

  agent: types.State
  episodes: episodes.EpisodeTracker


class Upload(NamedTuple):
  """A time step on its way to the device: one small array for its numbers, not one for each.

  Attributes:
    numbers: `[3, B]` float32: step type, reward, discount.
    observation: `[B, ...]`.
  """

  numbers: Any
  observation: types.Observation


class Programs(NamedTuple):
  """Compiled when first called, on the device where their arguments are.

  Attributes:
    unroll_key: (key of the actor, number of the unroll) -> key of the unroll.
    new_storage: () -> Storage of zeros.
    new_state: () -> ActingState at the beginning of episodes.
    act: (params, key, storage, state, t, upload) -> (action, storage, state); `key` is that of the
      unroll, `storage` and `state` are donated.
    finish: (storage, state, upload) -> (storage, state, totals, initial_state) writes the last time
      step; donates. `initial_state` is that of the agent for the unroll that follows.
    split: trajectory -> one trajectory a learner device.
  """

  unroll_key: Callable[..., types.Key]
  new_storage: Callable[[], Storage]
  new_state: Callable[[], ActingState]
  act: Callable[..., tuple[types.Array, Storage, ActingState]]
  finish: Callable[..., tuple[Storage, ActingState, episodes.EpisodeTotals, types.State]]
  split: Callable[[types.Trajectory], tuple[types.Trajectory, ...]]


def make_programs(
  agent: agent_lib.Agent,
  spec: types.EnvironmentSpec,
  batch_size: int,
  length: int,
  num_learners: int,
) -> Programs:
  """Builds the programs.

  Args:
    agent: the agent.
    spec: of the environment.
    batch_size: B, environments of one actor thread.
    length: T.
    num_learners: devices that a trajectory is split over.
  """

  def new_state() -> ActingState:
    return ActingState(agent.initial_state(batch_size), episodes.make_tracker(batch_size))

  def new_storage() -> Storage:
    timestep = types.TimeStep(
      step_type=jnp.zeros((batch_size,), jnp.int8),
      reward=jnp.zeros((batch_size,)),
      discount=jnp.zeros((batch_size,)),
      observation=types.zeros_like_spec(spec.observation, (batch_size,)),
    )
    output, _ = jax.eval_shape(
      lambda key: agent.act(agent.init(key), key, timestep, agent.initial_state(batch_size), True),
      jax.random.key(0),
    )
    return Storage(
      timesteps=jax.tree.map(lambda x: jnp.zeros((length + 1, *x.shape), x.dtype), timestep),
      actor_outputs=jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), output),
    )

  def act(
    params: types.Params,
    key: types.Key,
    storage: Storage,
    state: ActingState,
    t: types.Array,
    upload: Upload,
  ) -> tuple[types.Array, Storage, ActingState]:
    timestep = unpack(upload)
    # All keys of the unroll are drawn and one is taken: the law of Anakin's scan over them.
    act_key = jax.random.split(key, length)[t]
    output, agent_state = agent.act(params, act_key, timestep, state.agent, True)
    storage = Storage(
      timesteps=write(storage.timesteps, timestep, t),
      actor_outputs=write(storage.actor_outputs, output, t),
    )
    # The time step that an unroll begins with was tracked as the last of the one before.
    tracked = episodes.track(state.episodes, timestep)
    tracker = jax.tree.map(lambda new, old: jnp.where(t > 0, new, old), tracked, state.episodes)
    return output.action, storage, ActingState(agent_state, tracker)

  def finish(
    storage: Storage, state: ActingState, upload: Upload
  ) -> tuple[Storage, ActingState, episodes.EpisodeTotals, types.State]:
    timestep = unpack(upload)
    tracker, totals = episodes.drain(episodes.track(state.episodes, timestep))
    storage = storage._replace(timesteps=write(storage.timesteps, timestep, length))
    initial_state = jax.tree.map(jnp.copy, state.agent)
    return storage, ActingState(state.agent, tracker), totals, initial_state

  def split(trajectory: types.Trajectory) -> tuple[types.Trajectory, ...]:
    return tuple(_columns(trajectory, i, batch_size // num_learners) for i in range(num_learners))

  return Programs(
    unroll_key=jax.jit(lambda key, index: learner.update_keys(key, index)[0]),
    new_storage=jax.jit(new_storage),
    new_state=jax.jit(new_state),
    act=jax.jit(act, donate_argnums=(2, 3)),
    finish=jax.jit(finish, donate_argnums=(0, 1)),
    split=jax.jit(split),
  )


def pack(timestep: types.TimeStep) -> Upload:
  """Returns a time step of NumPy arrays ready to be uploaded."""
  numbers = np.empty((3, len(timestep.reward)), np.float32)
  numbers[0], numbers[1], numbers[2] = timestep.step_type, timestep.reward, timestep.discount
  return Upload(numbers, timestep.observation)


def unpack(upload: Upload) -> types.TimeStep:
  """Returns the time step, on the device."""
  return types.TimeStep(
    step_type=upload.numbers[0].astype(jnp.int8),
    reward=upload.numbers[1],
    discount=upload.numbers[2],
    observation=upload.observation,
  )


def write(arrays: Any, values: Any, t: Any) -> Any:
  """Returns arrays `[T, ...]` with `values`, `[...]`, at time t."""
  put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=t, axis=0)
  return jax.tree.map(lambda array, value: put(array, value.astype(array.dtype)), arrays, values)


def _columns(trajectory: types.Trajectory, index: int, size: int) -> types.Trajectory:
  """Returns the `index`-th group of `size` environments of a trajectory."""

  def take(axis: int) -> Callable[[types.Array], types.Array]:
    return lambda x: jax.lax.slice_in_dim(x, index * size, (index + 1) * size, axis=axis)

  return types.Trajectory(
    timesteps=jax.tree.map(take(1), trajectory.timesteps),
    actor_outputs=jax.tree.map(take(1), trajectory.actor_outputs),
    initial_state=jax.tree.map(take(0), trajectory.initial_state),
  )
