"""The decoder: embeddings, causal attention over a sliding window, and its key-value cache.

As Gato (Reed et al. 2022, appendix C) but for four things: positions are rotary (Su et al. 2021) and
not learnt, so that a sequence may be longer than the context; the window of attention is the context, so
that decoding from a ring buffer computes what a whole pass computes; a patch is embedded by two dense layers
and not by a residual network; and the bins of continuous values share a smooth function of the value, so that
what is learnt of a bin is learnt of its neighbours.
"""

import math
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from podracer import types

from . import config as config_lib
from . import layout as layout_lib
from . import tokeniser

Array = types.Array

_TURN_BITS = 20
_LONGEST_PERIOD = 10_000.0
_MASKED = -1e30
_NUM_WAVES = 16


class LayerCache(NamedTuple):
  """Rotated keys and values of one block, `[B, W, H, D]`; position p is in slot p modulo W."""

  keys: Array
  values: Array


class Cache(NamedTuple):
  """What decoding remembers of the sequences so far.

  Attributes:
    layers: of each block.
    length: `[B]` int32, tokens of the sequence so far; only the last W of them are kept.
  """

  layers: tuple[LayerCache, ...]
  length: Array


class _Keys(NamedTuple):
  """Keys and values that may be attended to, and their positions, `[B or 1, S]`; < 0 where none is."""

  keys: Array
  values: Array
  positions: Array


def rotate(x: Array, positions: Array) -> Array:
  """Rotates pairs of features by angles in proportion to their positions.

  Su et al. (2021), equation 34. Frequencies are whole multiples of 1 / 2^20 turns, so that the angle is
  exact in 32 bits at any position: a context that never ends loses no precision.

  Args:
    x: `[B, T, H, D]`.
    positions: `[B or 1, T]` int32.
  """
  half = x.shape[-1] // 2
  frequencies = _LONGEST_PERIOD ** (-np.arange(half) / half)  # radians a token
  turns = np.rint(frequencies * 2**_TURN_BITS / (2 * math.pi)).astype(np.uint32)
  # Unsigned products wrap at 2^32, a multiple of a whole turn.
  phase = (positions.astype(jnp.uint32)[..., None] * turns) & jnp.uint32(2**_TURN_BITS - 1)
  angle = phase.astype(jnp.float32) * (2 * math.pi / 2**_TURN_BITS)
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attend(queries: Array, positions: Array, sources: list[_Keys], window: int) -> Array:
  """Attends causally to the last `window` positions, its own with them.

  Args:
    queries: `[B, T, H, D]`, rotated.
    positions: `[B or 1, T]` of the queries.
    sources: of keys; none of their positions is in two of them.
    window: positions that a query sees.

  Returns:
    `[B, T, H, D]`.
  """
  scores = []
  for source in sources:
    score = jnp.einsum("bthd,bshd->bhts", queries, source.keys) / math.sqrt(queries.shape[-1])
    distance = positions[:, :, None] - source.positions[:, None, :]
    is_seen = (distance >= 0) & (distance < window) & (source.positions >= 0)[:, None, :]
    scores.append(jnp.where(is_seen[:, None], score, _MASKED))
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
  ends = np.cumsum([source.keys.shape[1] for source in sources])[:-1]
  parts = jnp.split(weights, ends, axis=-1)
  seen = jnp.zeros_like(queries)
  for part, source in zip(parts, sources, strict=True):
    seen += jnp.einsum("bhts,bshd->bthd", part, source.values)
  return seen


