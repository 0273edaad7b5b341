import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from podracer import distributions, types

BOX = types.ContinuousActions(minimum=(-2.0, 0.0), maximum=(2.0, 1.0))
MASK = jnp.array([True, False, True, False, True, False])
LOGITS = jnp.array([[0.0, 1.0, -2.0, 0.5, 0.1, 3.0], [5.0, 5.0, 5.0, 5.0, 5.0, -30.0]])
GAUSSIAN = jnp.array([[0.5, 0.2, -1.0, 0.3], [-1.8, 0.9, 0.4, -2.0]])
OTHER_GAUSSIAN = jnp.array([[0.1, 0.4, -0.5, 0.1], [-1.0, 0.5, 0.0, -1.0]])

FAMILIES = {
  "categorical": (types.DiscreteActions(6), "gaussian", LOGITS),
  "gaussian": (BOX, "gaussian", GAUSSIAN),
  "tanh_gaussian": (BOX, "tanh_gaussian", GAUSSIAN),
}


def categorical(num_actions=6):
  return distributions.make_distribution(types.DiscreteActions(num_actions))


def test_categorical_equals_distrax():
  ours, other = categorical(), distrax.Categorical(logits=LOGITS)
  action = jnp.array([2, 4])
  q = distrax.Categorical(logits=LOGITS[::-1])
  assert ours.num_logits == 6
  np.testing.assert_allclose(ours.log_prob(LOGITS, action), other.log_prob(action), rtol=1e-5)
  np.testing.assert_allclose(ours.entropy(LOGITS), other.entropy(), rtol=1e-5)
  np.testing.assert_allclose(ours.kl(LOGITS, LOGITS[::-1]), other.kl_divergence(q), rtol=1e-5)
  np.testing.assert_array_equal(ours.mode(LOGITS), other.mode())


@pytest.mark.parametrize("num_actions", [1, 2, 6, 33])
def test_categorical_samples_follow_the_probabilities(num_actions):
  logits = jax.random.normal(jax.random.key(0), (num_actions,))
  sample = jax.jit(categorical(num_actions).sample)
  actions = sample(jax.random.key(1), jnp.broadcast_to(logits, (100_000, num_actions)))
  counts = np.bincount(actions, minlength=num_actions)
  probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
  assert actions.dtype == jnp.int32
  assert len(counts) == num_actions
  if num_actions > 1:
    expected = len(actions) * probabilities / probabilities.sum()
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_no_draw_takes_an_illegal_action(monkeypatch, uniform):
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, uniform))
  logits = jax.random.normal(jax.random.key(0), (500, 40))
  mask = jax.random.bernoulli(jax.random.key(1), 0.3, logits.shape).at[:, 7].set(True)
  actions = categorical(40).sample(jax.random.key(2), distributions.mask_logits(logits, mask))
  assert bool(jnp.all(jnp.take_along_axis(mask, actions[:, None], axis=1)))


def test_masked_logits_are_those_of_the_legal_actions_alone():
  masked = distributions.mask_logits(LOGITS, jnp.broadcast_to(MASK, LOGITS.shape))
  legal = LOGITS[:, MASK]
  np.testing.assert_array_equal(jax.nn.softmax(masked)[:, ~MASK], 0.0)
  np.testing.assert_allclose(
    categorical().entropy(masked), categorical(3).entropy(legal), rtol=1e-5
  )
  np.testing.assert_allclose(
    categorical().kl(masked, masked[::-1]), categorical(3).kl(legal, legal[::-1]), rtol=1e-5
  )
  np.testing.assert_allclose(
    categorical().log_prob(masked, jnp.array([2, 4])),
    categorical(3).log_prob(legal, jnp.array([1, 2])),
    rtol=1e-5,
  )
  actions = categorical().sample(jax.random.key(0), jnp.broadcast_to(masked[0], (1000, 6)))
  assert set(np.unique(actions)) == {0, 2, 4}


def test_masked_gradients_are_finite_and_zero_at_illegal_actions():
  def loss(logits):
    masked = distributions.mask_logits(logits, jnp.broadcast_to(MASK, logits.shape))
    family = categorical()
    return jnp.sum(
      family.entropy(masked)
      + family.kl(masked, masked[::-1])
      + family.log_prob(masked, jnp.array([0, 4]))
    )

  gradient = jax.grad(loss)(LOGITS)
  assert bool(jnp.all(jnp.isfinite(gradient)))
  np.testing.assert_array_equal(gradient[:, ~MASK], 0.0)
  assert bool(jnp.all(gradient[0, MASK] != 0.0))


def test_without_a_mask_or_a_legal_action():
  assert distributions.mask_logits(LOGITS, None) is LOGITS
  masked = distributions.mask_logits(LOGITS, jnp.zeros_like(LOGITS, bool))
  np.testing.assert_allclose(categorical().entropy(masked), np.log(6.0), rtol=1e-5)


