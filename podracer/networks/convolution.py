"""Convolution and max-pooling that are fast on every platform, with the parameters of `nn.Conv`.

XLA's CPU backend differentiates a convolution inside a loop 4 to 20 times slower than outside, and
both machines train inside loops. So on CPU a convolution is lowered to copies and one matrix product;
elsewhere it is `lax.conv_general_dilated`. Parameters, outputs and gradients are the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from podracer import types

Padding = tuple[tuple[int, int], tuple[int, int]]

_MIN_TILE_WIDTH = 32
"""A tile is widened until the matrix has this many columns; a narrower product is slower."""
_MAX_PATCH_ELEMENTS = 1 << 18
"""Larger batches are cut: patches that leave the cache cost more than their product."""


_MIN_PATCHES_TO_MATRIX = 4
"""Every chunk reads the whole matrix, too: its patches have this many times as many elements at least."""


class Conv(nn.Module):
  """A 2-D convolution with the parameters (`kernel`, `bias`) and the results of `nn.Conv`.

  Attributes:
    features: channels of the output.
    kernel_size: height and width of the kernel.
    strides: vertical and horizontal.
    padding: `SAME` or `VALID`.
    use_bias: whether a bias is added.
    input_scale: by which the inputs are multiplied; with it bytes can be given as they are.
    kernel_init: initialiser of the `[h, w, in, out]` kernel.
    bias_init: initialiser of the `[out]` bias.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  padding: str = "SAME"
  use_bias: bool = True
  input_scale: float = 1.0
  kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
  bias_init: Callable[..., Any] = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, inputs: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` floats, bytes or bools to `[B, H', W', features]`."""
    chex.assert_rank(inputs, 4)
    shape = (*self.kernel_size, inputs.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    # Scaling the kernel does it, and costs nothing.
    outputs = convolve(inputs, kernel * self.input_scale, self.strides, self.padding)
    if self.use_bias:
      outputs = outputs + self.param("bias", self.bias_init, (self.features,))
    return outputs


def convolve(
  inputs: types.Array,
  kernel: types.Array,
  strides: tuple[int, int] = (1, 1),
  padding: str = "SAME",
) -> types.Array:
  """Convolves images with a kernel, lowered by platform. Reverse mode only: it has no jvp.

  Args:
    inputs: `[B, H, W, C]` floats, or bools or integers, which get no gradient. Bytes are copied as bytes,
      and become floats a cacheful at a time.
    kernel: `[h, w, C, O]` floats.
    strides: vertical and horizontal.
    padding: `SAME` or `VALID`.

  Returns:
    `[B, H', W', O]`.
  """
  chex.assert_rank([inputs, kernel], 4)
  chex.assert_equal(inputs.shape[3], kernel.shape[2])
  if inputs.dtype == bool:
    # Its planes are small, and copied faster as floats.
    inputs = inputs.astype(kernel.dtype)
  pads = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], strides, padding)
  return _convolve(inputs, kernel, tuple(strides), tuple((int(a), int(b)) for a, b in pads))


def dense(inputs: types.Array, kernel: types.Array) -> types.Array:
  """Multiplies vectors by a matrix: a convolution of images of one pixel, and as good for bytes.

  Args:
    inputs: `[B, F]` floats or integers, see `convolve`.
    kernel: `[F, O]` floats.

  Returns:
    `[B, O]`.
  """
  chex.assert_rank([inputs, kernel], 2)
  return convolve(inputs[:, None, None, :], kernel[None, None])[:, 0, 0]


def max_pool(inputs: types.Array) -> types.Array:
  """Takes the maximum of 3x3 windows at stride 2 with SAME padding, as `nn.max_pool` does.

  Maxima of strided slices, rows before columns: the gradient of XLA's window reduction (a select and
  scatter) is slow on CPU. Where values tie, the gradient is shared among them instead of going to the
  first.

  Args:
    inputs: `[B, H, W, C]` floats.

  Returns:
    `[B, ceil(H/2), ceil(W/2), C]`.
  """
  chex.assert_rank(inputs, 4)
  return _max_pool_axis(_max_pool_axis(inputs, 1), 2)


def _max_pool_axis(x: types.Array, axis: int) -> types.Array:
  size = x.shape[axis]
  half = (size + 1) // 2
  low = size % 2  # SAME: an odd size is padded on both sides, an even one behind.
  pads = [(0, 0, 0)] * x.ndim
  pads[axis] = (low, 2 * half + 1 - size - low, 0)
  x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads)
  first, second, third = (
    lax.slice_in_dim(x, i, i + 2 * half - 1, stride=2, axis=axis) for i in range(3)
  )
  return jnp.maximum(jnp.maximum(first, second), third)


# The derivative rule stands outside of the choice of platform. Were each branch differentiated by
# JAX, the choice would carry the intermediate arrays of both branches from forward to backward.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: types.Array, kernel: types.Array, strides: Any, pads: Padding) -> types.Array:
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_as_matrix_product, strides=strides, pads=pads),
    default=functools.partial(_as_convolution, strides=strides, pads=pads),
  )


def _convolve_forward(x: types.Array, kernel: types.Array, strides: Any, pads: Padding) -> Any:
  return _convolve(x, kernel, strides, pads), (x, kernel)


def _convolve_backward(strides: Any, pads: Padding, residuals: Any, cotangent: types.Array) -> Any:
  def pull_back(function: Callable[..., types.Array]) -> Callable[..., Any]:
    return lambda x, kernel, ct: jax.vjp(
      functools.partial(function, strides=strides, pads=pads), x, kernel
    )[1](ct)

  def gradient(index: int) -> types.Array:
    return lax.platform_dependent(
      *residuals,
      cotangent,
      cpu=lambda *args: pull_back(_as_matrix_product)(*args)[index],
      default=lambda *args: pull_back(_as_convolution)(*args)[index],
    )

  # Two choices, so that XLA drops the first where the inputs are data.
  is_float = jnp.issubdtype(residuals[0].dtype, jnp.floating)
  return gradient(0) if is_float else None, gradient(1)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _as_convolution(
  x: types.Array, kernel: types.Array, strides: Any, pads: Padding
) -> types.Array:
  dimensions = ("NHWC", "HWIO", "NHWC")
  x = x.astype(kernel.dtype)
  return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=dimensions)


def _as_matrix_product(
  x: types.Array, kernel: types.Array, strides: Any, pads: Padding
) -> types.Array:
  """Convolves by copies and one matrix product; a strided one becomes an unstrided one first."""
  if strides != (1, 1):
    x, kernel = _space_to_depth(x, kernel, strides, pads)
    pads = ((0, 0), (0, 0))
  return _unstrided(x, kernel, pads)


def _space_to_depth(x: types.Array, kernel: types.Array, strides: Any, pads: Padding) -> Any:
  """Folds a stride into the channels: `[B, H, W, C]` to `[B, H/s, W/s, s*s*C]`, the kernel alike.

  Returns:
    Images and kernel whose VALID convolution at stride 1 is the given convolution.
  """
  x_pads, kernel_pads = [(0, 0, 0)], []
  for axis, (stride, (low, high)) in enumerate(zip(strides, pads, strict=True)):
    size, window = x.shape[1 + axis], kernel.shape[axis]
    num_outputs = (size + low + high - window) // stride + 1
    num_blocks = -(-window // stride)
    x_pads.append((low, (num_outputs + num_blocks - 1) * stride - size - low, 0))
    kernel_pads.append((0, num_blocks * stride - window, 0))
  zero = jnp.zeros((), x.dtype)
  x = lax.pad(x, zero, [*x_pads, (0, 0, 0)])  # A negative padding crops what no window reaches.
  kernel = lax.pad(kernel, zero.astype(kernel.dtype), [*kernel_pads, (0, 0, 0), (0, 0, 0)])
  (s, t), (b, h, w, c), (i, j, _, o) = strides, x.shape, kernel.shape
  x = x.reshape(b, h // s, s, w // t, t, c).transpose(0, 1, 3, 2, 4, 5)
  kernel = kernel.reshape(i // s, s, j // t, t, c, o).transpose(0, 2, 1, 3, 4, 5)
  return x.reshape(b, h // s, w // t, -1), kernel.reshape(i // s, j // t, -1, o)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unstrided(x: types.Array, kernel: types.Array, pads: Padding) -> types.Array:
  tile = _tile_width(x.shape[2] + sum(pads[1]) - kernel.shape[1] + 1, kernel.shape[3])
  matrix = _banded(kernel, tile)

  def convolve_chunk(chunk: types.Array) -> types.Array:
    patches, shape = _patches(chunk, kernel.shape, tile, pads)
    return (patches.astype(kernel.dtype) @ matrix).reshape(shape)

  num_chunks = _num_chunks(x, kernel.shape, tile, pads)
  if num_chunks == 1:
    return convolve_chunk(x)
  outputs = lax.map(convolve_chunk, _split(x, num_chunks))
  return outputs.reshape(x.shape[0], *outputs.shape[2:])


def _unstrided_forward(x: types.Array, kernel: types.Array, pads: Padding) -> Any:
  return _unstrided(x, kernel, pads), (x, kernel)


def _unstrided_backward(pads: Padding, residuals: Any, cotangent: types.Array) -> Any:
  x, kernel = residuals
  tile = _tile_width(cotangent.shape[2], kernel.shape[3])

  def matrix_gradient(chunk: types.Array, cotangent: types.Array) -> types.Array:
    # The patches are built again: to keep them costs more memory traffic than to copy them.
    patches, _ = _patches(chunk, kernel.shape, tile, pads)
    patches = patches.astype(kernel.dtype)
    return patches.T @ cotangent.reshape(patches.shape[0], -1)

  num_chunks = _num_chunks(x, kernel.shape, tile, pads)
  if num_chunks == 1:
    matrix_bar = matrix_gradient(x, cotangent)
  else:
    matrix_bar, _ = lax.scan(
      lambda total, chunk: (total + matrix_gradient(*chunk), None),
      jnp.zeros_like(_banded(kernel, tile)),
      (_split(x, num_chunks), _split(cotangent, num_chunks)),
    )
  (kernel_bar,) = jax.linear_transpose(lambda k: _banded(k, tile), kernel)(matrix_bar)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return None, kernel_bar
  # The gradient to the inputs is a convolution with the kernel turned round: again one product,
  # where the transpose of the copies would be a sum of as many padded arrays.
  full_pads = tuple(
    (size - 1 - low, size - 1 - high)
    for size, (low, high) in zip(kernel.shape[:2], pads, strict=True)
  )
  x_bar = _unstrided(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), full_pads)
  return x_bar, kernel_bar


_unstrided.defvjp(_unstrided_forward, _unstrided_backward)


def _tile_width(width: int, features: int) -> int:
  """Returns the number of neighbouring outputs, a divisor of `width`, computed from one patch."""
  divisors = [tile for tile in range(1, width + 1) if width % tile == 0]
  wide = [tile for tile in divisors if tile * features >= _MIN_TILE_WIDTH]
  return wide[0] if wide else width


def _num_chunks(x: types.Array, kernel_shape: tuple[int, ...], tile: int, pads: Padding) -> int:
  """Returns the least divisor of the batch that lets the patches of a chunk stay in the cache."""
  size = x.shape[0]
  shape = jax.eval_shape(lambda x: _patches(x, kernel_shape, tile, pads)[0], x).shape
  matrix_elements = shape[1] * tile * kernel_shape[3]
  most = max(_MAX_PATCH_ELEMENTS, _MIN_PATCHES_TO_MATRIX * matrix_elements)
  for num_chunks in range(1, size + 1):
    if size % num_chunks == 0 and math.prod(shape) <= num_chunks * most:
      return num_chunks
  return size


def _split(x: types.Array, num_chunks: int) -> types.Array:
  """Cuts the leading axis: `[B, ...]` to `[num_chunks, B / num_chunks, ...]`."""
  return x.reshape(num_chunks, x.shape[0] // num_chunks, *x.shape[1:])


def _patches(
  x: types.Array, kernel_shape: tuple[int, ...], tile: int, pads: Padding
) -> tuple[types.Array, tuple[int, ...]]:
  """Copies what each tile of `1 x tile` outputs reads into one row.

  Returns:
    `[B * H' * W'/tile, h * (tile+w-1) * C]`, and the shape `[B, H', W', O]` of the outputs.
  """
  kernel_height, kernel_width, channels, features = kernel_shape
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in pads), (0, 0, 0)])
  size, padded_height, padded_width, _ = x.shape
  height, width = padded_height - kernel_height + 1, padded_width - kernel_width + 1
  # Rows are flat, so that a copy is one run of memory as long as it can be.
  rows = x.reshape(size, padded_height, padded_width * channels)
  window = (tile + kernel_width - 1) * channels
  slices = [
    rows[:, i : i + height, j * channels : j * channels + window]
    for j in range(0, width, tile)
    for i in range(kernel_height)
  ]
  patches = jnp.concatenate(slices, axis=-1)
  num_patches = size * height * (width // tile)
  return patches.reshape(num_patches, kernel_height * window), (size, height, width, features)


def _banded(kernel: types.Array, tile: int) -> types.Array:
  """Writes `[h, w, C, O]` `tile` times, each a column further, as `[h * (tile+w-1) * C, tile * O]`."""
  shifted = [jnp.pad(kernel, ((0, 0), (v, tile - 1 - v), (0, 0), (0, 0))) for v in range(tile)]
  return jnp.stack(shifted, axis=3).reshape(-1, tile * kernel.shape[3])
