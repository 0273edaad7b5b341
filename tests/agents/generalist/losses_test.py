"""The loss against hand-computed cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.agents.generalist import losses

LOGITS = jnp.log(jnp.asarray([[[0.5, 0.25, 0.25]], [[0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6]]]))
TOKENS = jnp.asarray([[0], [1], [0]])


@pytest.mark.parametrize(
  ("mask", "expected"),
  [
    ([True, True, True], -(np.log(0.5) + np.log(0.8) + np.log(0.2)) / 3),
    # What is left out leaves the divisor as it is.
    ([True, False, True], -(np.log(0.5) + np.log(0.2)) / 3),
    ([False, False, False], 0.0),
  ],
)
def test_cross_entropy_of_the_actions(mask, expected):
  mask = jnp.asarray(mask)
  assert float(losses.action_loss(LOGITS, TOKENS, mask)) == pytest.approx(expected, rel=1e-5)
  jitted = jax.jit(jax.vmap(losses.action_loss))
  batched = jitted(LOGITS[None], TOKENS[None], mask[None])
  np.testing.assert_allclose(batched, [expected], rtol=1e-5)


def test_no_gradient_where_there_is_no_action():
  gradient = jax.grad(losses.action_loss)(LOGITS, TOKENS, jnp.asarray([True, False, True]))
  is_zero = np.all(np.asarray(gradient) == 0, axis=(1, 2))
  assert is_zero.tolist() == [False, True, False]


@pytest.mark.parametrize("last", [0, 1, 2])
def test_the_last_step_of_an_episode_has_no_action(last):
  """Ended or truncated, at the first, the middle or the last position; then what is filled up."""
  steps = {
    "mask": jnp.asarray([[True, True, True, False]]),
    "is_last": jnp.asarray([[t == last for t in range(4)]]),
  }
  expected = [t != last and t < 3 for t in range(4)]
  assert losses.action_mask(steps)[0].tolist() == expected


def test_accuracy_counts_what_has_an_action():
  assert float(losses.accuracy(LOGITS, TOKENS, jnp.asarray([True, True, True]))) == pytest.approx(
    2 / 3
  )
  assert float(losses.accuracy(LOGITS, TOKENS, jnp.asarray([True, True, False]))) == 1.0
  assert float(losses.accuracy(LOGITS, TOKENS, jnp.zeros(3, bool))) == 0.0
