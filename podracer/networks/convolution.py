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
_MIN_CHUNKS = 3
"""What would make fewer is not cut: the copies of a loop cost more."""


class Conv(nn.Module):
  """A 2-D convolution with the parameters (`kernel`, `bias`) and the results of `nn.Conv`, activated.

  Attributes:
    features: channels of the output.
    kernel_size: height and width of the kernel.
    strides: vertical and horizontal.
    padding: `SAME` or `VALID`.
    use_bias: whether a bias is added.
    input_scale: by which the inputs are multiplied; with it bytes can be given as they are.
    activation: nonlinearity of the outputs, or None; `nn.relu` costs nothing of its own.
    kernel_init: initialiser of the `[h, w, in, out]` kernel.
    bias_init: initialiser of the `[out]` bias.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  padding: str = "SAME"
  use_bias: bool = True
  input_scale: float = 1.0
  activation: Callable[[types.Array], types.Array] | None = None
  kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
  bias_init: Callable[..., Any] = nn.initializers.zeros_init()

  @nn.compact
  def __call__(self, inputs: types.Array) -> types.Array:
    """Maps `[B, H, W, C]` floats, bytes or bools to `[B, H', W', features]`."""
    chex.assert_rank(inputs, 4)
    shape = (*self.kernel_size, inputs.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape)
    # Scaling the kernel does it, and costs nothing.
    kernel = kernel * self.input_scale
    bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
    rectify = self.activation is nn.relu
    outputs = convolve(inputs, kernel, self.strides, self.padding, bias=bias, rectify=rectify)
    return outputs if rectify or self.activation is None else self.activation(outputs)


def convolve(
  inputs: types.Array,
  kernel: types.Array,
  strides: tuple[int, int] = (1, 1),
  padding: str = "SAME",
  *,
  bias: types.Array | None = None,
  rectify: bool = False,
) -> types.Array:
  """Convolves images with a kernel, lowered by platform. Reverse mode only: it has no jvp.

  Bias and rectifier are part of it because their passes over the outputs are saved, forward and
  backward, where they are done while the product is in the cache.

  Args:
    inputs: `[B, H, W, C]` floats, or bools or integers, which get no gradient. Bytes are copied as bytes,
      and become floats a cacheful at a time.
    kernel: `[h, w, C, O]` floats.
    strides: vertical and horizontal.
    padding: `SAME` or `VALID`.
    bias: `[O]` added to the outputs, or None.
    rectify: whether outputs below 0, with the bias, become 0.

  Returns:
    `[B, H', W', O]`.
  """
  chex.assert_rank([inputs, kernel], 4)
  chex.assert_equal(inputs.shape[3], kernel.shape[2])
  if inputs.dtype == bool:
    # Its planes are small, and copied faster as floats.
    inputs = inputs.astype(kernel.dtype)
  rows, columns = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], strides, padding)
  pads = (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))
  return _convolve(inputs, kernel, bias, tuple(strides), pads, rectify)


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
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _convolve(
  x: types.Array,
  kernel: types.Array,
  bias: types.Array | None,
  strides: Any,
  pads: Padding,
  rectify: bool,
) -> types.Array:
  options = {"strides": strides, "pads": pads, "rectify": rectify}
  return lax.platform_dependent(
    x,
    kernel,
    bias,
    cpu=functools.partial(_as_matrix_product, **options),
    default=functools.partial(_as_convolution, **options),
  )


def _convolve_forward(
  x: types.Array,
  kernel: types.Array,
  bias: types.Array | None,
  strides: Any,
  pads: Padding,
  rectify: bool,
) -> Any:
  outputs = _convolve(x, kernel, bias, strides, pads, rectify)
  return outputs, (x, kernel, bias, outputs if rectify else None)


def _convolve_backward(
  strides: Any, pads: Padding, rectify: bool, residuals: Any, cotangent: types.Array
) -> Any:
  del rectify
  x, kernel, bias, outputs = residuals
  is_float = jnp.issubdtype(x.dtype, jnp.floating)
  if is_float:
    # Two products read it. Where there is one, it is masked a chunk at a time.
    cotangent, outputs = _rectified(cotangent, outputs), None

  options = {"strides": strides, "pads": pads}
  # Two choices, so that XLA drops the first where the inputs are data.
  x_bar = (
    lax.platform_dependent(
      x,
      kernel,
      cotangent,
      cpu=functools.partial(_product_to_inputs, **options),
      default=functools.partial(_convolution_to_inputs, **options),
    )
    if is_float
    else None
  )
  kernel_bar, bias_bar = lax.platform_dependent(
    x,
    kernel,
    outputs,
    cotangent,
    cpu=functools.partial(_product_to_parameters, **options),
    default=functools.partial(_convolution_to_parameters, **options),
  )
  return x_bar, kernel_bar, None if bias is None else bias_bar


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _activated(outputs: types.Array, bias: types.Array | None, rectify: bool) -> types.Array:
  if bias is not None:
    outputs = outputs + bias
  return jnp.maximum(outputs, 0.0) if rectify else outputs


def _rectified(cotangent: types.Array, outputs: types.Array | None) -> types.Array:
  """Returns the cotangent before the rectifier whose outputs are given, or None where there is none."""
  return cotangent if outputs is None else jnp.where(outputs > 0.0, cotangent, 0.0)


def _as_convolution(
  x: types.Array,
  kernel: types.Array,
  bias: types.Array | None,
  strides: Any,
  pads: Padding,
  rectify: bool = False,
) -> types.Array:
  dimensions = ("NHWC", "HWIO", "NHWC")
  x = x.astype(kernel.dtype)
  outputs = lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=dimensions)
  return _activated(outputs, bias, rectify)


def _convolution_to_inputs(
  x: types.Array, kernel: types.Array, cotangent: types.Array, strides: Any, pads: Padding
) -> types.Array:
  def of(x: types.Array) -> types.Array:
    return _as_convolution(x, kernel, None, strides, pads)

  (x_bar,) = jax.vjp(of, x)[1](cotangent)
  return x_bar


def _convolution_to_parameters(
  x: types.Array,
  kernel: types.Array,
  outputs: types.Array | None,
  cotangent: types.Array,
  strides: Any,
  pads: Padding,
) -> tuple[types.Array, types.Array]:
  cotangent = _rectified(cotangent, outputs)

  def of(kernel: types.Array) -> types.Array:
    return _as_convolution(x, kernel, None, strides, pads)

  (kernel_bar,) = jax.vjp(of, kernel)[1](cotangent)
  return kernel_bar, cotangent.sum((0, 1, 2))


def _as_matrix_product(
  x: types.Array,
  kernel: types.Array,
  bias: types.Array | None,
  strides: Any,
  pads: Padding,
  rectify: bool,
) -> types.Array:
  """Convolves by copies and one matrix product; a strided one becomes an unstrided one first."""
  x, kernel, pads = _unstride(x, kernel, strides, pads)
  return _unstrided(x, kernel, bias, pads, rectify)


def _product_to_inputs(
  x: types.Array, kernel: types.Array, cotangent: types.Array, strides: Any, pads: Padding
) -> types.Array:
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


def _product_to_parameters(
  x: types.Array,
  kernel: types.Array,
  outputs: types.Array | None,
  cotangent: types.Array,
  strides: Any,
  pads: Padding,
) -> tuple[types.Array, types.Array]:
  unstrided = functools.partial(_unstride, strides=strides, pads=pads)
  unstrided_x, unstrided_kernel, unstrided_pads = unstrided(x, kernel)
  kernel_bar, bias_bar = _unstrided_to_parameters(
    unstrided_x, unstrided_kernel, outputs, cotangent, unstrided_pads
  )
  (kernel_bar,) = jax.linear_transpose(lambda k: unstrided(x, k)[1], kernel)(kernel_bar)
  return kernel_bar, bias_bar


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
    return _activated(outputs, bias, rectify)

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
    cotangent = _rectified(cotangent, outputs)
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
    first = jax.eval_shape(of_chunk, jax.tree.map(lambda x: _split(x, num_chunks)[0], chunks))
    (matrix_bar, bias_bar), _ = lax.scan(
      lambda total, chunk: (jax.tree.map(jnp.add, total, of_chunk(chunk)), None),
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first),
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
