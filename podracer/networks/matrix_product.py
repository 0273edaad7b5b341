"""A convolution as copies and one matrix product, and its gradients: how a CPU does it fastest.

The batch is cut so that what is copied stays in the cache; see `convolution`, which chooses by platform.
"""

import functools
import math
from typing import Any

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
_MIN_CHUNKS = 3
"""What would make fewer is not cut: the copies of a loop cost more."""


def convolve(
  x: types.Array,
  kernel: types.Array,
  bias: types.Array | None,
  strides: Any,
  pads: Padding,
  rectify: bool,
) -> types.Array:
  """Convolves; a strided convolution becomes an unstrided one first.

  Args:
    x: `[B, H, W, C]` floats or integers.
    kernel: `[h, w, C, O]` floats.
    bias: `[O]`, or None.
    strides: vertical and horizontal.
    pads: before and behind, of rows and of columns.
    rectify: whether outputs below 0 become 0.

  Returns:
    `[B, H', W', O]`.
  """
  x, kernel, pads = _unstride(x, kernel, strides, pads)
  return _unstrided(x, kernel, bias, pads, rectify)


def to_inputs(
  x: types.Array, kernel: types.Array, cotangent: types.Array, strides: Any, pads: Padding
) -> types.Array:
  """Returns the gradient of the inputs, given that of the outputs before a rectifier."""
  unstrided = functools.partial(_unstride, strides=strides, pads=pads)
  _, unstrided_kernel, unstrided_pads = unstrided(x, kernel)
  # A convolution with the kernel turned round: again one product, where the transpose of the copies
  # would be a sum of as many padded arrays.
  (height, width), (rows, columns) = unstrided_kernel.shape[:2], unstrided_pads
  full_pads = (
    (height - 1 - rows[0], height - 1 - rows[1]),
    (width - 1 - columns[0], width - 1 - columns[1]),
  )
  turned = unstrided_kernel[::-1, ::-1].swapaxes(2, 3)
  x_bar = _unstrided(cotangent, turned, None, full_pads, False)
  (x_bar,) = jax.linear_transpose(lambda x: unstrided(x, kernel)[0], x)(x_bar)
  return x_bar


def to_parameters(
  x: types.Array,
  kernel: types.Array,
  outputs: types.Array | None,
  cotangent: types.Array,
  strides: Any,
  pads: Padding,
) -> tuple[types.Array, types.Array]:
  """Returns the gradients of kernel and bias; `outputs` are those of a rectifier, None without one."""
  unstrided = functools.partial(_unstride, strides=strides, pads=pads)
  unstrided_x, unstrided_kernel, unstrided_pads = unstrided(x, kernel)
  kernel_bar, bias_bar = _unstrided_to_parameters(
    unstrided_x, unstrided_kernel, outputs, cotangent, unstrided_pads
  )
  (kernel_bar,) = jax.linear_transpose(lambda k: unstrided(x, k)[1], kernel)(kernel_bar)
  return kernel_bar, bias_bar


def activated(outputs: types.Array, bias: types.Array | None, rectify: bool) -> types.Array:
  """Returns outputs with what follows a product."""
  if bias is not None:
    outputs = outputs + bias
  return jnp.maximum(outputs, 0.0) if rectify else outputs


def rectified(cotangent: types.Array, outputs: types.Array | None) -> types.Array:
  """Returns the cotangent before the rectifier whose outputs are given, or None where there is none."""
  return cotangent if outputs is None else jnp.where(outputs > 0.0, cotangent, 0.0)


def _unstride(
  x: types.Array, kernel: types.Array, strides: Any, pads: Padding
) -> tuple[types.Array, types.Array, Padding]:
  """Returns images, kernel and padding whose convolution at stride 1 is the given one."""
  if strides == (1, 1):
    return x, kernel, pads
  return *_space_to_depth(x, kernel, strides, pads), ((0, 0), (0, 0))


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


def _unstrided(
  x: types.Array, kernel: types.Array, bias: types.Array | None, pads: Padding, rectify: bool
) -> types.Array:
  tile = _tile_width(x.shape[2] + sum(pads[1]) - kernel.shape[1] + 1, kernel.shape[3])
  matrix = _banded(kernel, tile)

  def convolve_chunk(chunk: types.Array) -> types.Array:
    patches, shape = _patches(chunk, kernel.shape, tile, pads)
    outputs = (patches.astype(kernel.dtype) @ matrix).reshape(shape)
    return activated(outputs, bias, rectify)

  num_chunks = _num_chunks(x, kernel.shape, tile, pads)
  if num_chunks == 1:
    return convolve_chunk(x)
  outputs = lax.map(convolve_chunk, _split(x, num_chunks))
  return outputs.reshape(x.shape[0], *outputs.shape[2:])


def _unstrided_to_parameters(
  x: types.Array,
  kernel: types.Array,
  outputs: types.Array | None,
  cotangent: types.Array,
  pads: Padding,
) -> tuple[types.Array, types.Array]:
  tile = _tile_width(cotangent.shape[2], kernel.shape[3])

  def of_chunk(chunk: Any) -> tuple[types.Array, types.Array]:
    x, outputs, cotangent = chunk
    cotangent = rectified(cotangent, outputs)
    # The patches are built again: to keep them costs more memory traffic than to copy them.
    patches, _ = _patches(x, kernel.shape, tile, pads)
    patches = patches.astype(kernel.dtype)
    # The narrow matrix is turned, and the sum is of this shape too: to turn the patches is slow.
    matrix_bar = cotangent.reshape(patches.shape[0], -1).T @ patches
    return matrix_bar, cotangent.sum((0, 1, 2))

  num_chunks = _num_chunks(x, kernel.shape, tile, pads)
  chunks = (x, outputs, cotangent)
  if num_chunks == 1:
    matrix_bar, bias_bar = of_chunk(chunks)
  else:
    zeros = jnp.zeros_like(_banded(kernel, tile).T), jnp.zeros_like(kernel[0, 0, 0])
    (matrix_bar, bias_bar), _ = lax.scan(
      lambda total, chunk: (jax.tree.map(jnp.add, total, of_chunk(chunk)), None),
      zeros,
      jax.tree.map(lambda x: _split(x, num_chunks), chunks),
    )
  (kernel_bar,) = jax.linear_transpose(lambda k: _banded(k, tile), kernel)(matrix_bar.T)
  return kernel_bar, bias_bar


def _tile_width(width: int, features: int) -> int:
  """Returns the number of neighbouring outputs, a divisor of `width`, computed from one patch."""
  divisors = [tile for tile in range(1, width + 1) if width % tile == 0]
  wide = [tile for tile in divisors if tile * features >= _MIN_TILE_WIDTH]
  return wide[0] if wide else width


def _num_chunks(x: types.Array, kernel_shape: tuple[int, ...], tile: int, pads: Padding) -> int:
  """Returns the least divisor of the batch that lets the patches of a chunk stay in the cache, or 1."""
  size = x.shape[0]
  shape = jax.eval_shape(lambda x: _patches(x, kernel_shape, tile, pads)[0], x).shape
  matrix_elements = shape[1] * tile * kernel_shape[3]
  most = max(_MAX_PATCH_ELEMENTS, _MIN_PATCHES_TO_MATRIX * matrix_elements)
  if math.prod(shape) <= (_MIN_CHUNKS - 1) * most:
    return 1
  for num_chunks in range(_MIN_CHUNKS, size + 1):
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
