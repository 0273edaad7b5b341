"""The decoder: decoding from the cache is the whole pass, whatever the length and the pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.agents.generalist import layout as layout_lib
from podracer.agents.generalist import network

SIZES = layout_lib.Sizes(channels=0, observation=4, action=2)


@pytest.fixture(scope="module")
def made(small):
  """A decoder with a window of 12, its parameters, and two sequences of 40 embedded tokens."""
  config = small(context=12)
  decoder = network.Decoder(config, SIZES)
  embedded = jax.random.normal(jax.random.key(1), (2, 40, config.width))
  params = decoder.init(jax.random.key(0), embedded[:, :1], method="initialise")
  return config, decoder, params, embedded


@pytest.mark.parametrize("pieces", [[1] * 40, [5, 1] * 6 + [4], [12, 12, 12, 4]])
def test_cached_equals_uncached_beyond_the_window(made, pieces):
  config, decoder, params, embedded = made
  whole = decoder.apply(params, embedded)
  extend = jax.jit(lambda x, cache: decoder.apply(params, x, cache, method="extend"))
  cache, start, found = network.empty_cache(config, 2), 0, []
  for size in pieces:
    hidden, cache = extend(embedded[:, start : start + size], cache)
    found.append(hidden)
    start += size
  assert start == 40
  np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=2e-5)
  assert cache.length.tolist() == [40, 40]


@pytest.mark.slow
def test_rows_of_different_lengths(made):
  """Rows are where they are by themselves: the second begins seven tokens later."""
  config, decoder, params, embedded = made
  cache = network.empty_cache(config, 2)
  _, ahead = decoder.apply(params, embedded[:, :7], cache, method="extend")
  mixed = network.select(jnp.asarray([True, False]), ahead, cache)
  assert mixed.length.tolist() == [7, 0]
  rest = jnp.stack([embedded[0, 7:17], embedded[1, :10]])
  hidden, _ = decoder.apply(params, rest, mixed, method="extend")
  whole = decoder.apply(params, embedded)
  np.testing.assert_allclose(hidden[0], whole[0, 7:17], atol=2e-5)
  np.testing.assert_allclose(hidden[1], whole[1, :10], atol=2e-5)


def test_what_each_output_has_seen(made):
  """The gradient of an output is 0 for the future, for other rows, and for what is out of reach."""
  config, decoder, params, embedded = made
  size, at = config.context, 35
  gradient = jax.grad(lambda x: jnp.sum(decoder.apply(params, x)[0, at] ** 3))(embedded)
  reached = np.abs(np.asarray(gradient)).sum(axis=-1) > 0
  # Each of two blocks looks back over one window.
  oldest = at - config.num_layers * (size - 1)
  expected = np.zeros((2, 40), bool)
  expected[0, oldest : at + 1] = True
  np.testing.assert_array_equal(reached, expected)


def test_attention_is_a_softmax_over_the_window():
  """Against a slow NumPy reference, one head, without rotation at position 0."""
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(1, 6, 1, 4)).astype(np.float32) for _ in range(3))
  positions = jnp.arange(6)[None]
  found = network.attend(q, positions, [network._Keys(k, v, positions)], window=3)
  for t in range(6):
    seen = slice(max(0, t - 2), t + 1)
    scores = k[0, seen, 0] @ q[0, t, 0] / 2.0
    weights = np.exp(scores - scores.max())
    np.testing.assert_allclose(found[0, t, 0], weights @ v[0, seen, 0] / weights.sum(), rtol=1e-5)


def test_rotation_depends_on_distance_alone_at_any_position():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

  def score(position, distance):
    at = [jnp.asarray([[p]], jnp.int32) for p in (position, position - distance)]
    return float(jnp.sum(network.rotate(q, at[0]) * network.rotate(k, at[1])))

  for distance in (0, 1, 77):
    near = score(1000, distance)
    for position in (100, 10**6 + 7, 2**31 - 1):
      assert score(position, distance) == pytest.approx(near, abs=1e-4)
  assert score(1000, 0) == pytest.approx(float(jnp.sum(q * k)), abs=1e-4)
  assert abs(score(1000, 0) - score(1000, 3)) > 0.01
