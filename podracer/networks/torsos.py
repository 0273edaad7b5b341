"""Torsos: from an observation of any spec to a vector of features.

A torso reads every entry of the observation by the kind that suits it (`make_torso`), lays the results
side by side and passes them through dense layers, in which the entries meet.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from podracer import config as config_lib
from podracer import types

from . import convolution, dense, initializers

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
  """Dense layers with kernels of gain sqrt(2), each followed by the nonlinearity.

  Attributes:
    sizes: widths.
    activation: name of the nonlinearity.
    input_scale: by which inputs of bytes are multiplied.
  """

  sizes: Sequence[int]
  activation: str = "relu"
  input_scale: float = 1.0

  @nn.compact
  def __call__(self, inputs: types.Array) -> types.Array:
    """Maps `[B, F]` floats or bytes to `[B, sizes[-1]]`."""
    chex.assert_rank(inputs, 2)
    gain = math.sqrt(2.0)
    for i, size in enumerate(self.sizes):
      if inputs.dtype == jnp.uint8:
        kernel_init = initializers.scaled(gain)
        layer: nn.Module = _ByteDense(size, self.input_scale, kernel_init, name=f"Dense_{i}")
      else:
        layer = dense.dense(size, gain, name=f"Dense_{i}")
      inputs = _ACTIVATIONS[self.activation](layer(inputs))
    return inputs


class _ByteDense(nn.Module):
  """`nn.Dense` of bytes times a scale, with its parameters."""

  features: int
  input_scale: float
  kernel_init: Callable[..., types.Array]

  @nn.compact
  def __call__(self, inputs: types.Array) -> types.Array:
    kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
    return convolution.dense(inputs, kernel) * self.input_scale + bias


class ConvStack(nn.Module):
  """3x3 convolutions at full resolution, for grid worlds."""

  channels: Sequence[int]
  activation: str = "relu"
  input_scale: float = 1.0

  @nn.compact
  def __call__(self, images: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` to `[B, H, W, channels[-1]]`."""
    scales = _first(self.input_scale)
    for channels in self.channels:
      activation = _ACTIVATIONS[self.activation]
      images = convolution.Conv(channels, input_scale=next(scales), activation=activation)(images)
    return images


class NatureCNN(nn.Module):
  """The convolutions of DQN; see Mnih et al. (2015), Methods, "Model architecture"."""

  activation: str = "relu"
  input_scale: float = 1.0

  @nn.compact
  def __call__(self, images: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` to `[B, H', W', 64]`, 7 x 7 from 84 x 84."""
    scales = _first(self.input_scale)
    for channels, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
      conv = convolution.Conv(
        channels,
        (size, size),
        (stride, stride),
        padding="VALID",
        input_scale=next(scales),
        activation=_ACTIVATIONS[self.activation],
      )
      images = conv(images)
    return images


class ImpalaResNet(nn.Module):
  """The deep residual network of IMPALA; see Espeholt et al. (2018), figure 3, right.

  Attributes:
    channels: of each section; a section halves the image.
    num_blocks: residual blocks in a section.
    activation: name of the nonlinearity.
    input_scale: by which the images are multiplied.
  """

  channels: Sequence[int]
  num_blocks: int = 2
  activation: str = "relu"
  input_scale: float = 1.0

  @nn.compact
  def __call__(self, images: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` to `[B, H', W', channels[-1]]`, H' = ceil(H / 2^sections)."""
    activate = _ACTIVATIONS[self.activation]
    scales = _first(self.input_scale)
    for channels in self.channels:
      conv = convolution.Conv(channels, input_scale=next(scales))
      images = convolution.max_pool(conv(images))
      for _ in range(self.num_blocks):
        residual = convolution.Conv(channels)(activate(images))
        images = images + convolution.Conv(channels)(activate(residual))
    return activate(images)


def _first(scale: float) -> Iterator[float]:
  """Yields the scale of the first layer's inputs, and 1 for every other."""
  yield scale
  while True:
    yield 1.0


class Reader(nn.Module):
  """Reads one entry of an observation into a vector.

  Attributes:
    spec: of the entry.
    image_torso: for an image, the module from `[B, H, W, C]` to `[B, H', W', C']`, which scales bytes
      itself; else None.
    keeps_bytes: True leaves bytes to the dense layers.
  """

  spec: types.ArraySpec
  image_torso: nn.Module | None = None
  keeps_bytes: bool = False

  def __call__(self, entry: types.Array) -> types.Array:
    """Maps `[B, *spec.shape]` to `[B, F]` float32."""
    chex.assert_shape(entry, (None, *self.spec.shape))
    num_values = _num_one_hot(self.spec)
    if num_values:
      return jax.nn.one_hot(entry.astype(jnp.int32) - int(self.spec.minimum or 0), num_values)
    values = entry
    if not (_is_bytes(self.spec) and (self.keeps_bytes or self.image_torso is not None)):
      values = entry.astype(jnp.float32) * input_scale(self.spec)
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
  # Bytes stay bytes as far as they can: as floats a batch of pictures is four times the memory.
  (spec, *others) = entries.values()
  keeps_bytes = not others and _is_bytes(spec) and bool(config.hidden_sizes)
  readers = []
  for name, entry in entries.items():
    image_torso = _make_image_torso(config, entry) if name in images else None
    readers.append(Reader(entry, image_torso, keeps_bytes and image_torso is None))
  mlp = MLP(config.hidden_sizes, config.activation, input_scale(spec) if keeps_bytes else 1.0)
  return Torso(tuple(entries), tuple(readers), mlp)


def _make_image_torso(config: config_lib.NetworkConfig, spec: types.ArraySpec) -> nn.Module | None:
  shape = spec.shape
  sides = shape[1:] if _is_channel_first(shape) else shape[:2]
  kind: str = config.torso
  if kind == "auto":
    kind = "conv" if max(sides) < _SMALL_IMAGE else "impala_resnet"
  if kind == "mlp":
    return None
  if kind == "conv":
    return ConvStack(config.conv_channels, config.activation, input_scale(spec))
  if kind == "impala_resnet":
    return ImpalaResNet(
      config.resnet_channels, config.resnet_blocks, config.activation, input_scale(spec)
    )
  if min(sides) < _SMALL_IMAGE:
    raise config_lib.InputError(
      f"torso nature_cnn reads images of at least {_SMALL_IMAGE}x{_SMALL_IMAGE}, this observation"
      f" has shape {tuple(shape)}; valid torsos: auto, mlp, conv, impala_resnet"
    )
  return NatureCNN(config.activation, input_scale(spec))


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


def _is_bytes(spec: types.ArraySpec) -> bool:
  return jnp.dtype(spec.dtype) == jnp.uint8


def input_scale(spec: types.ArraySpec) -> float:
  """Returns by what an entry of this spec is multiplied: bytes come to [0, 1]."""
  return 1.0 / (spec.maximum or 255) if _is_bytes(spec) else 1.0


def _is_image(spec: types.ArraySpec) -> bool:
  return len(spec.shape) == 3


def _is_channel_first(shape: tuple[int, ...]) -> bool:
  return len(shape) == 3 and shape[0] < shape[1] == shape[2]
