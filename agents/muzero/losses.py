"""The targets and losses of MuZero, on one stream `[T]`; callers `vmap` over the batch.

Schrittwieser et al. (2020), *Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model*,
equation (1) and appendices F and G.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import rlax

from podracer import types

Array = types.Array


class UnrollTargets(NamedTuple):
  """What the model is to predict when unrolled for K steps from each of T time steps.

  Attributes:
    actions: `[T, K]` int32 with which the model is unrolled.
    reward: `[T, K]` on arriving at unroll step 1 .. K.
    value: `[T, K+1]` of unroll step 0 .. K.
    policy: `[T, K+1, A]`, the visit distributions of the searches that acted.
    reward_mask, value_mask, policy_mask: True where there is a target.
    arrival_mask: `[T, K]` True where the action led to a time step of the same episode.
  """

  actions: Array
  reward: Array
  value: Array
  policy: Array
  reward_mask: Array
  value_mask: Array
  policy_mask: Array
  arrival_mask: Array


def value_targets(
  step_type: Array,
  r_t: Array,
  discount_t: Array,
  v_t: Array,
  num_steps: int,
  lambda_: float = 1.0,
) -> Array:
  """Computes the n-step returns z_t, appendix F; the mean of them by lambda, where that is below 1.

  A return stops at a LAST time step, with the value of its observation where it was a truncation.

  Args:
    step_type: `[T+1]`.
    r_t: `[T]` rewards on arrival.
    discount_t: `[T]` gamma, or 0 where the episode ended on arrival; its negative where players
      alternate.
    v_t: `[T]` values of the states arrived at, of the target network.
    num_steps: n.
    lambda_: in [0, 1].

  Returns:
    `[T]` returns of the time steps 0 .. T-1; that of a LAST time step has no meaning.
  """
  chex.assert_rank([step_type, r_t, discount_t, v_t], 1)
  chex.assert_equal_shape([step_type[1:], r_t, discount_t, v_t])
  lambda_t = jnp.where(step_type[1:] == types.LAST, 0.0, lambda_)
  num_steps = min(num_steps, r_t.shape[0])
  return rlax.n_step_bootstrapped_returns(r_t, discount_t, v_t, num_steps, lambda_t)


def unroll_targets(
  timesteps: types.TimeStep,
  action: Array,
  value: Array,
  policy: Array,
  num_unroll_steps: int,
) -> UnrollTargets:
  """Gathers the targets of K unroll steps from every time step, equation (1).

  A time step past the end of an episode is an absorbing state: reward and value are 0, the policy has
  no target, and any action leads back to it: all take turns (appendix G draws them at random, which
  would make the loss of a stream depend on its place in the batch). Past a truncation nothing is known, past the end of
  the stream only what an episode that ended leaves. Nothing is learnt from the reset after LAST.

  Args:
    timesteps: `[T+1]`; observations are not read.
    action: `[T]` int32.
    value: `[T]` targets, see `value_targets`.
    policy: `[T, A]` visit distributions.
    num_unroll_steps: K.

  Returns:
    The targets and their masks.
  """
  length, num_actions = policy.shape
  chex.assert_shape([timesteps.step_type, timesteps.reward, timesteps.discount], (length + 1,))
  chex.assert_shape([action, value], (length,))
  index = jnp.arange(length)[:, None] + jnp.arange(num_unroll_steps + 1)  # [T, K+1]
  at = jnp.minimum(index, length)
  is_last = (timesteps.step_type == types.LAST)[at] & (index <= length)
  is_terminal = is_last & (timesteps.discount == 0)[at]
  # Of the steps before: none of them was LAST; the first LAST of them was the end of the episode.
  in_episode = ~_any_before(is_last)
  is_absorbing = _any_before(in_episode & is_terminal)
  acts = in_episode & ~is_last & (index < length)
  starts = ~is_last[:, :1]

  arrived = (in_episode & (index <= length))[:, 1:]
  acted = jnp.minimum(index, length - 1)
  return UnrollTargets(
    actions=jnp.where(arrived, action[acted[:, :-1]], index[:, 1:] % num_actions).astype(jnp.int32),
    reward=jnp.where(arrived, timesteps.reward[at[:, 1:]], 0.0),
    value=jnp.where(acts, value[acted], 0.0),
    policy=policy[acted],
    reward_mask=starts & (arrived | is_absorbing[:, 1:]),
    value_mask=starts & (acts | (in_episode & is_terminal) | is_absorbing),
    policy_mask=starts & acts,
    arrival_mask=starts & arrived,
  )


def unroll_codes(codes: Array, arrival_mask: Array) -> Array:
  """Gathers the codes of chance for K unroll steps from every time step (Antonoglou et al. 2022).

  Args:
    codes: `[T, C]`, of what became of the action of each time step.
    arrival_mask: `[T, K]`, see `UnrollTargets`; where it is False codes take turns, as actions do.

  Returns:
    `[T, K, C]`.
  """
  length, num_codes = codes.shape
  index = jnp.arange(length)[:, None] + jnp.arange(arrival_mask.shape[1])
  any_code = jax.nn.one_hot((index + 1) % num_codes, num_codes, dtype=codes.dtype)
  return jnp.where(arrival_mask[..., None], codes[jnp.minimum(index, length - 1)], any_code)


def straight_through(probabilities: Array) -> Array:
  """Returns the one-hot code of the likeliest of `[..., C]`, with the gradient of the probabilities."""
  code = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), probabilities.shape[-1])
  return code + probabilities - jax.lax.stop_gradient(probabilities)


def cross_entropy(logits: Array, target: Array) -> Array:
  """Returns the cross-entropy `[...]` of `[..., N]` logits to `[..., N]` probabilities."""
  chex.assert_equal_shape([logits, target])
  return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def entropy(probabilities: Array) -> Array:
  """Returns the entropy of `[..., N]` probabilities, in nats."""
  return jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)


def unroll_weights(num_unroll_steps: int) -> Array:
  """Returns `[K+1]` weights of the losses by unroll step: 1 at the root, 1 / K after; appendix G."""
  return jnp.full((num_unroll_steps + 1,), 1.0 / num_unroll_steps).at[0].set(1.0)


def _any_before(flags: Array) -> Array:
  """Returns, for `[T, K+1]` flags, whether any in a row is True before each."""
  until = jnp.cumsum(flags, axis=1) > 0
  return jnp.concatenate([jnp.zeros_like(until[:, :1]), until[:, :-1]], axis=1)
