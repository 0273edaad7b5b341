"""Torsos: from an observation of any spec to a vector of features.

A torso reads every entry of the observation by the kind that suits it (`make_torso`), lays the results
side by side and passes them through dense layers, in which the entries meet.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from podracer import config as config_lib
from podracer import types

from . import convolution, initializers

_SMALL_IMAGE = 36
"""Sides from which `auto` takes `impala_resnet`; also the least that `nature_cnn` can read."""
_MAX_ONE_HOT = 4096
"""An integer with more values is read as one number."""
_ACTIVATIONS: dict[str, Callable[[types.Array], types.Array]] = {
  "relu": nn.relu,
  "tanh": nn.tanh,
  "gelu": nn.gelu,
  "silu": nn.silu,
}


class MLP(nn.Module):
  """Dense layers with kernels of gain sqrt(2), each followed by the nonlinearity."""

  sizes: Sequence[int]
  activation: str = "relu"

  @nn.compact
  def __call__(self, inputs: types.Array) -> types.Array:
    """Maps `[B, F]` to `[B, sizes[-1]]`."""
    chex.assert_rank(inputs, 2)
    for size in self.sizes:
      dense = nn.Dense(size, kernel_init=initializers.scaled(math.sqrt(2.0)))
      inputs = _ACTIVATIONS[self.activation](dense(inputs))
    return inputs


class ConvStack(nn.Module):
  """3x3 convolutions at full resolution, for grid worlds."""

  channels: Sequence[int]
  activation: str = "relu"

  @nn.compact
  def __call__(self, images: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` to `[B, H, W, channels[-1]]`."""
    for channels in self.channels:
      images = _ACTIVATIONS[self.activation](convolution.Conv(channels)(images))
    return images


