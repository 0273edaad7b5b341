"""Acting without learning: the unroll of the machine, by itself, on all devices."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from podracer import agent as agent_lib
from podracer import environment as environment_lib
from podracer import types

from . import config, rollout

AXIS = "devices"
P = jax.sharding.PartitionSpec


def num_slots(machine_config: config.AnakinConfig, wanted: int, num_devices: int) -> int:
  """Returns how many environments to play: `wanted`, or the next number that the devices can share."""
  del machine_config
  return -(-wanted // num_devices) * num_devices


def unrolls(
  agent: agent_lib.Agent,
  environment: environment_lib.Environment,
  params: types.Params,
  machine_config: config.AnakinConfig,
  *,
  seeds: Sequence[int],
  key: types.Key,
  explore: bool = True,
  devices: Sequence[jax.Device] | None = None,
) -> Iterator[tuple[int, types.Trajectory]]:
  """Acts for ever in environments of their own.

  Args:
    agent: the agent.
    environment: the environment.
    params: of the agent.
    machine_config: whose unroll length is taken.
    seeds: of the environments, one each; their course depends on it alone, and on the actions.
    key: of everything random in acting.
    explore: False acts greedily.
    devices: all by default; they get equal shares of the environments.

  Yields:
    0, the number of the first environment, and the unroll of all, `[T+1, B, ...]` on the host.
  """
  devices = jax.devices() if devices is None else devices
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
  time_major: Any = P(None, AXIS)
  sharded: Any = P(AXIS)

  def start(seeds: types.Array) -> rollout.ActorState:
    return rollout.initial_state(agent, environment, jax.vmap(jax.random.key)(seeds))

  def advance(
    params: types.Params, key: types.Key, number: types.Array, state: rollout.ActorState
  ) -> tuple[rollout.ActorState, types.Trajectory]:
    key = jax.random.fold_in(jax.random.fold_in(key, number), jax.lax.axis_index(AXIS))
    return rollout.unroll(
      agent, environment, params, key, state, machine_config.unroll_length, explore
    )

  trajectory_specs: Any = types.Trajectory(time_major, time_major, sharded)
  start_jit = jax.jit(
    jax.shard_map(start, mesh=mesh, in_specs=sharded, out_specs=sharded, check_vma=False)
  )
  advance_jit = jax.jit(
    jax.shard_map(
      advance,
      mesh=mesh,
      in_specs=(P(), P(), P(), sharded),
      out_specs=(sharded, trajectory_specs),
      check_vma=False,
    ),
    donate_argnums=3,
  )
  replicated = jax.sharding.NamedSharding(mesh, P())
  params, key = jax.device_put((params, key), replicated)
  state, trajectory = advance_jit(params, key, np.int32(0), start_jit(np.asarray(seeds, np.uint32)))
  number = 0
  while True:
    number += 1
    # The devices make the next unroll while the caller has this one.
    state, following = advance_jit(params, key, np.int32(number), state)
    yield 0, jax.device_get(trajectory)
    trajectory = following
