"""The student's objective: what the losses of `losses` come to over a batch of unrolls."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import distributions, multitask, types
from podracer.agents.impala import agent as impala_agent
from podracer.agents.impala import losses as impala_losses
from podracer.agents.impala import popart

from . import config as distillation_config
from . import losses, schedules
from . import teacher as teacher_lib

Array = types.Array


class Statistics(NamedTuple):
  """What a batch moves: PopArt's moments, if there are, and the progress of the student."""

  student: Any
  advantage: schedules.AdvantageStatistics


class _Batch(NamedTuple):
  """What the loss is made of; the teachers have said something at S times, T+1 or T of them.

  Attributes:
    evaluation: of the student, `[T+1, B, ...]`.
    said: of the teachers, `[S, B, K, ...]`.
    numbers: of the teachers of each row, `[S, B, K]`, -1 for none.
    weights: lambda of these, `[S, B, K]`.
    r_t: `[T, B]` clipped rewards on arrival.
    discount_t: `[T, B]` gamma, or 0 where the episode ended on arrival.
    valid_tm1: `[T, B]`.
  """

  evaluation: impala_agent.Evaluation
  said: teacher_lib.TeacherOutput
  numbers: Array
  weights: Array
  r_t: Array
  discount_t: Array
  valid_tm1: Array


def loss(
  config: distillation_config.DistillationConfig,
  members: teacher_lib.Teachers,
  student: impala_agent.Parts,
  params: types.Params,
  progress: schedules.Progress,
  trajectory: types.Trajectory,
  said: teacher_lib.TeacherOutput,
) -> tuple[Array, agent_lib.LossInfo]:
  """Computes the student's loss.

  Args:
    config: hyper-parameters.
    members: the teachers.
    student: parts of the IMPALA agent that it is.
    params: of the student.
    progress: of the student.
    trajectory: `[T+1, B, ...]`, with the student's own recurrent state.
    said: what the teachers say, `[S, B, K, ...]` with S = T+1, or T where they don't speak of the last.

  Returns:
    The loss, and `Statistics` with the metrics.
  """
  tasks = multitask.tasks_of(trajectory.timesteps, members.spec)
  batch = _make_batch(config, members, student, params, progress, trajectory, said, tasks)
  costs = _policy_costs(config, student.policy, batch)  # [S, B, K]
  policy_term = _taught(costs, batch.weights * _gate(config, batch), batch)
  value_term = jnp.zeros(())
  if config.value_loss != "none":
    mean, scale = impala_agent.moments(params, tasks[:-1])
    value_term = _taught(_value_costs(batch, mean, scale), batch.weights, batch)
  total = policy_term + config.value_distillation_cost * value_term
  metrics = {"loss/distillation": policy_term, "loss/distillation_value": value_term}
  metrics |= _metrics(config, student.policy, progress, batch)
  if config.needs_vtrace:
    r_t, valid_tm1 = _rewards(config, batch, costs)
    reinforcement, info = student.vtrace_loss(params, trajectory, batch.evaluation, r_t, valid_tm1)
    weight = 1.0 if config.expected_entropy else config.reinforcement_cost
    total += weight * reinforcement
    metrics |= info.metrics
    moments = info.statistics
  else:
    entropy = student.policy.entropy(batch.evaluation.logits[:-1])
    metrics["loss/entropy"] = impala_agent.over_batch(
      impala_losses.masked_mean, entropy, batch.valid_tm1
    )
    moments = _teacher_moments(config, batch, tasks[:-1], members.spec.num_tasks)
  statistics = Statistics(moments, _advantage_statistics(config, members.number, batch))
  return total, agent_lib.LossInfo(metrics=metrics, statistics=statistics)


