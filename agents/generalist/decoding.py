"""Acting: the action tokens of a step, one after the other."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import distributions, types
from podracer.data import schema

from . import layout as layout_lib
from . import network, tokeniser

Array = types.Array


def valid_tokens(layout: layout_lib.Layout, spec: types.ActionSpec) -> np.ndarray:
  """Returns `[k, V]` bool: which tokens stand for an action there is.

  A bin of a continuous action is one where part of it lies within the bounds.
  """
  valid = np.zeros((layout.action_size, tokeniser.NUM_OUTPUTS), bool)
  if isinstance(spec, types.DiscreteActions):
    valid[:, : spec.num_actions] = True
    return valid
  for dimension, bounds in enumerate(zip(spec.minimum, spec.maximum, strict=True)):
    with jax.ensure_compile_time_eval():
      low, high = (int(b) for b in tokeniser.to_bins(jnp.asarray(bounds, jnp.float32)))
    valid[dimension, tokeniser.NUM_VALUES + low : tokeniser.NUM_VALUES + high + 1] = True
  return valid


def decode_action(
  decoder: network.Decoder,
  layout: layout_lib.Layout,
  spec: types.EnvironmentSpec,
  params: types.Params,
  key: types.Key,
  timestep: types.TimeStep,
  cache: network.Cache,
  explore: bool,
) -> tuple[types.ActorOutput, network.Cache]:
  """Reads a time step and decodes its action.

  Args:
    decoder: the network.
    layout: of the task.
    spec: of the environment.
    params: of the network.
    key: of the sampling.
    timestep: `[B, ...]`.
    cache: of what was before it.
    explore: True samples, False takes the likeliest token; of a continuous action the mean, for the
      likeliest of bins that are wide where values are large is no likely value.

  Returns:
    What the agent says, and the cache with the whole step. At a LAST time step, whose action is ignored,
    the cache has zeros for it, as a recording has.
  """
  steps = {**schema.flatten_observation(timestep.observation), schema.REWARD: timestep.reward}
  known = tokeniser.context_tokens(layout, steps)
  known = jax.tree.map(lambda x: x[:, None], known)  # [B, ...] -> [B, 1, ...]
  embed: Any = functools.partial(decoder.apply, params, layout, method="embed")
  extend: Any = functools.partial(decoder.apply, params, method="extend")
  hidden, cache = extend(embed(known), cache)
  valid = _valid(layout, spec, timestep)
  logits, taken = [], []
  for dimension, token_key in enumerate(jax.random.split(key, layout.action_size)):
    scores: Any = decoder.apply(params, hidden[:, -1], method="logits")
    logits.append(distributions.mask_logits(scores, valid[:, dimension]))
    if explore:
      token = jax.random.categorical(token_key, logits[-1])
    elif layout.num_actions:
      token = jnp.argmax(logits[-1], axis=-1)
    else:
      token = _mean_bin(spec.action, dimension, scores)
    taken.append(token.astype(jnp.int32))
    written = jnp.where(timestep.is_last(), tokeniser.zero_action(layout), taken[-1])
    tokens = tokeniser.Tokens(written[:, None, None], known.patches[:, :, :0])
    hidden, cache = extend(embed(tokens, layout.action_start + dimension), cache)
  return _output(layout, jnp.stack(logits, axis=1), jnp.stack(taken, axis=1)), cache


def _valid(
  layout: layout_lib.Layout, spec: types.EnvironmentSpec, timestep: types.TimeStep
) -> Array:
  """Returns `[B, k, V]` bool: the valid tokens, and where the observation has a mask the legal ones."""
  valid = jnp.asarray(valid_tokens(layout, spec.action))
  valid = jnp.broadcast_to(valid, (timestep.reward.shape[0], *valid.shape))
  legal = types.action_mask(timestep.observation)
  if legal is None or not layout.num_actions:
    return valid
  # Where an episode has ended no action may be legal, and the one that is ignored must still be valid.
  legal = legal.astype(bool) | ~jnp.any(legal, axis=-1, keepdims=True)
  return valid.at[:, 0, : layout.num_actions].set(legal)


def _output(layout: layout_lib.Layout, logits: Array, tokens: Array) -> types.ActorOutput:
  """Returns what an agent says, from masked `[B, k, V]` logits and the `[B, k]` tokens taken."""
  log_probs = jax.nn.log_softmax(logits)
  log_prob = jnp.sum(jnp.take_along_axis(log_probs, tokens[..., None], axis=-1), axis=(1, 2))
  if layout.num_actions:
    action, said = tokens[:, 0], logits[:, 0, : layout.num_actions]
  else:
    action = tokeniser.from_bins(tokens - tokeniser.NUM_VALUES)
    said = _moments(log_probs[..., tokeniser.NUM_VALUES :])
  return types.ActorOutput(
    action=action, logits=said, log_prob=log_prob, value=jnp.zeros_like(log_prob)
  )


def _mean_bin(spec: types.ActionSpec, dimension: int, scores: Array) -> Array:
  """Returns the tokens of the means of distributions over bins, given `[B, V]` logits, within bounds."""
  assert isinstance(spec, types.ContinuousActions)
  mean = _moments(jax.nn.log_softmax(scores[:, None, tokeniser.NUM_VALUES :]))[:, 0]
  mean = jnp.clip(mean, spec.minimum[dimension], spec.maximum[dimension])
  return tokeniser.NUM_VALUES + tokeniser.to_bins(mean)


def _moments(log_probs: Array) -> Array:
  """Returns `[B, 2k]` means and logarithms of scales of distributions over bins `[B, k, 1024]`."""
  middles = tokeniser.from_bins(jnp.arange(tokeniser.NUM_VALUES))
  probs = jnp.exp(log_probs)
  mean = probs @ middles
  variance = jnp.sum(probs * jnp.square(middles - mean[..., None]), axis=-1)
  return jnp.concatenate([mean, 0.5 * jnp.log(variance + 1e-12)], axis=-1)
