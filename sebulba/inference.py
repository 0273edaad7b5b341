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
  """A trajectory being filled: few arrays, for each one costs every step.

  Attributes:
    numbers: `[T+1, 3, B]` float32: step types, rewards, discounts.
    observation: `[T+1, B, ...]`.
    actor_outputs: `[T, B, ...]`.
  """

  numbers: types.Array
  observation: types.Observation
  actor_outputs: types.ActorOutput


class Upload(NamedTuple):
  """A time step on its way to the device.

  Attributes:
    numbers: `[3, B]` float32: step type, reward, discount.
    observation: `[B, ...]`.
  """

  numbers: Any
  observation: types.Observation


class Programs(NamedTuple):
  """Compiled when first called, on the device where their arguments are.

  Attributes:
    unroll_keys: (key of the actor, number of the unroll) -> keys of its steps, `[T]`.
    new_storage: () -> Storage of zeros.
    new_tracker: () -> EpisodeTracker at the beginning of episodes.
    act: (params, keys, storage, state, t, upload) -> (action, storage, state); `storage` and `state`, the
      agent's, are donated.
    finish: (storage, tracker, state, upload) -> (storage, timesteps, tracker, totals, state, upload) writes
      the last time step; donates storage and tracker. `timesteps` lack the observations, which are
      those of `storage`; `totals`, `[3]` or of N tasks `[3, N]`, are of `EpisodeTotals`; `state` is a copy of
      the agent's, and `upload` is on the device: with them the next unroll begins.
    new_state: () -> state of the agent at the beginning of episodes.
    split: trajectory -> one trajectory a learner device.
  """

  unroll_keys: Callable[..., types.Key]
  new_storage: Callable[[], Storage]
  new_tracker: Callable[[], episodes.EpisodeTracker]
  act: Callable[..., tuple[types.Array, Storage, types.State]]
  finish: Callable[..., Any]
  new_state: Callable[[], types.State]
  split: Callable[[types.Trajectory], tuple[types.Trajectory, ...]]


def make_programs(
  agent: agent_lib.Agent,
  spec: types.EnvironmentSpec,
  batch_size: int,
  length: int,
  num_learners: int,
  explore: bool = True,
) -> Programs:
  """Builds the programs.

  Args:
    agent: the agent.
    spec: of the environment.
    batch_size: B, environments of one actor thread.
    length: T.
    num_learners: devices that a trajectory is split over.
    explore: False acts greedily.
  """

  def unroll_keys(key: types.Key, index: types.Array) -> types.Key:
    # The law of Anakin's scan over the steps of an unroll.
    return jax.random.split(learner.update_keys(key, index)[0], length)

  def new_storage() -> Storage:
    output, _ = agent_lib.output_shapes(agent, spec, batch_size)
    return Storage(
      numbers=jnp.zeros((length + 1, 3, batch_size)),
      observation=types.zeros_like(spec.observation, (length + 1, batch_size)),
      actor_outputs=types.zeros_like(output, (length,)),
    )

  def act(
    params: types.Params,
    keys: types.Key,
    storage: Storage,
    state: types.State,
    t: types.Array,
    upload: Upload,
  ) -> tuple[types.Array, Storage, types.State]:
    output, state = agent.act(params, keys[t], unpack(upload), state, explore)
    storage = Storage(
      numbers=write(storage.numbers, upload.numbers, t),
      observation=write(storage.observation, upload.observation, t),
      actor_outputs=write(storage.actor_outputs, output, t),
    )
    return output.action, storage, state

  def finish(
    storage: Storage, tracker: episodes.EpisodeTracker, state: types.State, upload: Upload
  ) -> Any:
    storage = storage._replace(
      numbers=write(storage.numbers, upload.numbers, length),
      observation=write(storage.observation, upload.observation, length),
    )
    timesteps = unpack(storage)._replace(observation=())
    # The time step that an unroll begins with was tracked as the last of the one before.
    arrived = jax.tree.map(lambda x: x[1:], timesteps)
    tracker, _ = jax.lax.scan(lambda c, x: (episodes.track(c, x), None), tracker, arrived)
    tracker, totals = episodes.drain(tracker, len(spec.tasks))
    state, upload = jax.tree.map(jnp.copy, (state, upload))
    return storage, timesteps, tracker, stack(totals), state, upload

  def split(trajectory: types.Trajectory) -> tuple[types.Trajectory, ...]:
    size = batch_size // num_learners

    def share(index: int, axis: int, x: types.Array) -> types.Array:
      return jax.lax.slice_in_dim(x, index * size, (index + 1) * size, axis=axis)

    shares = (functools.partial(share, i) for i in range(num_learners))
    return tuple(types.map_batch(one, trajectory) for one in shares)

  return Programs(
    unroll_keys=jax.jit(unroll_keys),
    new_storage=jax.jit(new_storage),
    new_tracker=jax.jit(lambda: episodes.make_tracker(batch_size)),
    act=jax.jit(act, donate_argnums=(2, 3)),
    finish=jax.jit(finish, donate_argnums=(0, 1)),
    new_state=jax.jit(lambda: agent.initial_state(batch_size)),
    split=jax.jit(split),
  )


def stack(totals: episodes.EpisodeTotals) -> types.Array:
  """Returns `[3]`, or of N tasks `[3, N]`, float32: one array to be fetched, not three."""
  return jnp.stack([jnp.asarray(x, jnp.float32) for x in totals])


def pack(timestep: types.TimeStep) -> Upload:
  """Returns a time step of NumPy arrays ready to be uploaded."""
  numbers = np.empty((3, len(timestep.reward)), np.float32)
  numbers[0], numbers[1], numbers[2] = timestep.step_type, timestep.reward, timestep.discount
  return Upload(numbers, timestep.observation)


def unpack(packed: Upload | Storage) -> types.TimeStep:
  """Returns the time step `[B, ...]` of an upload, or the time steps `[T+1, B, ...]` of a storage."""
  numbers = packed.numbers  # [..., 3, B]
  return types.TimeStep(
    step_type=numbers[..., 0, :].astype(jnp.int8),
    reward=numbers[..., 1, :],
    discount=numbers[..., 2, :],
    observation=packed.observation,
  )


def write(arrays: Any, values: Any, t: Any) -> Any:
  """Returns arrays `[T, ...]` with `values`, `[...]`, at time t."""
  put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=t, axis=0)
  return jax.tree.map(lambda array, value: put(array, value.astype(array.dtype)), arrays, values)
