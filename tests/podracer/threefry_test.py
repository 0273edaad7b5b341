"""Random numbers are those of `jax.random`, whatever the key, and one kernel on a CPU."""

import functools

import jax
import numpy as np
import pytest

from podracer import threefry

SHAPES = ((), (1,), (64,), (7, 3), (2, 0, 3), (1025,))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_uniform_is_that_of_jax(shape, seed):
  key = jax.random.fold_in(jax.random.key(seed), 5)
  np.testing.assert_array_equal(threefry.uniform(key, shape), jax.random.uniform(key, shape))
  np.testing.assert_allclose(
    threefry.uniform(key, shape, -3.0, 0.5),
    jax.random.uniform(key, shape, minval=-3.0, maxval=0.5),
    atol=1e-6,
  )


@pytest.mark.parametrize("shape", SHAPES)
def test_normal_is_that_of_jax(shape):
  key = jax.random.key(3)
  found = threefry.normal(key, shape)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, jax.random.normal(key, shape), rtol=1e-5, atol=1e-6)


def test_keys_can_be_mapped_over_and_jitted():
  keys = jax.random.split(jax.random.key(1), 6)
  ours = jax.jit(jax.vmap(functools.partial(threefry.uniform, shape=(5,))))
  theirs = jax.vmap(functools.partial(jax.random.uniform, shape=(5,)))
  np.testing.assert_array_equal(ours(keys), theirs(keys))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_generators_are_left_to_jax(impl):
  key = jax.random.key(0, impl=impl)
  np.testing.assert_array_equal(threefry.uniform(key, (9,)), jax.random.uniform(key, (9,)))
  np.testing.assert_array_equal(threefry.normal(key, (9,)), jax.random.normal(key, (9,)))


def test_raw_keys_and_the_other_layout_of_bits_are_left_to_jax():
  raw = jax.random.PRNGKey(4)
  np.testing.assert_array_equal(threefry.uniform(raw, (9,)), jax.random.uniform(raw, (9,)))
  with jax.threefry_partitionable(False):
    key = jax.random.key(4)
    expected = jax.random.uniform(key, (9,))
    np.testing.assert_array_equal(threefry.uniform(key, (9,)), expected)
  assert not np.array_equal(expected, threefry.uniform(key, (9,)))


def test_a_cpu_needs_no_loop():
  def loops(draw):
    return jax.jit(draw).lower(jax.random.key(0)).compile().as_text().count(" while(")

  assert jax.default_backend() != "cpu" or loops(lambda key: jax.random.uniform(key, (64,))) == 1
  assert loops(lambda key: threefry.uniform(key, (64,))) == 0
