"""Heads: from features to the parameters of a policy, and to values."""

import flax.linen as nn
import jax.numpy as jnp

from podracer import distributions, types

from . import dense


class CategoricalHead(nn.Module):
  """Logits of a categorical policy, near 0 at the start; see Andrychowicz et al. (2021), section 3.2."""

  num_actions: int

  @nn.compact
  def __call__(self, features: types.Array) -> types.Array:
    """Maps `[..., F]` to `[..., num_actions]`."""
    return dense.dense(self.num_actions, gain=0.01)(features)


class GaussianHead(nn.Module):
  """Means and logarithms of the scales of a Gaussian policy, in units of the action.

  The scales don't depend on the state; see Schulman et al. (2015), appendix D. In a bounded dimension
  the policy starts at the middle with a scale of half the range, in an unbounded one at 0 with 1.

  Attributes:
    spec: of the actions.
  """

  spec: types.ContinuousActions

  @nn.compact
  def __call__(self, features: types.Array) -> types.Array:
    """Maps `[..., F]` to `[..., 2k]`: k means, then k logarithms of scales."""
    size = self.spec.size
    middle, half_range = distributions.middle_and_half_range(self.spec)
    outputs = dense.dense(size, gain=0.01)(features)
    log_scale = self.param("log_scale", nn.initializers.zeros_init(), (size,))
    mean = middle + half_range * outputs
    log_scale = jnp.broadcast_to(jnp.log(half_range) + log_scale, mean.shape)
    return jnp.concatenate([mean, log_scale], axis=-1)


class ValueHead(nn.Module):
  """Values; its parameters are those of one `Dense_0`, which PopArt rescales."""

  num_values: int = 1

  @nn.compact
  def __call__(self, features: types.Array) -> types.Array:
    """Maps `[..., F]` to `[..., num_values]`."""
    return dense.dense(self.num_values, gain=1.0)(features)


def make_policy_head(spec: types.ActionSpec) -> nn.Module:
  """Returns the head for an action spec, with outputs as `ActorOutput.logits` documents them."""
  if isinstance(spec, types.DiscreteActions):
    return CategoricalHead(spec.num_actions)
  return GaussianHead(spec)
