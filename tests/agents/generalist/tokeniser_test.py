"""Tokens by hand: bins and their edges, patches, and a whole step."""

import jax.numpy as jnp
import numpy as np
import pytest

from podracer.agents.generalist import layout as layout_lib
from podracer.agents.generalist import tokeniser


def reference_mu_law(x):
  """Reed et al. (2022), equation 5, in double precision."""
  x = np.asarray(x, np.float64)
  return np.clip(np.sign(x) * np.log(np.abs(x) * 100 + 1) / np.log(100 * 256 + 1), -1, 1)


def test_mu_law_is_that_of_the_paper():
  x = np.concatenate([np.linspace(-300, 300, 101), [0.0, 1.0, -1.0, 1e-4, 256.0]])
  np.testing.assert_allclose(tokeniser.mu_law(jnp.asarray(x)), reference_mu_law(x), atol=1e-6)
  # The value M is what comes to 1, and what is beyond is clipped to it.
  assert float(tokeniser.mu_law(jnp.asarray(256.0))) == pytest.approx(1.0)
  assert float(tokeniser.mu_law(jnp.asarray(1e9))) == 1.0


def test_every_bin_comes_back():
  bins = jnp.arange(1024)
  np.testing.assert_array_equal(tokeniser.to_bins(tokeniser.from_bins(bins)), bins)


@pytest.mark.parametrize(
  ("value", "expected"),
  [(0.0, 512), (-1e-5, 511), (1e30, 1023), (-1e30, 0), (np.inf, 1023), (-np.inf, 0), (np.nan, 512)],
)
def test_edges_of_the_bins(value, expected):
  assert int(tokeniser.to_bins(jnp.asarray(value, jnp.float32))) == expected


def test_a_value_is_near_the_middle_of_its_bin():
  x = jnp.asarray([-2.0, -0.3, 0.01, 0.7, 5.0])
  back = tokeniser.from_bins(tokeniser.to_bins(x))
  # A bin is 2 / 1024 of the range of log(100 |x| + 1) / 10.15, so some 2 % of |x| wide.
  np.testing.assert_allclose(back, x, rtol=0.02, atol=2e-4)


STEP = layout_lib.Layout(
  parts=(
    layout_lib.Part("observation/a", "discrete", (2,)),
    layout_lib.Part("observation/b", "image", (3, 5), 10.0),
    layout_lib.Part("observation/c", "continuous", ()),
  ),
  num_actions=4,
  action_size=1,
  patch_size=4,
  has_reward=True,
)


def test_a_step_token_by_token():
  steps = {
    "observation/a": jnp.asarray([[7, 5000]]),
    "observation/b": jnp.arange(15.0).reshape(1, 3, 5),
    "observation/c": jnp.asarray([0.0]),
    "reward": jnp.asarray([-1e9]),
    "action": jnp.asarray([3]),
  }
  tokens = tokeniser.tokenise(STEP, steps)
  # Reward, two discrete (one of them clipped), two patches of a 3 x 5 image, one continuous, the
  # separator, the action.
  patch, separator = tokeniser.PATCH, tokeniser.SEPARATOR
  expected = [1024, 7, 1023, patch, patch, 1024 + 512, separator, 3]
  assert tokens.ids.tolist() == [expected]
  assert (patch, separator) == (2049, 2048)
  assert tokeniser.patch_places(STEP) == (3, 4)
  assert (STEP.action_start, STEP.step_tokens) == (7, 8)
  assert tokens.patches.shape == (1, 2, 1, 16)
  left = [[0, 1, 2, 3], [5, 6, 7, 8], [10, 11, 12, 13], [0, 0, 0, 0]]
  right = [[4, 0, 0, 0], [9, 0, 0, 0], [14, 0, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_allclose(tokens.patches[0, 0, 0].reshape(4, 4), np.array(left) / 10, rtol=1e-6)
  np.testing.assert_allclose(tokens.patches[0, 1, 0].reshape(4, 4), np.array(right) / 10, rtol=1e-6)


def test_roles_of_the_tokens():
  sizes = layout_lib.Sizes(channels=1, observation=9, action=3)
  # The reward and the separator have role 0; those of actions begin behind the longest observation.
  assert tokeniser.local_positions(STEP, sizes) == (0, 1, 2, 3, 4, 5, 0, 10)


@pytest.mark.parametrize(("shape", "is_first"), [((2, 4, 6), True), ((4, 6, 2), False)])
def test_channels_first_or_last(shape, is_first):
  part = layout_lib.Part("observation", "image", shape)
  layout = layout_lib.Layout((part,), num_actions=2, action_size=1, patch_size=4)
  assert part.is_channel_first == is_first
  assert part.image_shape == (4, 6, 2)
  picture = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
  value = np.moveaxis(picture, -1, 0) if is_first else picture
  patches = tokeniser.context_tokens(layout, {"observation": jnp.asarray(value)}).patches
  assert patches.shape == (2, 2, 16)
  for channel in range(2):
    np.testing.assert_array_equal(patches[0, channel].reshape(4, 4), picture[:, :4, channel])
    np.testing.assert_array_equal(patches[1, channel].reshape(4, 4)[:, :2], picture[:, 4:, channel])
  assert not patches[1, :, :].reshape(2, 4, 4)[:, :, 2:].any()


def test_images_of_fewer_channels_are_filled_up():
  parts = (
    layout_lib.Part("observation/a", "image", (4, 4)),
    layout_lib.Part("observation/b", "image", (4, 4, 3)),
  )
  layout = layout_lib.Layout(parts, num_actions=2, action_size=1, patch_size=4)
  steps = {"observation/a": jnp.ones((4, 4)), "observation/b": jnp.ones((4, 4, 3))}
  patches = tokeniser.context_tokens(layout, steps).patches
  assert patches[:, :, 0].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_continuous_actions_have_a_token_a_dimension():
  part = layout_lib.Part("observation", "continuous", (1,))
  layout = layout_lib.Layout((part,), num_actions=0, action_size=2, patch_size=4)
  action = jnp.asarray([[0.5, -0.25], [0.0, 0.0]])
  tokens = tokeniser.action_tokens(layout, action)
  assert tokens.shape == (2, 2)
  np.testing.assert_allclose(tokeniser.from_bins(tokens - 1024), action, atol=0.01)
  assert tokens[1].tolist() == [tokeniser.zero_action(layout)] * 2
