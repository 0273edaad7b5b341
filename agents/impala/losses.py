"""The losses of IMPALA, on one stream `[T]`; callers `vmap` over the batch.

Espeholt et al. (2018), *IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
Architectures*, sections 4.1 and 4.2.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import rlax

from podracer import types

Array = types.Array


class VTrace(NamedTuple):
  """V-trace of one stream, `[T]` each; no gradient flows through them.

  Attributes:
    errors: target v_s - V(x_s).
    advantages: clipped rho_s (r_s + gamma v_{s+1} - V(x_s)).
  """

  errors: Array
  advantages: Array


def vtrace(
  values: Array,
  r_t: Array,
  discount_t: Array,
  log_rho_tm1: Array,
  valid_tm1: Array,
  lambda_: float = 1.0,
  clip_rho: float = 1.0,
  clip_pg_rho: float = 1.0,
) -> VTrace:
  """Computes V-trace targets and policy-gradient advantages, equation (1) and section 4.2.

  A transition that is no experience (a reset) gets importance weight 0: its temporal difference is 0
  and the trace is cut there, so the target before it ends with the value of the last observation.

  Args:
    values: `[T+1]` V(x), the last one the bootstrap.
    r_t: `[T]` rewards on arrival.
    discount_t: `[T]` gamma, or 0 where the episode ended on arrival.
    log_rho_tm1: `[T]` log pi(a|x) - log mu(a|x).
    valid_tm1: `[T]` False where the transition is a reset.
    lambda_: of the traces, in [0, 1].
    clip_rho: rho bar.
    clip_pg_rho: of the weight of the policy gradient.

  Returns:
    Errors and advantages, 0 where not valid.
  """
  chex.assert_rank([values, r_t, discount_t, log_rho_tm1, valid_tm1], 1)
  chex.assert_equal_shape([values[1:], r_t, discount_t, log_rho_tm1, valid_tm1])
  rho_tm1 = jnp.where(valid_tm1, jnp.exp(log_rho_tm1), 0.0)
  values, rho_tm1 = jax.lax.stop_gradient((values, rho_tm1))
  output = rlax.vtrace_td_error_and_advantage(
    v_tm1=values[:-1],
    v_t=values[1:],
    r_t=r_t,
    discount_t=discount_t,
    rho_tm1=rho_tm1,
    lambda_=lambda_,
    clip_rho_threshold=clip_rho,
    clip_pg_rho_threshold=clip_pg_rho,
  )
  return VTrace(errors=output.errors, advantages=output.pg_advantage)


def policy_gradient_loss(log_pi: Array, advantages: Array, valid: Array) -> Array:
  """Returns the mean over `[T]` of -log pi(a|x) * advantage, section 4.2; resets count 0."""
  chex.assert_equal_shape([log_pi, advantages, valid])
  return -jnp.mean(jnp.where(valid, log_pi * advantages, 0.0))


def value_loss(values: Array, targets: Array, valid: Array) -> Array:
  """Returns the mean over `[T]` of (target - V(x))^2 / 2, section 4.2; resets count 0."""
  chex.assert_equal_shape([values, targets, valid])
  return 0.5 * jnp.mean(jnp.where(valid, jnp.square(targets - values), 0.0))


def masked_mean(values: Array, valid: Array) -> Array:
  """Returns the mean over `[T]` with resets counted as 0: a constant denominator, see `Agent.loss`."""
  return jnp.mean(jnp.where(valid, values, 0.0))


def clip_reward(reward: Array, mode: str) -> Array:
  """Clips rewards elementwise: `none`, `unit` (Atari) or `asymmetric` (DMLab, table D.2)."""
  if mode == "unit":
    return jnp.clip(reward, -1.0, 1.0)
  if mode == "asymmetric":
    squashed = jnp.tanh(reward)
    return 0.3 * jnp.minimum(squashed, 0.0) + 5.0 * jnp.maximum(squashed, 0.0)
  return reward
