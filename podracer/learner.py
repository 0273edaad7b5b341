"""The learner: from a trajectory to new parameters, the same for every agent and both machines.

The one collective of the whole system is written here: gradients, metrics and statistics are averaged
over the mesh axis by `jax.lax.pmean`.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import replay as replay_lib
from podracer import types

GRADIENT_STEPS = "gradient_steps"
"""Metric: the number of gradient steps tried."""
REFUSED = "refused_gradient_steps"
"""Metric: how many of them were refused because something was not finite."""
NON_FINITE = "non_finite/"
"""Prefix of the metrics that count how often a metric was not finite."""


class LearnerState(NamedTuple):
  """What the learner carries from update to update; the same on every device.

  Attributes:
    params: the agent's.
    target_params: a copy that follows them, or None; `Agent.frozen` is not in it.
    optimizer_state: optax's, of what is not frozen.
    num_updates: int32, trajectories learnt from.
    num_refused: int32, gradient steps refused in a row.
    replay: unrolls kept to be learnt from, `[num_devices, ...]`, the only part that each device has of
      its own; () where there is no replay.
  """

  params: types.Params
  target_params: types.Params | None
  optimizer_state: optax.OptState
  num_updates: types.Array
  num_refused: types.Array
  replay: Any = ()


class Learner(NamedTuple):
  """The learner of one agent.

  Attributes:
    init: key -> LearnerState.
    update: (state, key, trajectory) -> (state, metrics), learns from one trajectory. The metrics are
      sums over its gradient steps, so that they can be added up over updates; `mean_metrics` ends it.
    replay_bytes: that the replay takes on each device, 0 where there is none.
  """

  init: Callable[[types.Key], LearnerState]
  update: Callable[[LearnerState, types.Key, types.Trajectory], tuple[LearnerState, types.Metrics]]
  replay_bytes: int = 0


def make_optimizer(
  config: config_lib.LearnerConfig, num_updates: int
) -> optax.GradientTransformation:
  """Builds the optimiser.

  Args:
    config: of the learner.
    num_updates: trajectories the whole run learns from, over which a linear schedule falls to 0.

  Returns:
    Clipping by global norm, then the update rule.
  """
  learning_rate: Any = config.learning_rate
  if config.learning_rate_schedule == "linear":
    num_steps = max(1, num_updates) * config.gradient_steps_per_update
    learning_rate = optax.linear_schedule(config.learning_rate, 0.0, num_steps)
  rule = {
    "adam": lambda: optax.adam(learning_rate, eps=config.optimizer_epsilon),
    "rmsprop": lambda: optax.rmsprop(learning_rate, decay=0.99, eps=config.optimizer_epsilon),
    "sgd": lambda: optax.sgd(learning_rate),
  }[config.optimizer]()
  if config.max_gradient_norm > 0:
    return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), rule)
  return rule


def make_learner(
  agent: agent_lib.Agent,
  config: config_lib.LearnerConfig,
  num_updates: int = 1,
  axis_name: str | None = None,
  *,
  unroll: types.Trajectory | None = None,
  num_devices: int = 1,
) -> Learner:
  """Builds the learner of an agent.

  Args:
    agent: the agent.
    config: of the learner.
    num_updates: trajectories of the whole run, see `make_optimizer`.
    axis_name: mesh axis over which the environments are sharded, or None on one device without one.
    unroll: shapes of the trajectories of one device, `[T+1, B, ...]`; needed for a replay.
    num_devices: along the axis.

  Returns:
    Pure functions; `update` must run inside `jax.shard_map(..., check_vma=False)` if `axis_name` is
    given: with the default the gradient of replicated parameters is already summed over the axis.

  Raises:
    InputError: if unrolls of this length can't be learnt from, or a replay doesn't fit the agent.
  """
  if unroll is not None:
    config.check_unroll(unroll.actor_outputs.action.shape[0])
  replay_config = config.replay if isinstance(config, config_lib.ReplayLearnerConfig) else None
  replay = None
  if replay_config is not None and replay_config.capacity:
    replay = _make_replay(agent, replay_config, unroll, num_devices)
  optimizer = make_optimizer(config, num_updates)

  def init(key: types.Key) -> LearnerState:
    params = agent.init(key)
    trained, _ = agent_lib.split_frozen(agent, params)
    # A copy: donated state must not hold one buffer twice.
    target_params = None if config.target_update == "none" else jax.tree.map(jnp.copy, trained)
    return LearnerState(
      params=params,
      target_params=target_params,
      optimizer_state=optimizer.init(trained),
      num_updates=jnp.zeros((), jnp.int32),
      num_refused=jnp.zeros((), jnp.int32),
      replay=_of_all(replay.init(unroll), num_devices) if replay and unroll else (),
    )

  def gradient_step(
    state: LearnerState, key: types.Key, trajectory: types.Trajectory
  ) -> tuple[LearnerState, types.Metrics, types.Array | None]:
    trained, frozen = agent_lib.split_frozen(agent, state.params)
    target_params = _target_params(agent, state)

    def loss_of(trained: types.Params) -> tuple[types.Array, agent_lib.LossInfo]:
      return agent.loss(agent_lib.merge_frozen(trained, frozen), target_params, key, trajectory)

    (loss, info), gradient = jax.value_and_grad(loss_of, has_aux=True)(trained)
    metrics = {"loss/total": loss, **info.metrics}
    statistics = info.statistics
    if axis_name is not None:
      gradient, metrics, statistics = _mean_over_devices((gradient, metrics, statistics), axis_name)
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    accept = jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(metrics["loss/total"])

    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, trained)
    params = agent_lib.merge_frozen(optax.apply_updates(trained, updates), frozen)
    if agent.update_statistics is not None:
      params = agent.update_statistics(params, statistics)
    # Refusing keeps the state as it was: one NaN in the parameters would be there for ever.
    params, optimizer_state = jax.tree.map(
      lambda new, old: new if new is old else jnp.where(accept, new, old),
      (params, optimizer_state),
      (state.params, state.optimizer_state),
    )
    num_refused = jnp.where(accept, 0, state.num_refused + 1).astype(jnp.int32)
    state = state._replace(params=params, optimizer_state=optimizer_state, num_refused=num_refused)
    return state, _guarded(metrics, accept), info.priorities

  def update(
    state: LearnerState, key: types.Key, trajectory: types.Trajectory
  ) -> tuple[LearnerState, types.Metrics]:
    if replay is not None and replay_config is not None:
      state, metrics = _replay_updates(
        agent,
        replay_config,
        replay_lib.with_device_axis(replay),
        gradient_step,
        state,
        key,
        trajectory,
      )
    elif config.num_minibatches * config.num_epochs == 1:
      state, metrics, _ = gradient_step(state, key, trajectory)
    else:
      state, metrics = _minibatch_updates(config, gradient_step, state, key, trajectory)
    state = state._replace(num_updates=state.num_updates + 1)
    return state._replace(target_params=_updated_target(agent, config, state)), metrics

  state = jax.eval_shape(init, jax.random.key(0))
  replay_bytes = (
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.replay)) // num_devices
  )
  return Learner(init=init, update=update, replay_bytes=replay_bytes)


def update_keys(key: types.Key, index: types.Array | int) -> tuple[types.Key, types.Key]:
  """Returns the keys with which the unroll of an update is acted and with which it is learnt from.

  Args:
    key: of one device (or actor), constant over the run.
    index: of the update (or unroll), counted from the beginning of the run.
  """
  act_key, learn_key = jax.random.split(jax.random.fold_in(key, index))
  return act_key, learn_key


def check_memory(replay_bytes: int, devices: Sequence[jax.Device]) -> None:
  """Raises InputError where a replay doesn't fit in the memory of the devices.

  Args:
    replay_bytes: on each device.
    devices: that learn, of all processes; those of a CPU share its memory.
  """
  own = [device for device in devices if device.process_index == jax.process_index()]
  stats = own[0].memory_stats() or {}
  limit = stats.get("bytes_limit", 0)
  if devices[0].platform == "cpu":
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(own)
  config_lib.check(
    not limit or replay_bytes < limit,
    f"a replay of {replay_bytes / 1e9:.1f} GB a device is more than its memory of {limit / 1e9:.1f} GB: "
    "lower replay.capacity",
  )


def state_specs(axis_name: str, *leading: str | None) -> LearnerState:
  """Returns where the parts of a LearnerState lie on a mesh: all are replicated but the replay.

  Args:
    axis_name: of the mesh.
    *leading: what leads every array: None for each axis before that of the devices.
  """
  replicated: Any = jax.sharding.PartitionSpec()
  sharded: Any = jax.sharding.PartitionSpec(*leading, axis_name)
  return LearnerState(
    params=replicated,
    target_params=replicated,
    optimizer_state=replicated,
    num_updates=replicated,
    num_refused=replicated,
    replay=sharded,
  )


def _mean_over_devices(tree: Any, axis_name: str) -> Any:
  """Returns the mean of every leaf over the mesh axis: the one collective.

  One vector is communicated and not leaf by leaf: of a small network each leaf costs a rendezvous of
  its own on CPU.
  """
  vector, unravel = jax.flatten_util.ravel_pytree(tree)
  return unravel(jax.lax.pmean(vector, axis_name))


def _guarded(metrics: types.Metrics, accept: types.Array) -> types.Metrics:
  """Adds which metrics were not finite, and keeps these out of every mean."""
  flags = {NON_FINITE + name: ~jnp.isfinite(value) for name, value in metrics.items()}
  clean = {name: jnp.where(jnp.isfinite(value), value, 0.0) for name, value in metrics.items()}
  flags = {name: flag.astype(jnp.float32) for name, flag in flags.items()}
  refused = 1.0 - accept.astype(jnp.float32)
  return {**clean, **flags, REFUSED: refused, GRADIENT_STEPS: jnp.ones(())}


def _minibatch_updates(
  config: config_lib.LearnerConfig,
  gradient_step: Callable[..., tuple[LearnerState, types.Metrics, types.Array | None]],
  state: LearnerState,
  key: types.Key,
  trajectory: types.Trajectory,
) -> tuple[LearnerState, types.Metrics]:
  """Scans gradient steps over shuffled minibatches of whole unrolls; sums of the metrics."""
  batch_size = trajectory.actor_outputs.action.shape[1]
  config_lib.check(
    batch_size % config.num_minibatches == 0,
    f"num_minibatches={config.num_minibatches} does not divide the {batch_size} environments that "
    "one device learns from",
  )

  def minibatch_step(carry: LearnerState, xs: Any) -> tuple[LearnerState, types.Metrics]:
    index, step_key = xs
    minibatch = types.map_batch(lambda axis, x: jnp.take(x, index, axis=axis), trajectory)
    carry, metrics, _ = gradient_step(carry, step_key, minibatch)
    return carry, metrics

  def epoch(carry: LearnerState, epoch_key: types.Key) -> tuple[LearnerState, types.Metrics]:
    shuffle_key, steps_key = jax.random.split(epoch_key)
    order = jax.random.permutation(shuffle_key, batch_size)
    # [B] -> [num_minibatches, B / num_minibatches]
    indices = order.reshape(config.num_minibatches, -1)
    return jax.lax.scan(
      minibatch_step, carry, (indices, jax.random.split(steps_key, config.num_minibatches))
    )

  state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, config.num_epochs))
  return state, jax.tree.map(jnp.sum, metrics)


def _make_replay(
  agent: agent_lib.Agent,
  config: config_lib.ReplayConfig,
  unroll: types.Trajectory | None,
  num_devices: int,
) -> replay_lib.Replay:
  """Returns the replay of one device, once it is known to fit."""
  assert unroll is not None, "a replay needs the shapes of an unroll"
  length, batch_size = unroll.actor_outputs.action.shape[:2]
  config.check_shares(num_devices, length * batch_size * num_devices)
  config_lib.check(
    not config.reanalyse_fraction or agent.reanalyse is not None,
    "replay.reanalyse_fraction is for an agent that searches",
  )
  return replay_lib.make_replay(config, batch_size, length, num_devices)


def _of_all(tree: Any, num_devices: int) -> Any:
  """Returns the state of one device as that of all, `[num_devices, ...]`."""
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_devices, *x.shape)), tree)


def _replay_updates(
  agent: agent_lib.Agent,
  config: config_lib.ReplayConfig,
  replay: replay_lib.Replay,
  gradient_step: Callable[..., tuple[LearnerState, types.Metrics, types.Array | None]],
  state: LearnerState,
  key: types.Key,
  trajectory: types.Trajectory,
) -> tuple[LearnerState, types.Metrics]:
  """Keeps a trajectory, and scans gradient steps on what the replay draws; sums of the metrics."""
  kept = replay.add(state.replay, trajectory)

  def step(
    carry: tuple[LearnerState, Any], step_key: types.Key
  ) -> tuple[tuple[LearnerState, Any], types.Metrics]:
    learner_state, kept = carry
    sample_key, search_key, loss_key = jax.random.split(step_key, 3)
    sample = replay.sample(kept, sample_key)
    drawn = _reanalysed(agent, config, learner_state, search_key, sample.trajectory)
    learner_state, metrics, priorities = gradient_step(learner_state, loss_key, drawn)
    if priorities is not None:
      kept = replay.set_priorities(kept, sample.indices, priorities)
    return (learner_state, kept), metrics

  def learn(carry: tuple[LearnerState, Any]) -> tuple[tuple[LearnerState, Any], types.Metrics]:
    keys = jax.random.split(key, config.gradient_steps)
    carry, metrics = jax.lax.scan(step, carry, keys)
    return carry, jax.tree.map(jnp.sum, metrics)

  carry = (state._replace(replay=()), kept)
  _, metrics = jax.eval_shape(learn, carry)

  def wait(carry: tuple[LearnerState, Any]) -> tuple[tuple[LearnerState, Any], types.Metrics]:
    return carry, types.zeros_like(metrics)

  (state, kept), metrics = jax.lax.cond(replay.can_sample(kept), learn, wait, carry)
  return state._replace(replay=kept), metrics


def _reanalysed(
  agent: agent_lib.Agent,
  config: config_lib.ReplayConfig,
  state: LearnerState,
  key: types.Key,
  trajectory: types.Trajectory,
) -> types.Trajectory:
  """Searches the stated share of a batch anew under the target parameters (MuZero Reanalyse)."""
  batch_size = trajectory.actor_outputs.action.shape[1]
  num_fresh = round(config.reanalyse_fraction * batch_size)
  if agent.reanalyse is None or not num_fresh:
    return trajectory
  params = _target_params(agent, state)
  # Which unrolls were drawn is random, so the first of them are.
  fresh, rest = (
    types.map_batch(
      lambda axis, x, part=part: jnp.split(x, [num_fresh], axis=axis)[part], trajectory
    )
    for part in range(2)
  )
  fresh = agent.reanalyse(params, key, fresh)
  return types.map_batch(lambda axis, *xs: jnp.concatenate(xs, axis=axis), fresh, rest)


def _target_params(agent: agent_lib.Agent, state: LearnerState) -> types.Params:
  """Returns the target parameters as the agent's functions take them."""
  if state.target_params is None:
    return state.params
  _, frozen = agent_lib.split_frozen(agent, state.params)
  return agent_lib.merge_frozen(state.target_params, frozen)


