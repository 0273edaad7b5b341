import types

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.networks import convolution, matrix_product

CASES = [
  # kernel, strides, padding, image, channels, features
  ((3, 3), (1, 1), "SAME", (10, 10), 4, 16),
  ((3, 3), (1, 1), "VALID", (10, 10), 4, 16),
  ((3, 3), (1, 1), "SAME", (7, 11), 3, 5),
  ((3, 3), (1, 1), "SAME", (1, 2), 3, 4),
  ((1, 1), (1, 1), "SAME", (5, 6), 3, 4),
  ((2, 4), (1, 1), "SAME", (5, 9), 2, 64),
  ((5, 3), (1, 1), "VALID", (9, 8), 2, 3),
  ((8, 8), (4, 4), "VALID", (36, 36), 4, 32),
  ((8, 8), (4, 4), "VALID", (39, 41), 1, 2),
  ((4, 4), (2, 2), "VALID", (9, 10), 3, 8),
  ((3, 3), (2, 2), "SAME", (9, 10), 3, 8),
  ((3, 3), (2, 2), "VALID", (9, 10), 3, 8),
  ((3, 2), (2, 3), "SAME", (7, 11), 2, 3),
  ((1, 1), (2, 2), "SAME", (7, 8), 2, 3),
]


def build(case):
  kernel_size, strides, padding, image, channels, features = case
  ours = convolution.Conv(features, kernel_size, strides, padding)
  flax_conv = nn.Conv(features, kernel_size, strides, padding)
  x = jax.random.normal(jax.random.key(0), (3, *image, channels))
  params = flax_conv.init(jax.random.key(1), x)
  bias = jax.random.normal(jax.random.key(2), params["params"]["bias"].shape)
  return ours, flax_conv, {"params": {**params["params"], "bias": bias}}, x


def assert_close(actual, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), actual, expected
  )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_equal_those_of_flax(case, value_and_gradients):
  ours, flax_conv, params, x = build(case)
  actual = jax.jit(value_and_gradients(ours))(params, x)
  assert_close(actual, jax.jit(value_and_gradients(flax_conv))(params, x))


@pytest.mark.parametrize(
  ("limit", "use_bias"),
  [(1, True), pytest.param(1 << 18, True, marks=pytest.mark.slow), (1 << 18, False)],
)
@pytest.mark.parametrize(
  "case",
  [
    pytest.param(case, id=str(case), marks=() if i in (0, 2, 8, 10) else pytest.mark.slow)
    for i, case in enumerate(CASES)
  ],
)
def test_a_rectifier_is_part_of_it(monkeypatch, case, limit, use_bias, value_and_gradients):
  """Whether the batch is cut or not, and by either lowering."""
  monkeypatch.setattr(matrix_product, "_MAX_PATCH_ELEMENTS", limit)
  monkeypatch.setattr(matrix_product, "_MIN_PATCHES_TO_MATRIX", 0)
  _, _, params, x = build(case)
  kernel_size, strides, padding, _, _, features = case
  if not use_bias:
    params = {"params": {"kernel": params["params"]["kernel"]}}
  x = jnp.concatenate([x, -x])
  given = (features, kernel_size, strides, padding)
  ours = convolution.Conv(*given, use_bias=use_bias, activation=nn.relu)
  flax_conv = nn.Conv(features, kernel_size, strides, padding, use_bias=use_bias)

  def rectified(params, x):
    return nn.relu(flax_conv.apply(params, x))

  expected = jax.jit(value_and_gradients(types.SimpleNamespace(apply=rectified)))(params, x)
  assert_close(jax.jit(value_and_gradients(ours))(params, x), expected)
  for name, default in {
    "convolve": convolution._as_convolution,
    "to_inputs": convolution._convolution_to_inputs,
    "to_parameters": convolution._convolution_to_parameters,
  }.items():
    monkeypatch.setattr(matrix_product, name, default)
  assert_close(jax.jit(value_and_gradients(ours))(params, x), expected)


@pytest.mark.parametrize("limit", [1, 1 << 18])
@pytest.mark.parametrize("dtype", [jnp.uint8, bool])
def test_a_rectifier_behind_data(monkeypatch, dtype, limit):
  """There the gradient is masked a chunk at a time."""
  monkeypatch.setattr(matrix_product, "_MAX_PATCH_ELEMENTS", limit)
  images = jax.random.randint(jax.random.key(0), (6, 5, 6, 3), 0, 2).astype(dtype)
  ours, flax_conv = convolution.Conv(4, activation=nn.relu), nn.Conv(4, (3, 3))
  params = ours.init(jax.random.key(1), images)
  floats = images.astype(jnp.float32)

  def loss(apply, x):
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(apply(p, x)))))(params)

  expected = loss(lambda p, x: nn.relu(flax_conv.apply(p, x)), floats)
  assert_close(loss(ours.apply, images), expected)


@pytest.mark.parametrize("limit", [1, 500, 2000])
def test_cutting_the_batch_changes_nothing(monkeypatch, limit, value_and_gradients):
  monkeypatch.setattr(matrix_product, "_MAX_PATCH_ELEMENTS", limit)
  monkeypatch.setattr(matrix_product, "_MIN_PATCHES_TO_MATRIX", 0)
  ours, flax_conv, params, x = build(((3, 3), (1, 1), "SAME", (3, 4), 3, 16))
  x = jnp.concatenate([x, 2.0 * x])
  actual = jax.jit(value_and_gradients(ours))(params, x)
  assert_close(actual, jax.jit(value_and_gradients(flax_conv))(params, x))


