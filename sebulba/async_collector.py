"""Asynchronous environments: whichever are ready first are acted for, so that none waits for a slow one.

Every environment fills a column of its own. The first B columns that are full make a trajectory; an
environment that finished its column goes on in a free one, and may be in a trajectory twice.
"""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer import agent as agent_lib
from podracer import episodes, host_environment, types

from . import actor, inference, parameters
from . import clock as clock_lib


class ActingState(NamedTuple):
  """What acting carries from step to step, leaves `[B, ...]`."""

  agent: types.State
  episodes: episodes.EpisodeTracker


class Columns(NamedTuple):
  """S columns, of which B at most are being filled and B - 1 at most are full.

  Attributes:
    storage: as in `inference`, with S in the place of B.
    initial_state: `[S, ...]` of the agent.
  """

  storage: inference.Storage
  initial_state: types.State


class Places(NamedTuple):
  """Where the time steps of the M environments that are acted for belong; all `[M]` int32.

  Attributes:
    environment: index in the batch.
    column: that is being filled.
    t: time in it.
    full: the column that this time step also ends, or S where it ends none.
  """

  environment: Any
  column: Any
  t: Any
  full: Any


class Programs(NamedTuple):
  """Compiled when first called.

  Attributes:
    new: () -> (Columns, ActingState).
    act: (params, keys, count, columns, state, places, upload) -> (action, columns, state); donates
      columns and state.
    gather: (columns, state, index `[B]`) -> (trajectory, totals, state); donates the state.
  """

  new: Callable[[], tuple[Columns, ActingState]]
  act: Callable[..., tuple[types.Array, Columns, ActingState]]
  gather: Callable[..., tuple[types.Trajectory, types.Array, ActingState]]


def make_programs(
  agent: agent_lib.Agent, spec: types.EnvironmentSpec, batch_size: int, length: int
) -> Programs:
  """Builds the programs; the arguments are as in `inference.make_programs`."""
  num_columns = 2 * batch_size
  wide = inference.make_programs(agent, spec, num_columns, length, 1)

  def new() -> tuple[Columns, ActingState]:
    state = ActingState(agent.initial_state(batch_size), episodes.make_tracker(batch_size))
    return Columns(wide.new_storage(), agent.initial_state(num_columns)), state

  def act(
    params: types.Params,
    keys: types.Key,
    count: types.Array,
    columns: Columns,
    state: ActingState,
    places: Places,
    upload: inference.Upload,
  ) -> tuple[types.Array, Columns, ActingState]:
    timestep = inference.unpack(upload)
    mine = jax.tree.map(lambda x: x[places.environment], state)
    output, agent_state = agent.act(
      params, jax.random.fold_in(keys[0], count), timestep, mine.agent, True
    )
    storage = columns.storage
    numbers, observation = storage.numbers, storage.observation
    for t, column in ((places.t, places.column), (length, places.full)):
      numbers = numbers.at[t, :, column].set(upload.numbers.T, mode="drop")
      observation = _put(observation, upload.observation, t, column)
    outputs = _put(storage.actor_outputs, output, places.t, places.column)
    storage = inference.Storage(numbers, observation, outputs)
    # The state with which a column begins; an index past the end drops the others.
    begun = jnp.where(places.t == 0, places.column, num_columns)
    initial_state = jax.tree.map(
      lambda x, y: x.at[begun].set(y, mode="drop"), columns.initial_state, mine.agent
    )
    new = ActingState(agent_state, episodes.track(mine.episodes, timestep))
    state = jax.tree.map(lambda x, y: x.at[places.environment].set(y), state, new)
    return output.action, Columns(storage, initial_state), state

  def gather(
    columns: Columns, state: ActingState, index: types.Array
  ) -> tuple[types.Trajectory, types.Array, ActingState]:
    storage = columns.storage
    every = types.Trajectory(
      inference.unpack(storage), storage.actor_outputs, columns.initial_state
    )
    trajectory = types.map_batch(lambda axis, x: jnp.take(x, index, axis=axis), every)
    tracker, totals = episodes.drain(state.episodes)
    return trajectory, inference.stack(totals), state._replace(episodes=tracker)

  return Programs(
    new=jax.jit(new),
    act=jax.jit(act, donate_argnums=(3, 4)),
    gather=jax.jit(gather, donate_argnums=1),
  )


