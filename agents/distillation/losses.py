"""The losses of distillation, on one stream `[T]`; callers `vmap` over the batch.

Rusu et al. (2015), *Policy Distillation*, section 3; Schmitt et al. (2018), *Kickstarting Deep Reinforcement
Learning*, section 3; Czarnecki et al. (2019), *Distilling Policy Distillation*, table 1.
"""

import math

import chex
import jax
import jax.numpy as jnp

from podracer import distributions

Array = jax.Array

_IMPOSSIBLE = -3e4
"""Logits below are of actions that are not allowed: -1e9, or -65504 in recorded data."""
_MIN_LOG_PROB = -20.0
"""What an action that the teacher never takes costs at most, in nats, where the student's own actions are
judged."""


def is_categorical(policy: distributions.ActionDistribution) -> bool:
  """Returns True for a distribution over discrete actions."""
  return jax.eval_shape(policy.mode, jnp.zeros((policy.num_logits,))).ndim == 0


def temper(logits: Array, temperature: float, is_discrete: bool) -> Array:
  """Returns the policy proportional to the given one to the power of 1 / temperature.

  See Rusu et al. (2015), equation (1): a low temperature sharpens the teacher.

  Args:
    logits: `[T, A]`, or of a Gaussian `[T, 2k]`.
    temperature: above 0.
    is_discrete: False for a Gaussian, whose scales become sqrt(temperature) times as wide.
  """
  if temperature == 1.0:
    return logits
  if is_discrete:
    return jnp.where(logits > _IMPOSSIBLE, logits / temperature, logits)
  mean, log_scale = jnp.split(logits, 2, axis=-1)
  return jnp.concatenate([mean, log_scale + 0.5 * math.log(temperature)], axis=-1)


def policy_loss(
  kind: str,
  policy: distributions.ActionDistribution,
  student_logits: Array,
  teacher_logits: Array | None,
  teacher_action: Array | None,
) -> Array:
  """Returns the loss of each step of a stream, `[T]`.

  Args:
    kind: see `DistillationConfig.policy_loss`.
    policy: distribution over the actions.
    student_logits: `[T, N]`, with gradient.
    teacher_logits: `[T, N]` after the temperature; not used by `nll`.
    teacher_action: `[T]` or `[T, k]`; used by `nll` alone.
  """
  chex.assert_rank(student_logits, 2)
  if kind == "none":
    return jnp.zeros(student_logits.shape[0])
  if kind == "nll":
    assert teacher_action is not None
    return -policy.log_prob(student_logits, teacher_action)
  assert teacher_logits is not None
  chex.assert_equal_shape([student_logits, teacher_logits])
  teacher_logits = jax.lax.stop_gradient(teacher_logits)
  if kind == "kl":
    return policy.kl(teacher_logits, student_logits)
  if kind == "mse":
    return centred_error(student_logits, teacher_logits)
  reverse = policy.kl(student_logits, _bounded(policy, teacher_logits))
  if kind == "reverse_kl":
    return reverse
  return reverse + policy.entropy(student_logits)


def centred_error(student_logits: Array, teacher_logits: Array) -> Array:
  """Returns the mean squared difference of logits less their means, over the actions allowed, `[T]`.

  A constant added to all logits changes neither the policy nor this loss.
  """
  allowed = (student_logits > _IMPOSSIBLE) & (teacher_logits > _IMPOSSIBLE)
  num_allowed = jnp.maximum(jnp.sum(allowed, axis=-1, keepdims=True), 1)

  def centred(logits: Array) -> Array:
    logits = jnp.where(allowed, logits, 0.0)
    return logits - jnp.sum(logits, axis=-1, keepdims=True) / num_allowed

  error = jnp.where(allowed, centred(student_logits) - centred(teacher_logits), 0.0)
  return jnp.sum(jnp.square(error), axis=-1) / num_allowed[..., 0]


def weighted_mean(losses: Array, weights: Array, valid: Array) -> Array:
  """Returns the mean over `[T]` of losses times weights; resets count 0, see `Agent.loss`."""
  chex.assert_equal_shape([losses, weights, valid])
  return jnp.mean(jnp.where(valid, losses * weights, 0.0))


def value_error(values: Array, teacher_values: Array) -> Array:
  """Returns half the squared difference from the teacher's values, `[T]`."""
  chex.assert_equal_shape([values, teacher_values])
  return 0.5 * jnp.square(jax.lax.stop_gradient(teacher_values) - values)


def is_better(teacher_values: Array, values: Array) -> Array:
  """Returns `[T]` float32 1 where the teacher's value is above the student's: there it is imitated."""
  return (teacher_values > jax.lax.stop_gradient(values)).astype(jnp.float32)


def future_cost(step_costs: Array, discount_t: Array) -> Array:
  """Returns the rewards by which policy gradients also lower the costs of the states that follow.

  The gradient of E[sum_t gamma^t l(x_t)], l depending on the policy, has two parts: that of each l, and
  log pi(a_t|x_t) times the discounted costs from t+1 on; Czarnecki et al. (2019), section 4.

  Args:
    step_costs: `[S]` l at times 0 .. S-1, where S is T+1, or T if the last is not known.
    discount_t: `[T]` gamma, or 0 where the episode ended on arrival.

  Returns:
    `[T]` rewards on arrival, without gradient; 0 for a last one that is not known.
  """
  chex.assert_rank([step_costs, discount_t], 1)
  costs_t = jax.lax.stop_gradient(step_costs[1:])
  costs_t = jnp.pad(costs_t, (0, discount_t.shape[0] - costs_t.shape[0]))
  return -discount_t * costs_t


def advantage_over_teacher(teacher_values: Array, r_t: Array, discount_t: Array) -> Array:
  """Returns the temporal differences of the teacher's values along the student's steps.

  Their mean over the student's states is, but for the factor 1 - gamma, by how much its return is above
  the teacher's: the performance difference lemma, Kakade & Langford (2002), lemma 6.1.

  Args:
    teacher_values: `[S]` at times 0 .. S-1, where S is T+1, or T if the last is not known.
    r_t: `[T]` rewards on arrival.
    discount_t: `[T]` gamma, or 0 where the episode ended on arrival.

  Returns:
    `[S-1]` differences.
  """
  chex.assert_rank([teacher_values, r_t, discount_t], 1)
  length = teacher_values.shape[0] - 1
  return r_t[:length] + discount_t[:length] * teacher_values[1:] - teacher_values[:-1]


def _bounded(policy: distributions.ActionDistribution, teacher_logits: Array) -> Array:
  """Returns the policy with no action below a least probability; a Gaussian is as it was."""
  if not is_categorical(policy):
    return teacher_logits
  return jnp.maximum(jax.nn.log_softmax(teacher_logits), _MIN_LOG_PROB)
