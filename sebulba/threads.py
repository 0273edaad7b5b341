"""The threads of one host's run: who they are, what connects them, how they start and end."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from podracer import config as config_lib
from podracer import host_environment, types

from . import (
  actor,
  async_collector,
  channel,
  clock,
  config,
  inference,
  parameters,
  watchdog,
)
from . import stop as stop_lib
from . import topology as topology_lib

JOIN_SECONDS = 5.0


class Threads:
  """The actors of a run, what connects them with the learner, and the watchdog."""

  def __init__(
    self,
    topology: topology_lib.Topology,
    machine_config: config.SebulbaConfig,
    factory: host_environment.HostFactory,
    programs: inference.Programs,
    async_programs: async_collector.Programs | None,
    whole_episodes: bool = False,
  ):
    """Starts nothing.

    Args:
      topology: which thread is on which device.
      machine_config: of the machine.
      factory: makes the environments.
      programs: of the actor devices.
      async_programs: where environments are asynchronous, else None.
      whole_episodes: see `host_environment.HostOptions`.
    """
    self._topology, self._config, self._factory = topology, machine_config, factory
    self._programs, self._async_programs = programs, async_programs
    self._whole_episodes = whole_episodes
    self._per_update = topology.unrolls_per_update
    self._lag = machine_config.fixed_lag
    self._first_update = 0
    self.stop = stop_lib.Stop()
    self.clock = clock.StageClock("the learner")
    self.channel: channel.Channel[actor.Unroll] = channel.Channel(
      len(topology.actors), machine_config.queue_size, self.stop
    )
    self.store = parameters.ParameterStore(topology.actor_devices, (self._lag or 0) + 1, self.stop)
    self.actors: list[actor.Actor] = []

  def start(
    self, params: types.Params, keys: types.Key, first_update: int, seeds: Sequence[int]
  ) -> None:
    """Publishes the first parameters and starts all threads.

    Args:
      params: to act with first.
      keys: `[num_actors]`, of the actors.
      first_update: updates that made the parameters.
      seeds: of the environments of all actors.
    """
    self._first_update = first_update
    self.store.publish(first_update, params)
    self.actors = [self._make_actor(i, keys[i], seeds) for i in range(len(self._topology.actors))]
    for thread in self.actors:
      thread.start()
    clocks = [self.clock, *(thread.clock for thread in self.actors)]
    watchdog.Watchdog(clocks, self._config.stall_timeout_seconds, self.stop).start()

  def take_batch(self, update: int) -> list[actor.Unroll]:
    """Waits for the unrolls of an update, and returns them."""
    self.clock.enter(clock.UNROLLS)
    number = update * self._per_update
    in_turn = self._lag is not None
    return [
      self.channel.take((number + i) % len(self.actors) if in_turn else None)
      for i in range(self._per_update)
    ]

  def close(self) -> None:
    """Ends all threads; says so where one doesn't end."""
    self.clock.enter(clock.IDLE)
    self.stop.request()
    deadline = time.monotonic() + JOIN_SECONDS
    for thread in self.actors:
      if not thread.join(max(0.0, deadline - time.monotonic())):
        logging.error(
          "%s did not end: it is in %s (%s)",
          thread.clock.owner,
          thread.clock.stage,
          thread.clock.where,
        )

  def _make_actor(self, index: int, key: types.Key, seeds: Sequence[int]) -> actor.Actor:
    topology, machine_config = self._topology, self._config
    device = topology.actors[index]
    size = topology.environments_per_actor
    share = range(index * size, (index + 1) * size)
    name = f"{self._factory.spec.name} (environments {share[0]} .. {share[-1]})"
    watch = clock.StageClock(f"actor {index}", name)
    refresh = None
    if machine_config.refresh == "step":
      refresh = functools.partial(self.store.newest, device)
    options = host_environment.HostOptions(
      num_threads=machine_config.environment_threads
      or default_environment_threads(len(topology.actors)),
      timeout_seconds=machine_config.stall_timeout_seconds,
      whole_episodes=self._whole_episodes,
    )
    if self._async_programs is not None:
      options = options._replace(batch_size=machine_config.async_batch_size or size // 2)
    kind: type[actor.Collector] = actor.SyncCollector
    programs: Any = self._programs
    if self._async_programs is not None:
      kind, programs = async_collector.AsyncCollector, self._async_programs
    make = functools.partial(self._factory.make, [seeds[i] for i in share], options)
    length = machine_config.unroll_length
    collector = kind(programs, device, make, length, watch, self.stop, refresh)
    number = self._first_update * self._per_update
    return actor.Actor(
      index,
      collector,
      device,
      topology.learners,
      self._programs,
      key=jax.device_put(key, device),
      # Unroll u of actor i is the (u * actors + i)-th of the run: the first one not learnt from yet.
      first_unroll=-(-(number - index) // len(topology.actors)),
      take_parameters=lambda unroll: self._parameters(index, unroll, device),
      channel=self.channel,
      clock=watch,
      stop=self.stop,
    )

  def _parameters(self, index: int, unroll: int, device: jax.Device) -> parameters.Version:
    """Waits for the parameters of an unroll, by the lag mode."""
    if self._lag is None:
      return self.store.newest(device)
    update = (unroll * len(self._topology.actors) + index) // self._per_update
    return self.store.exactly(max(self._first_update, update - self._lag), device)


def default_environment_threads(num_actors: int) -> int:
  """Returns how many threads step the environments of one actor thread.

  Twice its share of the cores: while it acts, the environments of the others can have them.
  """
  cores = config_lib.num_cores()
  return max(1, min(cores, 2 * cores // num_actors))
