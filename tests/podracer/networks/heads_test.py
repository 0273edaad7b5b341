import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import distributions, types
from podracer.networks import heads

FEATURES = jax.random.normal(jax.random.key(0), (4, 3, 8))


@pytest.mark.parametrize(
  ("spec", "num_logits"),
  [
    (types.DiscreteActions(5), 5),
    (types.ContinuousActions((-1.0, -2.0), (1.0, 6.0)), 4),
    (types.ContinuousActions((-np.inf,), (np.inf,)), 2),
  ],
)
def test_policy_heads_fit_their_distributions(spec, num_logits):
  head = heads.make_policy_head(spec)
  logits, _ = head.init_with_output(jax.random.key(1), FEATURES)
  assert logits.shape == (4, 3, num_logits)
  assert distributions.make_distribution(spec).num_logits == num_logits


def test_a_categorical_policy_starts_near_uniform():
  logits, _ = heads.CategoricalHead(5).init_with_output(jax.random.key(1), FEATURES)
  np.testing.assert_allclose(logits, 0.0, atol=0.1)


def test_a_gaussian_policy_starts_in_the_middle_and_spans_the_box():
  spec = types.ContinuousActions((-1.0, -2.0, -np.inf), (1.0, 6.0, np.inf))
  logits, params = heads.GaussianHead(spec).init_with_output(jax.random.key(1), FEATURES)
  np.testing.assert_allclose(logits[..., :3] - jnp.array([0.0, 2.0, 0.0]), 0.0, atol=0.3)
  np.testing.assert_allclose(jnp.exp(logits[0, 0, 3:]), [1.0, 4.0, 1.0], rtol=1e-6)
  assert params["params"]["log_scale"].shape == (3,)


def test_value_head():
  values, params = heads.ValueHead(2).init_with_output(jax.random.key(1), FEATURES)
  assert values.shape == (4, 3, 2)
  assert jax.tree.map(jnp.shape, params["params"]) == {"Dense_0": {"kernel": (8, 2), "bias": (2,)}}