def _updated_target(
  agent: agent_lib.Agent, config: config_lib.LearnerConfig, state: LearnerState
) -> types.Params | None:
  if config.target_update == "none":
    return None
  trained, _ = agent_lib.split_frozen(agent, state.params)
  if config.target_update == "polyak":
    return optax.incremental_update(
      trained, state.target_params, step_size=config.target_update_rate
    )
  return optax.periodic_update(
    trained, state.target_params, state.num_updates, config.target_update_period
  )


def mean_metrics(sums: dict[str, Any]) -> dict[str, Any]:
  """Ends a sum of the metrics of updates: the means over the gradient steps where each was finite.

  Args:
    sums: name -> number or NumPy array (one entry a seed).

  Returns:
    The means, NaN where a metric never was finite, with the counts of what was not finite, if any.
  """
  num_steps = sums[GRADIENT_STEPS]
  means = {}
  for name, value in sums.items():
    if name.startswith(NON_FINITE) or name in (REFUSED, GRADIENT_STEPS):
      continue
    num_finite = np.asarray(num_steps - sums[NON_FINITE + name])
    means[name] = np.where(num_finite > 0, value / np.maximum(num_finite, 1), np.nan)
  refused = {REFUSED: sums[REFUSED]} if np.any(sums[REFUSED]) else {}
  non_finite = {k: v for k, v in sums.items() if k.startswith(NON_FINITE) and np.any(v)}
  return {**means, **refused, **non_finite}


def refusal_reason(metrics: dict[str, Any]) -> str:
  """Returns which of a report's metrics were not finite, as `name (n times)`."""
  return ", ".join(
    f"{name.removeprefix(NON_FINITE)} ({int(np.sum(value))} times)"
    for name, value in metrics.items()
    if name.startswith(NON_FINITE)
  )


def refusal_message(num_refused: int, metrics: dict[str, Any]) -> str:
  """Returns the line with which a run ends after too many refused updates in a row."""
  return (
    f"{num_refused} updates in a row were refused: not finite: {refusal_reason(metrics)}; the "
    "parameters are those of the last good update"
  )