class Block(nn.Module):
  """Attention and a dense layer, each behind a layer norm and added to what it read."""

  config: config_lib.GeneralistConfig

  @nn.compact
  def __call__(self, x: Array, positions: Array, cached: _Keys | None) -> tuple[Array, LayerCache]:
    """Reads `[B, T, width]` at `positions`, `[B or 1, T]`; also returns their own keys and values."""
    width, heads = self.config.width, self.config.num_heads
    # As GPT-2: what is added to the residual stream begins small in a deep network.
    added = nn.initializers.variance_scaling(1.0 / (2 * self.config.num_layers), "fan_in", "normal")
    qkv = nn.Dense(3 * width, use_bias=False, name="qkv")(nn.LayerNorm(name="norm_attention")(x))
    qkv = qkv.reshape(*x.shape[:2], 3, heads, width // heads)
    queries, keys = rotate(qkv[:, :, 0], positions), rotate(qkv[:, :, 1], positions)
    own = LayerCache(keys, qkv[:, :, 2])
    sources = [] if cached is None else [cached]
    seen = attend(queries, positions, [*sources, _Keys(*own, positions)], self.config.context)
    x = x + nn.Dense(width, kernel_init=added, name="out")(seen.reshape(x.shape))
    hidden = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm_dense")(x)))
    return x + nn.Dense(width, kernel_init=added, name="down")(hidden), own


class Decoder(nn.Module):
  """The network of all tasks.

  Attributes:
    config: of the generalist.
    sizes: maxima over the tasks.
  """

  config: config_lib.GeneralistConfig
  sizes: layout_lib.Sizes

  def setup(self) -> None:
    """Makes the parameters."""
    width = self.config.width
    near_one = nn.initializers.normal(1.0 / math.sqrt(width))
    self.tokens = self.param("tokens", near_one, (tokeniser.VOCABULARY, width))
    num_roles = 1 + self.sizes.observation + self.sizes.action
    self.roles = self.param("roles", near_one, (num_roles, width))
    waves = tokeniser.bin_waves(_NUM_WAVES)
    self.smooth = self.param(
      "smooth", nn.initializers.normal(1.0 / math.sqrt(width * _NUM_WAVES)), (waves.shape[1], width)
    )
    area = self.config.patch_size**2
    # One matrix a channel: a task whose images have fewer channels uses the first of them.
    self.patches = self.param(
      "patches",
      nn.initializers.normal(math.sqrt(2.0 / (max(1, self.sizes.channels) * area))),
      (self.sizes.channels, area, 2 * width),
    )
    self.patch_bias = self.param("patch_bias", nn.initializers.zeros, (2 * width,))
    self.patch_out = self.param(
      "patch_out", nn.initializers.normal(1.0 / width), (2 * width, width)
    )
    self.blocks = [Block(self.config) for _ in range(self.config.num_layers)]
    self.norm = nn.LayerNorm()

  def __call__(self, embedded: Array) -> Array:
    """Reads whole sequences.

    Args:
      embedded: `[B, T, width]` from `embed`; T may exceed the context.

    Returns:
      `[B, T, width]`; entry t has seen the last `context` tokens up to and with t.
    """
    positions = jnp.arange(embedded.shape[1], dtype=jnp.int32)[None]
    x = embedded
    for block in self.blocks:
      x, _ = block(x, positions, None)
    return self.norm(x)

  def extend(self, embedded: Array, cache: Cache) -> tuple[Array, Cache]:
    """Reads the next n tokens of sequences; equals `__call__` on all tokens so far.

    Args:
      embedded: `[B, n, width]`, n at most the context.
      cache: of the sequences so far.

    Returns:
      `[B, n, width]`, and the cache with these tokens.
    """
    chex.assert_rank(embedded, 3)
    num_rows, num_new = embedded.shape[:2]
    window = self.config.context
    # An older token of two in one slot would be lost in no particular order.
    chex.assert_axis_dimension_lteq(embedded, 1, window)
    positions = cache.length[:, None] + jnp.arange(num_new, dtype=jnp.int32)
    cached_positions = _cached_positions(cache.length, window)
    rows = jnp.arange(num_rows)[:, None]
    x, layers = embedded, []
    for block, layer in zip(self.blocks, cache.layers, strict=True):
      x, new = block(x, positions, _Keys(*layer, cached_positions))
      written = [old.at[rows, positions % window].set(n) for old, n in zip(layer, new, strict=True)]
      layers.append(LayerCache(*written))
    return self.norm(x), Cache(tuple(layers), cache.length + num_new)

  def embed(self, layout: layout_lib.Layout, tokens: tokeniser.Tokens, start: int = 0) -> Array:
    """Embeds some tokens of each step.

    Args:
      layout: of the task.
      tokens: `[B, S, K']`, with all patches where `start` is 0, else with none.
      start: place in the step of the first of the K' tokens.

    Returns:
      `[B, S * K', width]`.
    """
    ids, num_tokens = tokens.ids, tokens.ids.shape[-1]
    roles = tokeniser.local_positions(layout, self.sizes)[start : start + num_tokens]
    if not self.config.reads_actions:
      is_action = np.arange(start, start + num_tokens) >= layout.action_start
      ids = jnp.where(is_action, tokeniser.SEPARATOR, ids)
    # Scaled to 1 as in Vaswani et al. (2017), section 3.4: the outputs share the matrix.
    x = (self._table()[ids] + self.roles[jnp.asarray(roles)]) * math.sqrt(self.config.width)
    places = tokeniser.patch_places(layout) if start == 0 else ()
    if places:
      kernel = self.patches[: layout.num_channels]
      hidden = jnp.einsum("bsncp,cpw->bsnw", tokens.patches, kernel) + self.patch_bias
      patches = nn.gelu(hidden) @ self.patch_out
      x = x.at[:, :, jnp.asarray(places)].add(patches * math.sqrt(self.config.width))
    return x.reshape(x.shape[0], -1, self.config.width)

  def logits(self, hidden: Array) -> Array:
    """Maps `[..., width]` to `[..., 2048]`, scores of the values and bins."""
    return hidden @ self._table()[: tokeniser.NUM_OUTPUTS].T

  def _table(self) -> Array:
    """Returns `[V, width]`, the embeddings of the vocabulary."""
    bins = slice(tokeniser.NUM_VALUES, tokeniser.NUM_OUTPUTS)
    waves = jnp.asarray(tokeniser.bin_waves(_NUM_WAVES))
    return self.tokens.at[bins].add(waves @ self.smooth)

  def initialise(self, embedded: Array) -> Array:
    """Touches every parameter, for `init`."""
    return self.logits(self(embedded))


def _cached_positions(length: Array, window: int) -> Array:
  """Returns `[B, W]` which position each slot holds, below 0 where it holds none."""
  last = length[:, None] - 1
  return last - (last - jnp.arange(window, dtype=jnp.int32)) % window


def empty_cache(config: config_lib.GeneralistConfig, batch_size: int) -> Cache:
  """Returns the cache of sequences without tokens."""
  shape = (batch_size, config.context, config.num_heads, config.width // config.num_heads)
  layers = tuple(LayerCache(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config.num_layers))
  return Cache(layers, jnp.zeros((batch_size,), jnp.int32))


def select(condition: Array, on_true: Any, on_false: Any) -> Any:
  """Selects rows of two pytrees by `[B]` bools."""

  def one(a: Array, b: Array) -> Array:
    return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(one, on_true, on_false)
