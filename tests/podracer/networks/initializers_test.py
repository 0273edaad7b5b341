import jax
import numpy as np
import pytest

from podracer.networks import initializers


@pytest.mark.parametrize("gain", [0.01, 1.0, 2.0**0.5])
def test_a_kernel_passes_on_gain_times_the_scale_of_its_input(gain):
  kernel = initializers.scaled(gain)(jax.random.key(0), (64, 2000))
  inputs = jax.random.normal(jax.random.key(1), (64, 64))
  np.testing.assert_allclose(np.std(inputs @ kernel), gain * np.std(inputs), rtol=0.03)
