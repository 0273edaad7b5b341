"""One actor thread: a batch of environments, acted in on one device, unroll after unroll.

Hessel et al. (2021), section 3.2. Two or more threads share an actor device: while one steps its
environments, another has the device.
"""

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from podracer import host_environment, types

from . import channel as channel_lib
from . import clock as clock_lib
from . import inference, parameters
from . import stop as stop_lib


class Unroll(NamedTuple):
  """What an actor thread hands to the learner.

  Attributes:
    shards: one trajectory `[T+1, B / L, ...]` a learner device, on it.
    version: updates that made the oldest parameters it was acted with.
    num_steps: environment steps in it, resets not counted.
    episodes: `[3]`, or of N tasks `[3, N]`, EpisodeTotals of those that ended in it.
    release: the learner calls it when it has learnt, and then no longer uses the shards.
    actor: index of the actor thread.
  """

  shards: tuple[types.Trajectory, ...]
  version: int
  num_steps: int
  episodes: types.Array
  release: Callable[[], None]
  actor: int = 0


class Collector:
  """Makes unrolls; its kinds are the difference between synchronous and asynchronous environments."""

  def __init__(
    self,
    programs: Any,
    device: jax.Device,
    make_environment: Callable[[], Any],
    length: int,
    clock: clock_lib.StageClock,
    stop: stop_lib.Stop,
    refresh: Callable[[], parameters.Version] | None = None,
  ):
    """Starts nothing.

    Args:
      programs: of the device, those of the module of the kind.
      device: that acts.
      make_environment: makes the environments.
      length: T.
      clock: of the thread.
      stop: asked at each step.
      refresh: gives new parameters at each step, or None.
    """
    self._programs = programs
    self._device = device
    self._make_environment = make_environment
    self._length = length
    self._clock = clock
    self._stop = stop
    self._refresh = refresh
    self._environment: Any = None

  def start(self) -> None:
    """Makes and starts the environments."""
    raise NotImplementedError

  def unroll(self, keys: types.Key, first: parameters.Version) -> Unroll:
    """Acts until a trajectory of B environments and T steps is full; `keys` are `[T]`.

    Returns:
      The unroll with one shard, which is whole and still on the device that acts.
    """
    raise NotImplementedError

  def close(self) -> None:
    """Frees the environments."""
    if self._environment is not None:
      self._environment.close()


class SyncCollector(Collector):
  """T steps of: upload, act, download, step all environments."""

  def start(self) -> None:
    """See Collector."""
    self._free: collections.deque[inference.Storage] = collections.deque()
    self._times = [np.int32(t) for t in range(self._length)]
    self._is_compiled = False
    self._clock.enter(clock_lib.ENVIRONMENT)
    self._environment = self._make_environment()
    timestep = self._environment.reset()
    self._check(timestep)
    self._was_last = np.zeros((self._environment.num_environments,), bool)
    self._upload: inference.Upload = inference.pack(timestep)
    self._tracker = jax.device_put(self._programs.new_tracker(), self._device)
    # Two of them: one is donated from step to step, the other kept until the unroll is full.
    self._state, self._initial_state = (
      jax.device_put(self._programs.new_state(), self._device) for _ in range(2)
    )

  def unroll(self, keys: types.Key, first: parameters.Version) -> Unroll:
    """See Collector."""
    # Put where it is: a program compiles once for arrays that belong to a device.
    storage = (
      self._free.popleft()
      if self._free
      else jax.device_put(self._programs.new_storage(), self._device)
    )
    version, oldest, num_resets = first, first.number, 0
    for t in self._times:
      self._stop.check()
      if self._refresh is not None:
        self._clock.enter(clock_lib.PARAMETERS)
        version = self._refresh()
      self._clock.enter(clock_lib.INFERENCE if self._is_compiled else clock_lib.COMPILE)
      action, storage, self._state = self._programs.act(
        version.params, keys, storage, self._state, t, self._upload
      )
      host_action = np.asarray(action)
      self._is_compiled = True
      self._clock.enter(clock_lib.ENVIRONMENT)
      timestep = self._step(host_action)
      num_resets += int(np.count_nonzero(self._was_last))
      self._was_last = np.asarray(timestep.step_type == types.LAST)
      self._upload = inference.pack(timestep)
    self._clock.enter(clock_lib.TRANSFER)
    # The last time step is the first of the next unroll, too, and crosses to the device here for both.
    storage, timesteps, self._tracker, totals, next_state, self._upload = self._programs.finish(
      storage, self._tracker, self._state, self._upload
    )
    timesteps = timesteps._replace(observation=storage.observation)
    initial_state, self._initial_state = self._initial_state, next_state
    return Unroll(
      shards=(types.Trajectory(timesteps, storage.actor_outputs, initial_state),),
      version=oldest,
      num_steps=len(self._was_last) * self._length - num_resets,
      episodes=totals,
      release=lambda: self._free.append(storage),
    )

  def _step(self, action: np.ndarray) -> types.TimeStep:
    spec, size = self._environment.spec, self._environment.num_environments
    host_environment.check_action(spec, action, size)
    timestep: types.TimeStep = self._environment.step(action)
    self._check(timestep)
    return timestep

  def _check(self, timestep: types.TimeStep) -> None:
    environment = self._environment
    host_environment.check_timestep(environment.spec, timestep, environment.num_environments)


