"""From steps to tokens and back, the same for training and acting; see Reed et al. (2022), section 2.1.

Tokens 0 .. 1023 are discrete values, 1024 .. 2047 the bins of continuous ones, and behind them stand the
separator and the mark of an image patch, whose content is embedded by itself.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from podracer import types
from podracer.data import schema

from . import layout as layout_lib

Array = types.Array

NUM_VALUES = layout_lib.NUM_VALUES
NUM_OUTPUTS = 2 * NUM_VALUES
SEPARATOR = NUM_OUTPUTS
PATCH = NUM_OUTPUTS + 1
VOCABULARY = NUM_OUTPUTS + 2

MU = 100.0
M = 256.0


class Tokens(NamedTuple):
  """Steps of one task as tokens.

  Attributes:
    ids: `[..., K]` int32, K tokens a step; PATCH where an image patch stands.
    patches: `[..., N, C, P * P]` float32, the patches in the order of their tokens; N may be 0.
  """

  ids: Array
  patches: Array


def mu_law(x: Array) -> Array:
  """Compresses to [-1, 1], elementwise: Reed et al. (2022), equation 5, clipped."""
  compressed = jnp.sign(x) * jnp.log(jnp.abs(x) * MU + 1.0) / math.log(M * MU + 1.0)
  return jnp.clip(compressed, -1.0, 1.0)


def inverse_mu_law(y: Array) -> Array:
  """Returns x of y = mu_law(x), for y in [-1, 1]."""
  return jnp.sign(y) * (jnp.power(M * MU + 1.0, jnp.abs(y)) - 1.0) / MU


def to_bins(x: Array) -> Array:
  """Returns the int32 bin in [0, 1024) of continuous values; NaN is in the middle."""
  y = mu_law(jnp.nan_to_num(x.astype(jnp.float32)))
  return jnp.clip(jnp.floor((y + 1.0) * (NUM_VALUES / 2)), 0, NUM_VALUES - 1).astype(jnp.int32)


def from_bins(bins: Array) -> Array:
  """Returns the values in the middles of bins."""
  return inverse_mu_law((bins.astype(jnp.float32) + 0.5) * (2 / NUM_VALUES) - 1.0)


def bin_waves(number: int) -> np.ndarray:
  """Returns `[1024, 2 * number]` cosines and sines of the middles of bins, of 1/2, 1 .. number/2 waves."""
  middles = (np.arange(NUM_VALUES) + 0.5) * (2 / NUM_VALUES) - 1.0
  angles = 0.5 * np.pi * np.outer(middles, np.arange(1, number + 1))
  return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def tokenise(layout: layout_lib.Layout, steps: Mapping[str, Array]) -> Tokens:
  """Returns all tokens of steps.

  Args:
    layout: of the task.
    steps: name of a field -> `[..., *shape]`; `reward` is the one that arrived with the observation.
  """
  context, action = context_tokens(layout, steps), action_tokens(layout, steps[schema.ACTION])
  return context._replace(ids=jnp.concatenate([context.ids, action], axis=-1))


def context_tokens(layout: layout_lib.Layout, steps: Mapping[str, Array]) -> Tokens:
  """Returns the tokens of steps up to and with the separator: all that is known before acting."""
  parts, patches = [], []
  lead = steps[layout.parts[0].name].shape
  lead = lead[: len(lead) - len(layout.parts[0].shape)]
  if layout.has_reward:
    parts.append(NUM_VALUES + to_bins(steps[schema.REWARD])[..., None])
  for part in layout.parts:
    value = steps[part.name]
    if part.kind == "image":
      patches.append(_patches(layout, part, value))
      parts.append(jnp.full((*lead, layout.num_tokens(part)), PATCH, jnp.int32))
    else:
      value = value.reshape(*lead, -1)
      is_discrete = part.kind == "discrete"
      parts.append(_discrete(value) if is_discrete else NUM_VALUES + to_bins(value))
  parts.append(jnp.full((*lead, 1), SEPARATOR, jnp.int32))
  area = layout.patch_size**2
  none = jnp.zeros((*lead, 0, layout.num_channels, area))
  return Tokens(jnp.concatenate(parts, axis=-1), jnp.concatenate([none, *patches], axis=-3))


def action_tokens(layout: layout_lib.Layout, action: Array) -> Array:
  """Returns `[..., action_size]` tokens of actions `[...]` or `[..., k]`."""
  if layout.num_actions:
    return _discrete(action)[..., None]
  return NUM_VALUES + to_bins(action.reshape(*action.shape[: action.ndim - 1], -1))


def zero_action(layout: layout_lib.Layout) -> int:
  """Returns the token of an action 0, which a recording has at the last step of an episode."""
  return 0 if layout.num_actions else NUM_VALUES + NUM_VALUES // 2


def patch_places(layout: layout_lib.Layout) -> tuple[int, ...]:
  """Returns the places of the image patches among the tokens of a step."""
  places: list[int] = []
  place = int(layout.has_reward)
  for part in layout.parts:
    size = layout.num_tokens(part)
    if part.kind == "image":
      places += range(place, place + size)
    place += size
  return tuple(places)


def local_positions(layout: layout_lib.Layout, sizes: layout_lib.Sizes) -> tuple[int, ...]:
  """Returns which of the `1 + sizes.observation + sizes.action` roles each token of a step has.

  Reed et al. (2022), appendix C.3: the position within the observation is embedded; where it ends
  differs by task. Role 0 is that of the reward and of the separator, and an action dimension has its own.
  """
  reward = (0,) if layout.has_reward else ()
  observation = range(1, 1 + layout.observation_tokens)
  start = 1 + sizes.observation
  return (*reward, *observation, 0, *range(start, start + layout.action_size))


def _discrete(value: Array) -> Array:
  return jnp.clip(value.astype(jnp.int32), 0, NUM_VALUES - 1)


def _patches(layout: layout_lib.Layout, part: layout_lib.Part, image: Array) -> Array:
  """Returns `[..., N, C, P * P]` patches in raster order, filled up with zeros."""
  size, (height, width, channels) = layout.patch_size, part.image_shape
  lead = image.shape[: image.ndim - len(part.shape)]
  image = image.astype(jnp.float32) / part.scale
  if part.is_channel_first:
    image = jnp.moveaxis(image, -3, -1)
  image = image.reshape(-1, height, width, channels)
  missing = (layout.num_channels - channels, -height % size, -width % size)
  image = jnp.pad(image, ((0, 0), (0, missing[1]), (0, missing[2]), (0, missing[0])))
  rows, columns = image.shape[1] // size, image.shape[2] // size
  # [B, H, W, C] -> [B, rows, P, columns, P, C] -> [B, rows, columns, C, P, P]
  image = image.reshape(-1, rows, size, columns, size, layout.num_channels)
  image = image.transpose(0, 1, 3, 5, 2, 4)
  return image.reshape(*lead, rows * columns, layout.num_channels, size * size)
