"""Convolution and max-pooling that are fast on every platform, with the parameters of `nn.Conv`.

XLA's CPU backend differentiates a convolution inside a loop 4 to 20 times slower than outside, and
both machines train inside loops. So on CPU a convolution is lowered to copies and one matrix product;
elsewhere it is `lax.conv_general_dilated`. Parameters, outputs and gradients are the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from podracer import types

from . import matrix_product


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
  pads: matrix_product.Padding,
  rectify: bool,
) -> types.Array:
  options = {"strides": strides, "pads": pads, "rectify": rectify}
  return lax.platform_dependent(
    x,
    kernel,
    bias,
    cpu=functools.partial(matrix_product.convolve, **options),
    default=functools.partial(_as_convolution, **options),
  )


def _convolve_forward(
  x: types.Array,
  kernel: types.Array,
  bias: types.Array | None,
  strides: Any,
  pads: matrix_product.Padding,
  rectify: bool,
) -> Any:
  outputs = _convolve(x, kernel, bias, strides, pads, rectify)
  return outputs, (x, kernel, bias, outputs if rectify else None)


def _convolve_backward(
  strides: Any, pads: matrix_product.Padding, rectify: bool, residuals: Any, cotangent: types.Array
) -> Any:
  del rectify
  x, kernel, bias, outputs = residuals
  options = {"strides": strides, "pads": pads}
  x_bar = None
  if jnp.issubdtype(x.dtype, jnp.floating):
    # Two products read it. Where there is one, it is masked a chunk at a time.
    cotangent, outputs = matrix_product.rectified(cotangent, outputs), None
    # A choice of its own, so that XLA drops it where the inputs are data.
    x_bar = lax.platform_dependent(
      x,
      kernel,
      cotangent,
      cpu=functools.partial(matrix_product.to_inputs, **options),
      default=functools.partial(_convolution_to_inputs, **options),
    )
  kernel_bar, bias_bar = lax.platform_dependent(
    x,
    kernel,
    outputs,
    cotangent,
    cpu=functools.partial(matrix_product.to_parameters, **options),
    default=functools.partial(_convolution_to_parameters, **options),
  )
  return x_bar, kernel_bar, None if bias is None else bias_bar


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _as_convolution(
  x: types.Array,
  kernel: types.Array,
  bias: types.Array | None,
  strides: Any,
  pads: matrix_product.Padding,
  rectify: bool = False,
) -> types.Array:
  dimensions = ("NHWC", "HWIO", "NHWC")
  x = x.astype(kernel.dtype)
  outputs = lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=dimensions)
  return matrix_product.activated(outputs, bias, rectify)


def _convolution_to_inputs(
  x: types.Array,
  kernel: types.Array,
  cotangent: types.Array,
  strides: Any,
  pads: matrix_product.Padding,
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
  pads: matrix_product.Padding,
) -> tuple[types.Array, types.Array]:
  cotangent = matrix_product.rectified(cotangent, outputs)

  def of(kernel: types.Array) -> types.Array:
    return _as_convolution(x, kernel, None, strides, pads)

  (kernel_bar,) = jax.vjp(of, kernel)[1](cotangent)
  return kernel_bar, cotangent.sum((0, 1, 2))
