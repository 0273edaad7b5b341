"""A replay of whole unrolls on the device: uniform, or prioritised as by Schaul et al. (2016).

An item is the unroll of one environment, with the recurrent state it began with. Flashbax stores the
items and draws them; three things are done here in its stead, see the comments: new priorities, the
sums above them, and a draw that rounding led astray. Everything is pure, of one device, and may run
inside jit, scan, vmap and shard_map: each device draws from what its own environments did.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flashbax
import jax
import jax.numpy as jnp
from flashbax.buffers import sum_tree

from podracer import config as config_lib
from podracer import types

EPSILON = 1e-6
"""Added to errors, so that what was learnt perfectly is still drawn at times."""


class ReplayState(NamedTuple):
  """What a replay holds; arrays only.

  Attributes:
    unrolls: flashbax's buffer, `[B, U, ...]`: a ring of U unrolls for each environment.
    priorities: flashbax's sum tree over the B * U unrolls, of errors ** alpha; () where uniform.
  """

  unrolls: Any
  priorities: Any


class ReplaySample(NamedTuple):
  """S unrolls drawn with replacement, in random order.

  Attributes:
    trajectory: `[T+1, S, ...]`; its importance_weights are `[S]`, at most 1, or None where uniform.
    indices: `[S]` int32 for `set_priorities`; () where uniform.
  """

  trajectory: types.Trajectory
  indices: Any


class Replay(NamedTuple):
  """The replay of one device.

  Attributes:
    init: shapes `[T+1, B, ...]` (arrays or ShapeDtypeStructs) -> empty ReplayState.
    add: (state, trajectory `[T+1, B, ...]`) -> state; overwrites the oldest when full.
    can_sample: state -> bool, whether it holds `min_size` environment steps.
    sample: (state, key) -> ReplaySample; meaningless before anything was added.
    set_priorities: (state, indices `[S]`, errors `[S]` >= 0) -> state; of an unroll drawn twice the
      larger error counts, and one that is not finite changes nothing. Nothing at all where uniform.
  """

  init: Callable[[types.Trajectory], ReplayState]
  add: Callable[[ReplayState, types.Trajectory], ReplayState]
  can_sample: Callable[[ReplayState], types.Array]
  sample: Callable[[ReplayState, types.Key], ReplaySample]
  set_priorities: Callable[[ReplayState, Any, types.Array], ReplayState]


def make_replay(
  config: config_lib.ReplayConfig, batch_size: int, length: int, num_devices: int = 1
) -> Replay:
  """Builds the replay of one device.

  Args:
    config: its numbers are over all devices.
    batch_size: B, environments of one device.
    length: T, transitions of an unroll.
    num_devices: that share the numbers of `config`.

  Returns:
    Pure functions.
  """
  num_steps = num_devices * batch_size * length  # In one unroll of every environment.
  num_kept = max(1, config.capacity // num_steps)
  min_kept = min(num_kept, max(1, math.ceil(config.min_size / num_steps)))
  num_drawn = config.batch_size // num_devices
  is_prioritised = config.kind == "prioritised"
  # To flashbax a whole unroll is one time step, and a sequence of one of them is drawn.
  buffer = flashbax.make_trajectory_buffer(
    add_batch_size=batch_size,
    sample_batch_size=num_drawn,
    sample_sequence_length=1,
    period=1,
    min_length_time_axis=min_kept,
    max_length_time_axis=num_kept,
  )

  def init(trajectory: types.Trajectory) -> ReplayState:
    chex.assert_tree_shape_prefix(trajectory.actor_outputs, (length, batch_size))
    item = types.map_batch(
      lambda axis, x: jnp.zeros((*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype), trajectory
    )
    # Flashbax begins with weak types, and each program would be compiled twice.
    unrolls = buffer.init(item).replace(current_index=jnp.zeros((), jnp.int32))
    if not is_prioritised:
      return ReplayState(unrolls, ())
    tree = sum_tree.init(batch_size * num_kept)
    return ReplayState(unrolls, tree.replace(max_recorded_priority=jnp.ones((), jnp.float32)))

  def add(state: ReplayState, trajectory: types.Trajectory) -> ReplayState:
    # [T+1, B, ...] -> [B, 1, T+1, ...]
    items = types.map_batch(lambda axis, x: jnp.moveaxis(x, axis, 0)[:, None], trajectory)
    tree = state.priorities
    if is_prioritised:
      # Flashbax would round the priority of new items down to an integer.
      indices = jnp.arange(batch_size) * num_kept + state.unrolls.current_index
      tree = _set_leaves(tree, indices, jnp.full(batch_size, tree.max_recorded_priority))
    return ReplayState(buffer.add(state.unrolls, items), tree)

  def sample(state: ReplayState, key: types.Key) -> ReplaySample:
    indices: Any = ()
    weights: types.Array | None = None
    if is_prioritised:
      indices, weights = _draw(state.priorities, key, num_drawn, config.importance_exponent)
      places = indices // num_kept, indices % num_kept
      items = jax.tree.map(lambda x: x[places], state.unrolls.experience)
    else:
      items = jax.tree.map(lambda x: x[:, 0], buffer.sample(state.unrolls, key).experience)
    # [S, T+1, ...] -> [T+1, S, ...]
    trajectory = types.map_batch(lambda axis, x: jnp.moveaxis(x, 0, axis), items)
    return ReplaySample(trajectory._replace(importance_weights=weights), indices)

  def set_priorities(state: ReplayState, indices: Any, errors: types.Array) -> ReplayState:
    if not is_prioritised:
      return state
    priorities = (errors + EPSILON) ** config.priority_exponent
    # One NaN in the sums would be there for ever.
    priorities = jnp.where(
      jnp.isfinite(priorities), priorities, sum_tree.get_batch(state.priorities, indices)
    )
    return state._replace(priorities=_set_leaves(state.priorities, indices, priorities))

  return Replay(
    init=init,
    add=add,
    can_sample=lambda state: buffer.can_sample(state.unrolls),
    sample=sample,
    set_priorities=set_priorities,
  )


def with_device_axis(replay: Replay) -> Replay:
  """Returns the replay whose state leads with an axis of size 1: its share of a mesh axis in shard_map.

  The axis is mapped over and not taken off: XLA would write to both shapes of the buffers, and copy
  all of the replay for it at each update (on CPU, jax 0.10).
  """
  return Replay(
    init=lambda trajectory: jax.tree.map(lambda x: x[None], replay.init(trajectory)),
    add=jax.vmap(replay.add, in_axes=(0, None)),
    can_sample=lambda state: jax.vmap(replay.can_sample)(state)[0],
    sample=lambda state, key: jax.tree.map(
      lambda x: x[0], jax.vmap(replay.sample, in_axes=(0, None))(state, key)
    ),
    set_priorities=jax.vmap(replay.set_priorities, in_axes=(0, None, None)),
  )


def num_bytes(
  config: config_lib.ReplayConfig, trajectory: types.Trajectory, num_devices: int = 1
) -> int:
  """Returns the bytes that the replay takes on each device.

  Args:
    config: its numbers are over all devices.
    trajectory: arrays or ShapeDtypeStructs, `[T+1, B, ...]` of one device.
    num_devices: that share the numbers of `config`.
  """
  length, batch_size = trajectory.actor_outputs.action.shape[:2]
  replay = make_replay(config, batch_size, length, num_devices)
  state = jax.eval_shape(replay.init, trajectory)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _draw(
  tree: sum_tree.SumTreeState, key: types.Key, num_drawn: int, importance_exponent: float
) -> tuple[types.Array, types.Array]:
  """Draws in proportion to the priorities; `[S]` indices and importance weights.

  The weights are (1 / (N * P(i))) ** beta over the largest of the sample, Schaul et al. (2016),
  section 3.4; N and the sum of the priorities cancel.
  """
  draw_key, order_key = jax.random.split(key)
  # One of each of S equal parts of the sum, so in the order of the items until shuffled.
  indices = sum_tree.stratified_sample(tree, num_drawn, draw_key)
  indices = jax.random.permutation(order_key, indices)
  # Rounding leads one draw in millions to a leaf without an item; the first always has one.
  indices = jnp.where(sum_tree.get_batch(tree, indices) > 0, indices, 0)
  priorities = jnp.maximum(sum_tree.get_batch(tree, indices), jnp.finfo(jnp.float32).tiny)
  return indices, (jnp.min(priorities) / priorities) ** importance_exponent


def _set_leaves(
  tree: sum_tree.SumTreeState, indices: types.Array, priorities: types.Array
) -> sum_tree.SumTreeState:
  """Sets the leaves at `[K]` indices, of equal ones to the largest, and the sums above them.

  Flashbax adds the differences to the sums, whose rounding errors add up (to 1e-4 of the whole in a
  million) and depend on the order in which a GPU adds; here each sum is taken anew.
  """

  def sum_above(_: Any, carry: tuple[types.Array, types.Array]) -> tuple[types.Array, types.Array]:
    nodes, places = carry
    places = (places - 1) // 2
    return nodes.at[places].set(nodes[2 * places + 1] + nodes[2 * places + 2]), places

  places = indices + tree.nodes.size // 2
  nodes = tree.nodes.at[places].set(0.0).at[places].max(priorities)
  nodes, _ = jax.lax.fori_loop(0, tree.tree_depth, sum_above, (nodes, places))
  largest = jnp.maximum(tree.max_recorded_priority, jnp.max(priorities))
  return tree.replace(nodes=nodes, max_recorded_priority=largest)
