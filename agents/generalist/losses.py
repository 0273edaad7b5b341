"""The loss: cross-entropy on the action tokens, and on nothing else."""

import chex
import jax
import jax.numpy as jnp

from podracer import types
from podracer.data import schema, sources

Array = types.Array


def action_mask(steps: dict[str, Array]) -> Array:
  """Returns `[..., S]` True where a step has an action: it is there, and not the last of an episode."""
  return steps[sources.MASK] & ~steps[schema.IS_LAST]


def action_loss(logits: Array, tokens: Array, mask: Array) -> Array:
  """Computes the cross-entropy on the action tokens of one sequence.

  Reed et al. (2022), equation 2: the masking function is 1 at actions and 0 elsewhere. Divided by all
  action tokens that a sequence could have, so that the mean over devices is that of the whole batch.

  Args:
    logits: `[S, k, V]`, from the hidden states before each token.
    tokens: `[S, k]` in [0, V).
    mask: `[S]` of steps that have an action.

  Returns:
    A scalar.
  """
  chex.assert_rank([logits, tokens, mask], [3, 2, 1])
  log_probs = jax.nn.log_softmax(logits)
  taken = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
  return -jnp.sum(jnp.where(mask[:, None], taken, 0.0)) / tokens.size


def accuracy(logits: Array, tokens: Array, mask: Array) -> Array:
  """Returns the share of action tokens `[..., S, k]` that are the likeliest; 0 where there are none."""
  is_right = (jnp.argmax(logits, axis=-1) == tokens) & mask[..., None]
  return jnp.sum(is_right) / jnp.maximum(1, jnp.sum(mask) * tokens.shape[-1])
