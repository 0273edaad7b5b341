"""The learner: a batch of unrolls, one update sharded over all processes, new parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import group, learner, sharding, types

AXIS = "learners"
P = jax.sharding.PartitionSpec


class SebulbaState(NamedTuple):
  """What a run has to remember; the environments begin anew when it is resumed.

  Attributes:
    learner: the same on every learner device.
    key: of the run, constant: actors and updates draw their own from it.
  """

  learner: learner.LearnerState
  key: types.Key


class ShardedLearner:
  """The core's update over the learner devices."""

  def __init__(
    self,
    agent: agent_lib.Agent,
    config: config_lib.LearnerConfig,
    devices: Sequence[jax.Device],
    num_updates: int,
    unrolls_per_update: int,
    unroll: types.Trajectory,
  ):
    """Compiles nothing yet.

    Args:
      agent: the agent.
      config: of the learner.
      devices: that learn.
      num_updates: of the whole run, for a schedule.
      unrolls_per_update: in a batch.
      unroll: shapes of the batch of one device, `[T+1, B, ...]`.
    """
    self.mesh = group.make_mesh(devices, AXIS)
    self.replicated = jax.sharding.NamedSharding(self.mesh, P())
    self._learner = learner.make_learner(
      agent, config, num_updates, axis_name=AXIS, unroll=unroll, num_devices=len(devices)
    )
    self.replay_bytes = self._learner.replay_bytes
    learner.check_memory(self.replay_bytes, devices)
    specs = learner.state_specs(AXIS)
    replicated: Any = P()
    self._shardings = sharding.on_mesh(self.mesh, SebulbaState(specs, replicated))
    rest: Any = specs._replace(params=None)
    time_major: Any = P(None, AXIS)
    trajectory: Any = types.Trajectory(time_major, time_major, P(AXIS))
    joined: Any = trajectory if unrolls_per_update > 1 else ()
    self._update = jax.jit(
      jax.shard_map(
        self._body,
        mesh=self.mesh,
        in_specs=(P(), rest, P(), P(), joined, [trajectory] * unrolls_per_update),
        out_specs=(P(), rest, P(), joined),
        # See `learner`: the gradient of replicated parameters must stay local.
        check_vma=False,
      ),
      # Not the parameters: actors may still act with them.
      donate_argnums=(1, 2, 4),
    )
    self._compiled: Any = None
    self._metrics: Any = None
    self._no_sums: Callable[[], Any]
    # Where several unrolls are put side by side, update after update: fresh memory would cost a CPU
    # more than the copies.
    self._joined: Any = None
    self._joined_shardings = sharding.on_mesh(self.mesh, joined)
    self._new_joined: Callable[[], Any]

  def init(self, seed: int) -> SebulbaState:
    """Returns the state at the beginning of a run, on every learner device."""
    return jax.jit(self._init, out_shardings=self._shardings)(np.uint32(seed))

  def abstract_state(self) -> SebulbaState:
    """Returns shapes, dtypes and shardings of the state, for a checkpoint to be restored onto."""
    shapes = jax.eval_shape(self._init, jnp.zeros((), jnp.uint32))
    state: SebulbaState = sharding.abstract(shapes, self._shardings)
    return state

  def actor_keys(self, state: SebulbaState, num_actors: int) -> types.Key:
    """Returns the keys of this process's actors, `[num_actors]`."""
    first, end = group.rank() * num_actors, (group.rank() + 1) * num_actors
    keys: types.Key = jax.random.split(state.key.addressable_data(0), group.size() * num_actors)
    return keys[first:end]

  def batch(self, unrolls: Sequence[Sequence[types.Trajectory]]) -> list[types.Trajectory]:
    """Returns unrolls, each given by one shard a learner device of this process, as arrays over all."""
    if self.mesh.size == 1:
      return [shards[0] for shards in unrolls]
    return [types.map_batch(self._join, *shards) for shards in unrolls]

  def update(
    self, state: SebulbaState, sums: types.Metrics | None, trajectories: list[types.Trajectory]
  ) -> tuple[SebulbaState, types.Metrics]:
    """Learns from a batch.

    Args:
      state: all of it but the parameters is donated.
      sums: of the metrics so far, donated; None begins anew.
      trajectories: `[T+1, B, ...]` each, from `batch`; learnt from side by side, as one batch.

    Returns:
      The new state, and the sums of the metrics with those of this update added.
    """
    self.compile(state, trajectories)
    params, rest = state.learner.params, state.learner._replace(params=None)
    if sums is None:
      sums = self._no_sums()
    joined, self._joined = self._joined, None
    if joined is None:
      joined = self._new_joined()
    params, rest, sums, self._joined = self._compiled(
      params, rest, sums, state.key, joined, trajectories
    )
    return SebulbaState(rest._replace(params=params), state.key), sums

  def compile(self, state: SebulbaState, trajectories: list[types.Trajectory]) -> None:
    """Compiles the update ahead of the first call; does nothing the second time."""
    if self._compiled is not None:
      return
    params, rest = state.learner.params, state.learner._replace(params=None)
    joined = () if len(trajectories) == 1 else jax.eval_shape(_concatenated, trajectories)
    joined = sharding.abstract(joined, self._joined_shardings)
    self._new_joined = jax.jit(
      lambda: types.zeros_like(joined), out_shardings=self._joined_shardings
    )
    args = params, rest, None, state.key, joined, trajectories
    self._metrics = jax.eval_shape(self._update, *args)[2]
    sums = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), self._metrics
    )
    args = params, rest, sums, state.key, joined, trajectories
    self._compiled = self._update.lower(*args).compile()
    self._no_sums = jax.jit(lambda: types.zeros_like(self._metrics), out_shardings=self.replicated)

  def _init(self, seed: types.Array) -> SebulbaState:
    # The middle key is that of Anakin's environments; here they have seeds.
    learner_key, _, key = jax.random.split(jax.random.key(seed), 3)
    return SebulbaState(learner=self._learner.init(learner_key), key=key)

  def _body(
    self,
    params: types.Params,
    rest: learner.LearnerState,
    sums: types.Metrics | None,
    key: types.Key,
    joined: types.Trajectory | tuple[()],
    trajectories: list[types.Trajectory],
  ) -> tuple[types.Params, learner.LearnerState, types.Metrics, types.Trajectory | tuple[()]]:
    """One update of one device."""
    device_key = jax.random.split(key, self.mesh.size)[jax.lax.axis_index(AXIS)]
    _, learn_key = learner.update_keys(device_key, rest.num_updates)
    if joined:
      joined = _side_by_side(joined, trajectories)
    state, metrics = self._learner.update(
      rest._replace(params=params), learn_key, joined or trajectories[0]
    )
    if sums is not None:
      metrics = jax.tree.map(jnp.add, sums, metrics)
    return state.params, state._replace(params=None), metrics, joined

  def _join(self, axis: int, *shards: jax.Array) -> jax.Array:
    """Returns arrays of one device of this process each as one array over all, along `axis`."""
    along = jax.sharding.NamedSharding(self.mesh, P(*[None] * axis, AXIS))
    shape = list(shards[0].shape)
    shape[axis] *= self.mesh.size
    return jax.make_array_from_single_device_arrays(tuple(shape), along, list(shards))


def _concatenated(trajectories: list[types.Trajectory]) -> types.Trajectory:
  """Returns trajectories of B environments each as one of all their environments."""
  return types.map_batch(lambda axis, *xs: jnp.concatenate(xs, axis), *trajectories)


def _side_by_side(
  joined: types.Trajectory, trajectories: list[types.Trajectory]
) -> types.Trajectory:
  """Is `_concatenated` in the memory of `joined`."""

  def write(axis: int, whole: types.Array, *parts: types.Array) -> types.Array:
    for i, part in enumerate(parts):
      start = i * part.shape[axis]
      whole = jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)
    return whole

  return types.map_batch(write, joined, *trajectories)
