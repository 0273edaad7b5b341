"""Acting without learning: the actor threads of a run, with parameters that don't change."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from podracer import agent as agent_lib
from podracer import host_environment, types

from . import config, inference, threads
from . import stop as stop_lib
from . import topology as topology_lib


def num_slots(machine_config: config.SebulbaConfig, wanted: int, num_devices: int) -> int:
  """Returns how many environments to play: `wanted`, or the next number that threads can share."""
  acting, _ = machine_config.split(num_devices)
  num_threads = len(acting) * machine_config.threads_per_actor_device
  return -(-wanted // num_threads) * num_threads


def unrolls(
  agent: agent_lib.Agent,
  environment: Any,
  params: types.Params,
  machine_config: config.SebulbaConfig,
  *,
  seeds: Sequence[int],
  key: types.Key,
  explore: bool = True,
  devices: Sequence[jax.Device] | None = None,
) -> Iterator[tuple[int, types.Trajectory]]:
  """Acts for ever in the environments of the host, ended only at the true ends of their episodes.

  Args:
    agent: the agent.
    environment: a `HostFactory`, or a JAX-native `Environment` to be driven as one.
    params: of the agent.
    machine_config: whose threads, devices and unrolls are taken.
    seeds: of the environments, one each.
    key: of everything random in acting.
    explore: False acts greedily.
    devices: of this host; all by default.

  Yields:
    The number of the first environment of an unroll, and the unroll, `[T+1, B, ...]` on the host; its
    arrays are written again when the next one is asked for. The unrolls of an environment follow one on
    the other.

  Raises:
    config.InputError: if threads and environments can't be shared out.
    Exception: whatever an actor thread raised.
  """
  devices = jax.local_devices() if devices is None else devices
  factory = host_environment.as_factory(environment)
  machine_config = dataclasses.replace(
    machine_config,
    num_environments=len(seeds),
    lag=config.LATEST,
    environment_mode="sync",
    async_batch_size=0,
    # All unrolls come together on one of the devices that act.
    learner_devices=machine_config.split(len(devices))[0][:1],
    unrolls_per_update=0,
  )
  topology = topology_lib.make_topology(machine_config, devices)
  programs = inference.make_programs(
    agent,
    factory.spec,
    topology.environments_per_actor,
    machine_config.unroll_length,
    num_learners=1,
    explore=explore,
  )
  running = threads.Threads(topology, machine_config, factory, programs, None, whole_episodes=True)
  try:
    running.start(params, jax.random.split(key, len(topology.actors)), 0, seeds)
    while True:
      unroll = running.channel.take()
      (shard,) = unroll.shards
      yield unroll.actor * topology.environments_per_actor, types.to_numpy(shard)
      unroll.release()
  except stop_lib.Stopped:
    assert running.stop.error is not None  # Nobody asks for an end without one.
    raise running.stop.error from None
  finally:
    running.close()
