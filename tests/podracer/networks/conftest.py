import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def value_and_gradients():
  """Of a module: parameters and inputs -> a loss of many slopes, the outputs, and both gradients."""

  def of(module):
    def loss(params, x):
      outputs = module.apply(params, x)
      weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
      return jnp.sum(jnp.sin(outputs) * weights), outputs

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

  return of