class Actor:
  """An actor thread."""

  def __init__(
    self,
    index: int,
    collector: Collector,
    device: jax.Device,
    learners: Sequence[jax.Device],
    programs: inference.Programs,
    *,
    key: types.Key,
    first_unroll: int,
    take_parameters: Callable[[int], parameters.Version],
    channel: channel_lib.Channel[Unroll],
    clock: clock_lib.StageClock,
    stop: stop_lib.Stop,
  ):
    """Starts nothing.

    Args:
      index: of the thread, its producer's number in the channel.
      collector: makes the unrolls.
      device: that acts.
      learners: devices that learn.
      programs: of the device.
      key: of everything random in acting; an unroll's own is drawn from it and the unroll's number.
      first_unroll: number of the first unroll.
      take_parameters: unroll's number -> the parameters to act with; waits for them.
      channel: where unrolls go.
      clock: of this thread.
      stop: the end of the run.
    """
    self.clock = clock
    self._index = index
    self._collector = collector
    self._device = device
    self._learners = tuple(learners)
    self._programs = programs
    self._key = key
    self._unroll = first_unroll
    self._take_parameters = take_parameters
    self._channel = channel
    self._stop = stop
    self._thread = threading.Thread(target=self.run, name=clock.owner, daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def join(self, timeout_seconds: float) -> bool:
    """Waits for the thread to end; returns False if it hasn't."""
    self._thread.join(timeout_seconds)
    return not self._thread.is_alive()

  def run(self) -> None:
    """The thread: unrolls until the run ends. What it raises ends the run."""
    try:
      with jax.default_device(self._device):
        self._collector.start()
        while True:
          self.step()
    except stop_lib.Stopped:
      pass
    except BaseException as error:
      self._stop.fail(error)
    finally:
      self.clock.enter(clock_lib.IDLE)
      try:
        self._collector.close()
      except Exception as error:
        self._stop.fail(error)

  def step(self) -> None:
    """Makes one unroll and hands it over."""
    self.clock.enter(clock_lib.PARAMETERS)
    version = self._take_parameters(self._unroll)
    keys = self._programs.unroll_keys(self._key, np.int32(self._unroll))
    unroll = self._collector.unroll(keys, version)._replace(actor=self._index)
    self.clock.enter(clock_lib.TRANSFER)
    unroll = self._place(unroll)
    self.clock.enter(clock_lib.QUEUE)
    self._channel.put(self._index, unroll)
    self._unroll += 1

  def _place(self, unroll: Unroll) -> Unroll:
    """Puts the shares of a whole unroll on the learner devices."""
    if self._learners == (self._device,):
      return unroll
    shards = unroll.shards
    if len(self._learners) > 1:
      shards = self._programs.split(*shards)
    # A copy even where a share stays: the original is to be written again.
    shards = tuple(
      jax.device_put(shard, learner, may_alias=False)
      for shard, learner in zip(shards, self._learners, strict=True)
    )
    jax.block_until_ready(shards)
    unroll.release()
    return unroll._replace(shards=shards, release=keep_nothing)


def keep_nothing() -> None:
  """Releases an unroll of which the actor uses no part again."""
