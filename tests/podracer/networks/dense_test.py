import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.networks import dense, initializers

SIZES = [1, 2, 8, 9]
INPUTS = jax.random.normal(jax.random.key(0), (5, 3, 6))


def build(size):
  flax_dense = nn.Dense(size, kernel_init=initializers.scaled(0.5))
  params = flax_dense.init(jax.random.key(1), INPUTS)
  bias = jax.random.normal(jax.random.key(2), (size,))
  return (
    dense.dense(size, gain=0.5),
    flax_dense,
    {"params": {**params["params"], "bias": bias}},
  )


def assert_close(actual, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
  )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("inputs", [INPUTS, INPUTS[0], INPUTS[0, 0], INPUTS[:0]], ids=jnp.shape)
def test_outputs_and_gradients_equal_those_of_flax(size, inputs, value_and_gradients):
  ours, flax_dense, params = build(size)
  actual = jax.jit(value_and_gradients(ours))(params, inputs)
  assert_close(actual, jax.jit(value_and_gradients(flax_dense))(params, inputs))
  assert_close(value_and_gradients(ours)(params, inputs), actual)


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_flax(size):
  ours, flax_dense, _ = build(size)
  actual, expected = (m.init(jax.random.key(3), INPUTS) for m in (ours, flax_dense))
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_vmap_over_parameters_and_inputs(value_and_gradients):
  ours, flax_dense, params = build(2)
  params = jax.tree.map(lambda p: jnp.stack([p, 2.0 * p]), params)
  inputs = jnp.stack([INPUTS, -INPUTS])
  actual = jax.jit(jax.vmap(value_and_gradients(ours)))(params, inputs)
  assert_close(actual, jax.jit(jax.vmap(value_and_gradients(flax_dense)))(params, inputs))


def test_each_platform_compiles_its_own_branch_only(value_and_gradients):
  ours, _, params = build(3)
  function = jax.jit(value_and_gradients(ours))
  on_cpu, on_gpu = (
    jax.export.export(function, platforms=[platform])(params, INPUTS).mlir_module()
    for platform in ("cpu", "cuda")
  )
  assert "stablehlo.concatenate" in on_cpu
  assert "stablehlo.concatenate" not in on_gpu