def test_without_jit(value_and_gradients):
  ours, flax_conv, params, x = build(CASES[0])
  actual = value_and_gradients(ours)(params, x)
  assert_close(actual, value_and_gradients(flax_conv)(params, x))


def test_parameters_are_those_of_flax():
  ours, flax_conv, _, x = build(CASES[0])
  expected = flax_conv.init(jax.random.key(3), x)
  actual = ours.init(jax.random.key(3), x)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("case", [CASES[0], CASES[10]], ids=str)
def test_vmap_over_parameters_and_images(case, value_and_gradients):
  ours, flax_conv, params, x = build(case)
  params = jax.tree.map(lambda p: jnp.stack([p, 2.0 * p]), params)
  images = jnp.stack([x, -x])
  actual = jax.jit(jax.vmap(value_and_gradients(ours)))(params, images)
  assert_close(actual, jax.jit(jax.vmap(value_and_gradients(flax_conv)))(params, images))


@pytest.mark.parametrize("case", [CASES[0], CASES[10]], ids=str)
def test_gradient_inside_and_through_a_scan(case, value_and_gradients):
  ours, flax_conv, params, x = build(case)

  def descend(module):
    def step(params, _):
      (loss, _), (gradient, _) = value_and_gradients(module)(params, x)
      return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), loss

    return jax.jit(lambda params: jax.lax.scan(step, params, None, length=3))

  def through(module):
    def loss(params):
      def step(total, scale):
        return total + jnp.sum(jnp.sin(module.apply(params, scale * x))), None

      return jax.lax.scan(step, 0.0, jnp.array([0.5, 1.0]))[0]

    return jax.jit(jax.grad(loss))

  assert_close(descend(ours)(params), descend(flax_conv)(params))
  assert_close(through(ours)(params), through(flax_conv)(params))


@pytest.mark.parametrize("case", [CASES[0], CASES[9]], ids=str)
def test_each_platform_compiles_its_own_branch_only(case, value_and_gradients):
  ours, _, params, x = build(case)
  function = jax.jit(value_and_gradients(ours))
  on_cpu = jax.export.export(function, platforms=["cpu"])(params, x).mlir_module()
  on_gpu = jax.export.export(function, platforms=["cuda"])(params, x).mlir_module()
  assert "stablehlo.convolution" not in on_cpu
  assert "stablehlo.concatenate" in on_cpu
  assert "stablehlo.convolution" in on_gpu
  assert "stablehlo.concatenate" not in on_gpu


@pytest.mark.parametrize("shape", [(2, 84, 84, 3), (2, 21, 11, 4), (1, 2, 1, 1), (1, 5, 6, 2)])
def test_max_pool_equals_flax(shape):
  x = jax.random.normal(jax.random.key(0), shape)

  def flax_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), "SAME")

  np.testing.assert_array_equal(convolution.max_pool(x), flax_pool(x))
  actual = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(convolution.max_pool(x)))))(x)
  expected = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(flax_pool(x)))))(x)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_an_image_without_batch_axis_is_refused():
  with pytest.raises(AssertionError):
    convolution.convolve(jnp.zeros((10, 10, 4)), jnp.zeros((3, 3, 4, 8)))


@pytest.mark.parametrize("case", [CASES[0], CASES[9], CASES[10]], ids=str)
def test_bytes_equal_scaled_floats(case):
  """The same outputs and the same gradients of the kernel as with the floats they stand for."""
  kernel_size, strides, padding, image, channels, features = case
  shape = (3, *image, channels)
  images = jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)
  module = convolution.Conv(features, kernel_size, strides, padding, input_scale=1 / 255)
  plain = convolution.Conv(features, kernel_size, strides, padding)
  params = module.init(jax.random.key(1), images)

  def loss(conv, x):
    return lambda p: jnp.sum(jnp.sin(conv.apply(p, x)))

  floats = images.astype(jnp.float32) / 255
  found = jax.jit(jax.value_and_grad(loss(module, images)))(params)
  expected = jax.jit(jax.value_and_grad(loss(plain, floats)))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


def test_bools_equal_floats():
  images = jax.random.bernoulli(jax.random.key(0), 0.3, (2, 5, 6, 3))
  conv = convolution.Conv(4)
  params = conv.init(jax.random.key(1), images)

  def loss(x):
    return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(conv.apply(p, x))))(params)

  jax.tree.map(np.testing.assert_array_equal, loss(images), loss(images.astype(jnp.float32)))


@pytest.mark.parametrize("size", [1, 7, 24])
@pytest.mark.parametrize("limit", [1, 10**6])
def test_dense_of_bytes_equals_a_product_of_floats(monkeypatch, size, limit):
  monkeypatch.setattr(matrix_product, "_MAX_PATCH_ELEMENTS", limit)
  monkeypatch.setattr(matrix_product, "_MIN_PATCHES_TO_MATRIX", 0)
  inputs = jax.random.randint(jax.random.key(0), (size, 300), 0, 256).astype(jnp.uint8)
  kernel = jax.random.normal(jax.random.key(1), (300, 5)) / 300

  def loss(product):
    return lambda k: jnp.sum(jnp.sin(product(k)))

  found = jax.jit(jax.value_and_grad(loss(lambda k: convolution.dense(inputs, k))))(kernel)
  expected = jax.value_and_grad(loss(lambda k: inputs.astype(jnp.float32) @ k))(kernel)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), found, expected)
