"""Distributions over actions, as pure functions on logits `[..., N]`.

Logits are what `ActorOutput.logits` holds: of a categorical, or the means and the logarithms of the
scales of a diagonal Gaussian, in units of the action.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from podracer import config, threefry, types

Array = types.Array

_MASKED = -1e9
"""Logit of an illegal action: finite, so that 0 * log(0) is 0, and its probability is exactly 0."""
_TANH_LIMIT = 1.0 - 1e-6
"""Normalised actions are clipped to this before atanh, which is infinite at the bounds."""
_NUM_QUADRATURE_POINTS = 32


class ActionDistribution(NamedTuple):
  """The functions of one family of distributions; all are broadcast over leading axes.

  Attributes:
    num_logits: N.
    sample: (key, logits `[..., N]`) -> action `[...]` int32 or `[..., k]` float32, without gradient.
    mode: logits -> action; for `tanh_gaussian` the median of every dimension.
    log_prob: (logits, action) -> `[...]`.
    entropy: logits -> `[...]`.
    kl: (p_logits, q_logits) -> `[...]` KL(p || q).
  """

  num_logits: int
  sample: Callable[[types.Key, Array], Array]
  mode: Callable[[Array], Array]
  log_prob: Callable[[Array, Array], Array]
  entropy: Callable[[Array], Array]
  kl: Callable[[Array, Array], Array]


def make_distribution(
  action_spec: types.ActionSpec, kind: Literal["gaussian", "tanh_gaussian"] = "gaussian"
) -> ActionDistribution:
  """Returns the family of distributions for an action spec.

  Args:
    action_spec: discrete actions have a categorical distribution, continuous ones that of `kind`.
    kind: `gaussian`, whose samples may lie outside of the bounds (the environment clips them), or
      `tanh_gaussian`, whose samples lie inside; see Haarnoja et al. (2018), appendix C. Its logits are
      in units of the action too: near the middle of the box, both kinds agree.

  Raises:
    ValueError: for another kind, and for a `tanh_gaussian` over infinite bounds.
  """
  if isinstance(action_spec, types.DiscreteActions):
    return _categorical(action_spec.num_actions)
  if kind == "gaussian":
    return _gaussian(action_spec.size)
  if kind != "tanh_gaussian":
    raise config.InputError(f"unknown distribution {kind}; valid: gaussian, tanh_gaussian")
  if not np.all(np.isfinite([*action_spec.minimum, *action_spec.maximum])):
    raise config.InputError("tanh_gaussian needs finite bounds of every action; use gaussian")
  return _tanh_gaussian(action_spec)


def mask_logits(logits: Array, mask: Array | None) -> Array:
  """Makes actions impossible.

  Args:
    logits: `[..., A]` float32 of a categorical distribution.
    mask: `[..., A]` bool, True where the action is legal, or None where all are. Where no action is,
      which the time step LAST of some environments says, all are equally likely.

  Returns:
    `[..., A]` finite logits that give illegal actions probability 0.
  """
  if mask is None:
    return logits
  chex.assert_equal_shape([logits, mask])
  return jnp.where(mask, logits, _MASKED)


def widen_logits(logits: Array, num_actions: int) -> Array:
  """Returns logits `[..., N]` as those of `num_actions` actions, the added ones impossible."""
  num_added = num_actions - logits.shape[-1]
  if not num_added:
    return logits
  padding = [(0, 0)] * (logits.ndim - 1) + [(0, num_added)]
  return jnp.pad(logits, padding, constant_values=_MASKED)


def middle_and_half_range(spec: types.ContinuousActions) -> tuple[np.ndarray, np.ndarray]:
  """Returns `[k]` middles and `[k]` half ranges of a box; 0 and 1 where a bound is infinite."""
  minimum, maximum = np.asarray(spec.minimum, np.float32), np.asarray(spec.maximum, np.float32)
  is_bounded = np.isfinite(minimum) & np.isfinite(maximum) & (minimum < maximum)
  low, high = np.where(is_bounded, minimum, -1.0), np.where(is_bounded, maximum, 1.0)
  return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)


def _categorical(num_actions: int) -> ActionDistribution:
  check = functools.partial(_check_logits, num_actions)

  def sample(key: types.Key, logits: Array) -> Array:
    # Inverts the distribution function: one uniform a row, where the Gumbel trick draws one and takes
    # two logarithms an action; 2 to 10 times cheaper on CPU. Both resolve probabilities to about
    # 1e-7. The sums run in order, so that an action of probability 0 adds exactly nothing and the
    # first sum above u * total, which exists as u < 1, is never its own.
    check(logits)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    total, sums = jax.lax.scan(
      lambda total, weight: (total + weight,) * 2,
      jnp.zeros(logits.shape[:-1], weights.dtype),
      jnp.moveaxis(weights, -1, 0),
      unroll=16,
    )
    threshold = threefry.uniform(key, total.shape) * total
    return jnp.sum(sums <= threshold, axis=0, dtype=jnp.int32)

  def mode(logits: Array) -> Array:
    check(logits)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def log_prob(logits: Array, action: Array) -> Array:
    check(logits)
    chex.assert_equal(logits.shape[:-1], action.shape)
    # A product with a one-hot: the gradient of a gather is a scatter, which is slow on CPU.
    is_action = jax.nn.one_hot(action, num_actions, dtype=bool)
    return jnp.sum(jnp.where(is_action, jax.nn.log_softmax(logits), 0.0), axis=-1)

  def entropy(logits: Array) -> Array:
    check(logits)
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

  def kl(p_logits: Array, q_logits: Array) -> Array:
    check(p_logits, q_logits)
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

  return ActionDistribution(num_actions, sample, mode, log_prob, entropy, kl)


def _gaussian(size: int) -> ActionDistribution:
  check = functools.partial(_check_logits, 2 * size)

  def sample(key: types.Key, logits: Array) -> Array:
    check(logits)
    mean, log_scale = jnp.split(logits, 2, axis=-1)
    noise = threefry.normal(key, mean.shape)
    return jax.lax.stop_gradient(mean + jnp.exp(log_scale) * noise)

  def mode(logits: Array) -> Array:
    check(logits)
    return logits[..., :size]

  def log_prob(logits: Array, action: Array) -> Array:
    check(logits)
    chex.assert_axis_dimension(action, -1, size)
    mean, log_scale = jnp.split(logits, 2, axis=-1)
    squared = jnp.square((action - mean) * jnp.exp(-log_scale))
    return jnp.sum(-0.5 * (squared + math.log(2 * math.pi)) - log_scale, axis=-1)

  def entropy(logits: Array) -> Array:
    check(logits)
    return jnp.sum(logits[..., size:] + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

  def kl(p_logits: Array, q_logits: Array) -> Array:
    check(p_logits, q_logits)
    p_mean, p_log_scale = jnp.split(p_logits, 2, axis=-1)
    q_mean, q_log_scale = jnp.split(q_logits, 2, axis=-1)
    ratio = jnp.exp(2 * (p_log_scale - q_log_scale))
    distance = jnp.square((p_mean - q_mean) * jnp.exp(-q_log_scale))
    return jnp.sum(0.5 * (ratio + distance - 1) + q_log_scale - p_log_scale, axis=-1)

  return ActionDistribution(2 * size, sample, mode, log_prob, entropy, kl)


def _tanh_gaussian(spec: types.ContinuousActions) -> ActionDistribution:
  """The law of m + h tanh((z - m) / h), where z is Gaussian, m the middle and h the half range."""
  base = _gaussian(spec.size)
  middle, half_range = middle_and_half_range(spec)
  nodes, weights = np.polynomial.hermite_e.hermegauss(_NUM_QUADRATURE_POINTS)
  weights = weights / weights.sum()

  def squash(z: Array) -> Array:
    return middle + half_range * jnp.tanh((z - middle) / half_range)

  def log_slope(z: Array) -> Array:
    """Returns log d squash(z) / dz = log(1 - tanh(u)^2), exact for large u."""
    u = (z - middle) / half_range
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))

  def log_prob(logits: Array, action: Array) -> Array:
    normalised = jnp.clip((action - middle) / half_range, -_TANH_LIMIT, _TANH_LIMIT)
    z = middle + half_range * jnp.arctanh(normalised)
    return base.log_prob(logits, z) - jnp.sum(log_slope(z), axis=-1)

  def entropy(logits: Array) -> Array:
    # That of z plus the mean of log_slope, which has no closed form: by Gauss-Hermite quadrature, so
    # that it needs no key and its gradient has no noise.
    base_entropy = base.entropy(logits)
    mean, log_scale = jnp.split(logits[..., None, :], 2, axis=-1)
    z = mean + jnp.exp(log_scale) * jnp.asarray(nodes, logits.dtype)[:, None]  # [..., Q, k]
    slopes = jnp.sum(log_slope(z) * jnp.asarray(weights, logits.dtype)[:, None], axis=(-2, -1))
    return base_entropy + slopes

  return base._replace(
    sample=lambda key, logits: squash(base.sample(key, logits)),
    mode=lambda logits: squash(base.mode(logits)),
    log_prob=log_prob,
    entropy=entropy,
    # A KL divergence is the same before and after an invertible map.
    kl=base.kl,
  )


def _check_logits(num_logits: int, *logits: Array) -> None:
  for array in logits:
    chex.assert_axis_dimension(array, -1, num_logits)