def test_gaussian_equals_distrax():
  ours = distributions.make_distribution(BOX)
  other, q = (
    distrax.MultivariateNormalDiag(logits[:, :2], jnp.exp(logits[:, 2:]))
    for logits in (GAUSSIAN, OTHER_GAUSSIAN)
  )
  action = jnp.array([[0.3, -0.4], [1.0, 2.0]])
  assert ours.num_logits == 4
  np.testing.assert_allclose(ours.log_prob(GAUSSIAN, action), other.log_prob(action), rtol=1e-5)
  np.testing.assert_allclose(ours.entropy(GAUSSIAN), other.entropy(), rtol=1e-5)
  np.testing.assert_allclose(ours.kl(GAUSSIAN, OTHER_GAUSSIAN), other.kl_divergence(q), rtol=1e-5)
  np.testing.assert_array_equal(ours.mode(GAUSSIAN), GAUSSIAN[:, :2])
  samples = ours.sample(jax.random.key(0), jnp.broadcast_to(GAUSSIAN[0], (50_000, 4)))
  np.testing.assert_allclose(samples.mean(0), GAUSSIAN[0, :2], atol=0.02)
  np.testing.assert_allclose(samples.std(0), np.exp(GAUSSIAN[0, 2:]), rtol=0.02)


def test_tanh_gaussian_equals_distrax_in_units_of_the_action():
  ours = distributions.make_distribution(BOX, "tanh_gaussian")
  middle, half = jnp.array([0.0, 0.5]), jnp.array([2.0, 0.5])
  base = distrax.MultivariateNormalDiag(
    (GAUSSIAN[:, :2] - middle) / half, jnp.exp(GAUSSIAN[:, 2:]) / half
  )
  other = distrax.Transformed(base, distrax.Block(distrax.Tanh(), 1))
  normalised = jnp.array([[0.3, -0.4], [-0.95, 0.9]])
  np.testing.assert_allclose(
    ours.log_prob(GAUSSIAN, middle + half * normalised),
    other.log_prob(normalised) - jnp.sum(jnp.log(half)),
    rtol=1e-4,
  )


def test_tanh_gaussian_entropy_equals_monte_carlo():
  ours = distributions.make_distribution(BOX, "tanh_gaussian")
  for logits in GAUSSIAN:
    many = jnp.broadcast_to(logits, (100_000, 4))
    estimate = -jnp.mean(ours.log_prob(many, ours.sample(jax.random.key(0), many)))
    np.testing.assert_allclose(ours.entropy(logits), estimate, atol=0.02)


def test_tanh_gaussian_density_integrates_to_one():
  spec = types.ContinuousActions(minimum=(-3.0,), maximum=(1.0,))
  ours = distributions.make_distribution(spec, "tanh_gaussian")
  grid = jnp.linspace(-3.0, 1.0, 20_001)[:, None]
  density = jnp.exp(ours.log_prob(jnp.broadcast_to(jnp.array([-0.5, 0.0]), (20_001, 2)), grid))
  np.testing.assert_allclose(jnp.trapezoid(density, grid[:, 0]), 1.0, atol=2e-3)


def test_tanh_gaussian_at_and_beyond_the_bounds():
  ours = distributions.make_distribution(BOX, "tanh_gaussian")
  for action in (BOX.minimum, BOX.maximum, (-7.0, 9.0)):
    value, gradient = jax.value_and_grad(ours.log_prob)(GAUSSIAN[0], jnp.array(action))
    assert bool(jnp.isfinite(value))
    assert bool(jnp.all(jnp.isfinite(gradient)))
  wide = jnp.broadcast_to(jnp.array([0.0, 0.5, 5.0, 5.0]), (1000, 4))
  samples = ours.sample(jax.random.key(0), wide)
  assert bool(jnp.all((samples >= jnp.array(BOX.minimum)) & (samples <= jnp.array(BOX.maximum))))
  assert bool(jnp.all(jnp.isfinite(ours.log_prob(wide, samples))))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_under_jit_and_vmap_with_finite_gradients(name):
  spec, kind, logits = FAMILIES[name]
  family = distributions.make_distribution(spec, kind)
  action = family.sample(jax.random.key(0), logits)

  def statistics(logits, action):
    return (
      family.log_prob(logits, action),
      family.entropy(logits),
      family.kl(logits, 0.9 * logits),
      family.mode(logits),
    )

  expected = statistics(logits, action)
  for actual in (
    jax.jit(statistics)(logits, action),
    jax.vmap(statistics)(logits, action),
    jax.tree.map(lambda x: x[0], statistics(logits[None], action[None])),
  ):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )
  gradient = jax.grad(lambda x: sum(jnp.sum(s) for s in statistics(x, action)[:3]))(logits)
  assert bool(jnp.all(jnp.isfinite(gradient)))
  np.testing.assert_allclose(family.kl(logits, logits), 0.0, atol=1e-5)


def test_wrong_arguments_are_refused():
  with pytest.raises(ValueError, match="valid: gaussian, tanh_gaussian"):
    distributions.make_distribution(BOX, "beta")  # type: ignore[arg-type]
  unbounded = types.ContinuousActions(minimum=(-np.inf,), maximum=(np.inf,))
  with pytest.raises(ValueError, match="finite bounds"):
    distributions.make_distribution(unbounded, "tanh_gaussian")
  with pytest.raises(AssertionError):
    categorical().entropy(jnp.zeros((2, 5)))
  with pytest.raises(AssertionError):
    categorical().log_prob(LOGITS, jnp.zeros((2, 1), jnp.int32))