def _put(arrays: Any, values: Any, t: Any, column: Any) -> Any:
  """Returns arrays `[T, S, ...]` with `values`, `[M, ...]`, at times and columns; drops column S."""
  return jax.tree.map(
    lambda array, value: array.at[t, column].set(value.astype(array.dtype), mode="drop"),
    arrays,
    values,
  )


class AsyncCollector(actor.Collector):
  """Whichever M environments are ready: receive, act and write into their columns, send."""

  def start(self) -> None:
    """See Collector."""
    self._clock.enter(clock_lib.ENVIRONMENT)
    self._environment = self._make_environment()
    size = self._environment.num_environments
    self._columns, self._state = jax.device_put(self._programs.new(), self._device)
    self._count = 0
    self._column = np.arange(size, dtype=np.int32)
    self._t = np.zeros((size,), np.int32)
    self._free = collections.deque(range(size, 2 * size))
    self._full: collections.deque[int] = collections.deque()
    self._version = np.zeros((2 * size,), np.int64)
    self._num_steps = np.zeros((2 * size,), np.int64)
    self._environment.start()

  def unroll(self, keys: types.Key, first: parameters.Version) -> actor.Unroll:
    """See Collector."""
    version, size = first, self._environment.num_environments
    while len(self._full) < size:
      self._stop.check()
      self._clock.enter(clock_lib.ENVIRONMENT)
      timestep, environment = self._environment.receive()
      host_environment.check_timestep(self._environment.spec, timestep, len(environment))
      if self._refresh is not None:
        self._clock.enter(clock_lib.PARAMETERS)
        version = self._refresh()
      self._clock.enter(clock_lib.INFERENCE if self._count else clock_lib.COMPILE)
      places = self._places(environment, timestep.step_type, version.number)
      action, self._columns, self._state = self._programs.act(
        version.params,
        keys,
        np.int32(self._count),
        self._columns,
        self._state,
        places,
        inference.pack(timestep),
      )
      self._count = self._count + 1 if self._count < 2**31 - 1 else 1
      host_action = np.asarray(action)
      self._clock.enter(clock_lib.ENVIRONMENT)
      host_environment.check_action(self._environment.spec, host_action, len(environment))
      self._environment.send(host_action, environment)
    self._clock.enter(clock_lib.TRANSFER)
    index = np.asarray([self._full.popleft() for _ in range(size)], np.int32)
    trajectory, totals, self._state = self._programs.gather(self._columns, self._state, index)
    # Before its columns are written again.
    jax.block_until_ready(trajectory)
    self._free.extend(int(column) for column in index)
    return actor.Unroll(
      shards=(trajectory,),
      version=int(self._version[index].min()),
      num_steps=int(self._num_steps[index].sum()),
      episodes=totals,
      release=actor.keep_nothing,
    )

  def _places(self, environment: np.ndarray, step_type: np.ndarray, version: int) -> Places:
    """Returns where time steps belong, and moves on: full columns are noted, new ones begun."""
    num_columns = len(self._version)
    column, t = self._column[environment], self._t[environment]
    ends = t == self._length
    full = np.where(ends, column, num_columns).astype(np.int32)
    if ends.any():
      self._full.extend(int(c) for c in column[ends])
      column = column.copy()
      column[ends] = [self._free.popleft() for _ in range(int(ends.sum()))]
      t = np.where(ends, 0, t).astype(np.int32)
      self._column[environment] = column
    begins = t == 0
    self._version[column[begins]] = version
    self._num_steps[column[begins]] = 0
    # The transition that leaves a LAST time step is a reset.
    self._num_steps[column] += step_type != types.LAST
    self._t[environment] = t + 1
    return Places(environment.astype(np.int32), column, t, full)