def _make_batch(
  config: distillation_config.DistillationConfig,
  members: teacher_lib.Teachers,
  student: impala_agent.Parts,
  params: types.Params,
  progress: schedules.Progress,
  trajectory: types.Trajectory,
  said: teacher_lib.TeacherOutput,
  tasks: Array,
) -> _Batch:
  timesteps = trajectory.timesteps
  num_said = jax.tree.leaves(said)[0].shape[0]
  numbers = members.of_rows(tasks[:num_said])
  lambdas = schedules.lambdas(config, progress)
  return _Batch(
    evaluation=student.evaluate(params, trajectory),
    said=said,
    numbers=numbers,
    weights=jnp.where(numbers >= 0, lambdas[numbers], 0.0),
    r_t=impala_losses.clip_reward(timesteps.reward[1:], config.reward_clip),
    discount_t=config.discount * timesteps.discount[1:],
    valid_tm1=types.is_valid_transition(timesteps.step_type[:-1]),
  )


def _policy_costs(
  config: distillation_config.DistillationConfig,
  policy: distributions.ActionDistribution,
  batch: _Batch,
) -> Array:
  """Returns the policy loss of each step for each teacher, `[S, B, K]`."""
  said, num_said = batch.said, batch.numbers.shape[0]
  logits = said.logits
  if config.policy_loss == "nll":
    _check_said(said.action, "teacher_action")
  elif config.policy_loss != "none":
    _check_said(logits, "teacher_logits")
  if logits is not None:
    logits = losses.temper(logits, config.temperature, losses.is_categorical(policy))
  loss = functools.partial(losses.policy_loss, config.policy_loss, policy)
  # Over the teachers `[S, B, K, ...]`, then over the batch.
  by_teacher = jax.vmap(loss, in_axes=(None, 1, 1), out_axes=1)
  by_row = jax.vmap(by_teacher, in_axes=1, out_axes=1)
  return by_row(batch.evaluation.logits[:num_said], logits, said.action)


def _value_costs(batch: _Batch, mean: Array, scale: Array) -> Array:
  """Returns the error of each value, in normalised units, for each teacher, `[T, B, K]`."""
  teacher_values = _check_said(batch.said.value, "teacher_value")
  values = (batch.evaluation.values[:-1] - mean) / scale
  length = values.shape[0]
  mean, scale = (jnp.broadcast_to(x, values.shape)[..., None] for x in (mean, scale))
  error = jax.vmap(losses.value_error, in_axes=(None, 2), out_axes=2)
  return error(values, (teacher_values[:length] - mean) / scale)


def _gate(config: distillation_config.DistillationConfig, batch: _Batch) -> Any:
  """Returns 1 where a teacher is imitated, else 0, `[S, B, K]`."""
  if not config.value_gate:
    return 1.0
  teacher_values = _check_said(batch.said.value, "teacher_value")
  values = batch.evaluation.values[: teacher_values.shape[0]]
  return losses.is_better(teacher_values, values[..., None])


def _taught(costs: Array, weights: Array, batch: _Batch) -> Array:
  """Returns the sum over teachers of the means over `[T, B]` of what they teach."""
  length = batch.valid_tm1.shape[0]
  costs, weights = costs[:length], jnp.broadcast_to(weights, batch.numbers.shape)[:length]
  by_row = jax.vmap(losses.weighted_mean, in_axes=1)
  by_teacher = jax.vmap(by_row, in_axes=(2, 2, None))
  return jnp.sum(jnp.mean(by_teacher(costs, weights, batch.valid_tm1), axis=1))


def _rewards(
  config: distillation_config.DistillationConfig, batch: _Batch, costs: Array
) -> tuple[Array, Array]:
  """Returns rewards on arrival, and which transitions V-trace learns from, `[T, B]` each."""
  if not config.expected_entropy:
    return batch.r_t, batch.valid_tm1
  future = jax.vmap(losses.future_cost, in_axes=1, out_axes=1)
  r_t = config.reinforcement_cost * batch.r_t
  r_t += future(jnp.sum(batch.weights * costs, axis=-1), batch.discount_t)
  valid_tm1 = batch.valid_tm1
  if costs.shape[0] == valid_tm1.shape[0]:
    # What the last state costs is not known: the trace ends one step before.
    valid_tm1 = valid_tm1.at[-1].set(False)
  return r_t, valid_tm1