class NatureCNN(nn.Module):
  """The convolutions of DQN; see Mnih et al. (2015), Methods, "Model architecture"."""

  activation: str = "relu"

  @nn.compact
  def __call__(self, images: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` to `[B, H', W', 64]`, 7 x 7 from 84 x 84."""
    for channels, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
      conv = convolution.Conv(channels, (size, size), (stride, stride), padding="VALID")
      images = _ACTIVATIONS[self.activation](conv(images))
    return images


class ImpalaResNet(nn.Module):
  """The deep residual network of IMPALA; see Espeholt et al. (2018), figure 3, right.

  Attributes:
    channels: of each section; a section halves the image.
    num_blocks: residual blocks in a section.
    activation: name of the nonlinearity.
  """

  channels: Sequence[int]
  num_blocks: int = 2
  activation: str = "relu"

  @nn.compact
  def __call__(self, images: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` to `[B, H', W', channels[-1]]`, H' = ceil(H / 2^sections)."""
    activate = _ACTIVATIONS[self.activation]
    for channels in self.channels:
      images = convolution.max_pool(convolution.Conv(channels)(images))
      for _ in range(self.num_blocks):
        residual = convolution.Conv(channels)(activate(images))
        images = images + convolution.Conv(channels)(activate(residual))
    return activate(images)


class Reader(nn.Module):
  """Reads one entry of an observation into a vector.

  Attributes:
    spec: of the entry.
    image_torso: for an image, the module from `[B, H, W, C]` to `[B, H', W', C']`; else None.
  """

  spec: types.ArraySpec
  image_torso: nn.Module | None = None

  def __call__(self, entry: types.Array) -> types.Array:
    """Maps `[B, *spec.shape]` to `[B, F]` float32."""
    chex.assert_shape(entry, (None, *self.spec.shape))
    num_values = _num_one_hot(self.spec)
    if num_values:
      return jax.nn.one_hot(entry.astype(jnp.int32) - int(self.spec.minimum or 0), num_values)
    values = entry.astype(jnp.float32)
    if jnp.dtype(self.spec.dtype) == jnp.uint8:
      values = values * (1.0 / (self.spec.maximum or 255))
    if self.image_torso is not None:
      if _is_channel_first(self.spec.shape):
        values = jnp.moveaxis(values, 1, -1)
      values = self.image_torso(values)
    return values.reshape(values.shape[0], -1)


class Torso(nn.Module):
  """A reader for every entry of an observation, and dense layers behind them all.

  Attributes:
    names: of the entries, as `_entries` gives them.
    readers: of the entries.
    mlp: the dense layers.
  """

  names: Sequence[str]
  readers: Sequence[nn.Module]
  mlp: nn.Module

  def __call__(self, observation: types.Observation) -> types.Array:
    """Maps a pytree of `[B, ...]` to `[B, F]` float32."""
    entries = _entries(observation)
    features = [
      reader(entries[name]) for name, reader in zip(self.names, self.readers, strict=True)
    ]
    return self.mlp(jnp.concatenate(features, axis=-1))


def make_torso(
  config: config_lib.NetworkConfig, observation_spec: Any, num_tasks: int = 1
) -> nn.Module:
  """Builds the torso for an observation.

  An image is an entry of three axes, channels last, or first where the first axis is the smallest and
  the others are equal (frame stacks). A uint8 entry is divided by its maximum, 255 where unknown. An
  integer scalar of known maximum becomes one-hot. Everything else is flattened.

  Args:
    config: of the network.
    observation_spec: pytree of ArraySpec; `types.ACTION_MASK` is no input.
    num_tasks: values of an entry `task_id` whose spec doesn't bound it.

  Returns:
    A module from observations `[B, ...]` to features `[B, F]` float32.

  Raises:
    ValueError: if `config.torso` fits no entry of the observation.
  """
  entries = _entries(observation_spec)
  if not entries:
    raise config_lib.InputError("the observation has no entry for a torso to read")
  if "task_id" in entries and entries["task_id"].maximum is None:
    entries["task_id"] = entries["task_id"]._replace(maximum=num_tasks - 1)
  images = {name: spec for name, spec in entries.items() if _is_image(spec)}
  if config.torso not in ("auto", "mlp") and not images:
    shapes = ", ".join(str(tuple(spec.shape)) for spec in entries.values())
    raise config_lib.InputError(
      f"torso {config.torso} reads images [H, W, C], this observation has shape {shapes};"
      " valid torsos: auto, mlp"
    )
  readers = [
    Reader(spec, _make_image_torso(config, spec.shape) if name in images else None)
    for name, spec in entries.items()
  ]
  return Torso(tuple(entries), tuple(readers), MLP(config.hidden_sizes, config.activation))


def _make_image_torso(config: config_lib.NetworkConfig, shape: tuple[int, ...]) -> nn.Module | None:
  sides = shape[1:] if _is_channel_first(shape) else shape[:2]
  kind: str = config.torso
  if kind == "auto":
    kind = "conv" if max(sides) < _SMALL_IMAGE else "impala_resnet"
  if kind == "mlp":
    return None
  if kind == "conv":
    return ConvStack(config.conv_channels, config.activation)
  if kind == "impala_resnet":
    return ImpalaResNet(config.resnet_channels, config.resnet_blocks, config.activation)
  if min(sides) < _SMALL_IMAGE:
    raise config_lib.InputError(
      f"torso nature_cnn reads images of at least {_SMALL_IMAGE}x{_SMALL_IMAGE}, this observation"
      f" has shape {tuple(shape)}; valid torsos: auto, mlp, conv, impala_resnet"
    )
  return NatureCNN(config.activation)


def _entries(tree: Any) -> dict[str, Any]:
  """Returns the leaves by name, `a/b` for `tree["a"]["b"]`, sorted; without the action mask."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=types.is_array_spec)
  named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
  return {name: named[name] for name in sorted(named) if name != types.ACTION_MASK}


def _num_one_hot(spec: types.ArraySpec) -> int:
  """Returns the number of values of an integer scalar, 0 for anything else."""
  if spec.shape or spec.maximum is None or not jnp.issubdtype(spec.dtype, jnp.integer):
    return 0
  num_values = int(spec.maximum - (spec.minimum or 0)) + 1
  return num_values if num_values <= _MAX_ONE_HOT else 0


def _is_image(spec: types.ArraySpec) -> bool:
  return len(spec.shape) == 3


def _is_channel_first(shape: tuple[int, ...]) -> bool:
  return len(shape) == 3 and shape[0] < shape[1] == shape[2]