def _teacher_moments(
  config: distillation_config.DistillationConfig, batch: _Batch, tasks: Array, num_tasks: int
) -> Any:
  """Returns PopArt's statistics where the teacher's values are all that is learnt."""
  if not config.popart:
    return ()
  targets, valid = jnp.zeros(tasks.shape), jnp.zeros(tasks.shape, bool)
  if config.value_loss != "none" and batch.said.value is not None:
    targets = batch.said.value[: len(tasks), :, 0]
    valid = batch.valid_tm1 & (batch.numbers[: len(tasks), :, 0] >= 0)
  return popart.statistics(targets, tasks, valid, num_tasks)


def _advantage_statistics(
  config: distillation_config.DistillationConfig, num_teachers: int, batch: _Batch
) -> schedules.AdvantageStatistics:
  if config.distillation_schedule != "until_passed":
    return schedules.AdvantageStatistics(*[jnp.zeros((num_teachers,))] * 2)
  teacher_values = _check_said(batch.said.value, "teacher_value")
  by_row = jax.vmap(losses.advantage_over_teacher, in_axes=1, out_axes=1)
  by_teacher = jax.vmap(by_row, in_axes=(2, None, None), out_axes=2)
  advantages = by_teacher(teacher_values, batch.r_t, batch.discount_t)  # [S-1, B, K]
  length = advantages.shape[0]
  weights = jax.nn.one_hot(batch.numbers[:length], num_teachers)  # [S-1, B, K, N]
  weights *= batch.valid_tm1[:length, :, None, None]
  return schedules.AdvantageStatistics(
    weight=jnp.mean(jnp.sum(weights, axis=2), axis=(0, 1)),
    advantage=jnp.mean(jnp.sum(weights * advantages[..., None], axis=2), axis=(0, 1)),
  )


def _metrics(
  config: distillation_config.DistillationConfig,
  policy: distributions.ActionDistribution,
  progress: schedules.Progress,
  batch: _Batch,
) -> types.Metrics:
  """Returns how near the student is to its teachers, and what they still do."""
  length = batch.valid_tm1.shape[0]
  logits = batch.evaluation.logits[:-1, :, None]
  known = batch.valid_tm1[..., None] & (batch.numbers[:length] >= 0)

  def mean(x: Array) -> Array:
    return jnp.sum(jnp.where(known, x, 0.0)) / jnp.maximum(jnp.sum(known), 1)

  metrics = {"distillation/teacher_control": schedules.teacher_control(config, progress)}
  for i, weight in enumerate(schedules.lambdas(config, progress)):
    metrics[f"distillation/lambda_{i}"] = weight
  if config.distillation_schedule == "until_passed":
    for i, advantage in enumerate(schedules.mean_advantage(progress)):
      metrics[f"distillation/advantage_{i}"] = advantage
  if batch.said.logits is not None:
    theirs = batch.said.logits[:length]
    metrics["distillation/kl"] = mean(policy.kl(theirs, jnp.broadcast_to(logits, theirs.shape)))
  if batch.said.action is not None:
    metrics |= _agreement(policy, logits, batch.said.action[:length], mean)
  return metrics


def _agreement(
  policy: distributions.ActionDistribution, logits: Array, teacher_action: Array, mean: Any
) -> types.Metrics:
  """Returns how often the best actions are the same; of continuous ones their distance."""
  action = policy.mode(logits)
  if losses.is_categorical(policy):
    return {"distillation/agreement": mean((action == teacher_action).astype(jnp.float32))}
  distance = jnp.linalg.norm(action - teacher_action, axis=-1)
  return {"distillation/action_distance": mean(distance)}


def _check_said(value: Array | None, name: str) -> Array:
  config_lib.check(value is not None, f"the data has no {name}, from which the student is to learn")
  assert value is not None
  return value
