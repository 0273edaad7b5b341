import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config as config_lib
from podracer import types
from podracer.agents import muzero
from podracer.agents.muzero import model as model_lib

NUM_ACTIONS, BATCH, LATENT = 3, 2, 16
BYTES, FLOATS = jnp.dtype("uint8"), jnp.dtype("float32")
NETWORK = config_lib.NetworkConfig(hidden_sizes=(8,), conv_channels=(4,))


def spec_of(shape, dtype=FLOATS, mask=False, **others):
  observation = types.ArraySpec(shape, dtype)
  if mask or others:
    observation = {"image": observation}
    observation |= {name: types.ArraySpec(*leaf) for name, leaf in others.items()}
  if mask:
    observation[types.ACTION_MASK] = types.ArraySpec((NUM_ACTIONS,), jnp.dtype(bool))
  return types.EnvironmentSpec("probe", observation, types.DiscreteActions(NUM_ACTIONS))


def config_of(latent="auto", **others):
  options = {"latent_size": LATENT, "hidden_sizes": (16,), "num_blocks": 1, "num_bins": 7} | others
  return muzero.ModelConfig(latent=latent, **options)


def make(spec, config, num_codes=0):
  """Returns the model and random parameters, quicker drawn than by compiling `init`."""

  def draw(shape):
    scale = 1 / np.sqrt(np.prod(shape.shape[:-1]) or 1) if shape.ndim > 1 else 0.1
    return (scale * rng.normal(size=shape.shape)).astype(np.float32)

  model = model_lib.Model(NETWORK, config, spec, num_codes)
  rng = np.random.default_rng(0)
  arguments = (types.zeros_like(spec.observation, (1,)), jnp.zeros((1,), jnp.int32))
  shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)
  return model, jax.tree.map(draw, shapes)


def represent(spec, config, observation):
  model, params = make(spec, config)
  return jax.jit(lambda p, x: model.apply(p, x, method="represent"))(params, observation)


def random_observation(spec, seed=0):
  def draw(leaf):
    if leaf.dtype == BYTES:
      return rng.integers(256, size=(BATCH, *leaf.shape)).astype(np.uint8)
    return rng.normal(size=(BATCH, *leaf.shape)).astype(leaf.dtype)

  rng = np.random.default_rng(seed)
  return jax.tree.map(draw, spec.observation, is_leaf=types.is_array_spec)


# Numbers and their two-hot shares.


@pytest.mark.parametrize(
  ("num_bins", "limit"), [(3, 1.0), (21, 2.0), (51, 10.0), (51, 500.0), (601, 1e5)]
)
def test_numbers_come_back(num_bins, limit):
  transform = model_lib.make_transform(num_bins, limit)
  numbers = np.linspace(-limit, limit, 401).astype(np.float32)
  shares = transform.apply(jnp.asarray(numbers))
  assert shares.shape == (401, num_bins)
  assert np.all(shares >= -1e-4) and np.all(np.sum(shares > 1e-3, axis=-1) <= 2)
  np.testing.assert_allclose(np.sum(shares, axis=-1), 1.0, atol=1e-5)
  # Shares are of squashed numbers: near 0 they are resolved to 1e-4 or so in float32.
  np.testing.assert_allclose(transform.apply_inv(shares), numbers, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("beyond", [1.0001, 3.0, 1e6])
def test_numbers_beyond_the_limits_are_clipped(beyond):
  transform = model_lib.make_transform(11, 5.0)
  numbers = 5.0 * beyond * jnp.asarray([-1.0, 1.0])
  np.testing.assert_allclose(transform.apply(numbers)[:, [0, -1]], np.eye(2), atol=1e-4)
  np.testing.assert_allclose(transform.apply_inv(transform.apply(numbers)), [-5.0, 5.0], rtol=2e-3)


@pytest.mark.parametrize("num_bins", [3, 51])
def test_zero_is_the_bin_in_the_middle(num_bins):
  transform = model_lib.make_transform(num_bins, 7.0)
  shares = transform.apply(jnp.zeros(1))
  np.testing.assert_allclose(shares[0], np.eye(num_bins)[num_bins // 2], atol=1e-5)
  np.testing.assert_allclose(transform.apply_inv(shares), 0.0, atol=1e-4)
  # Nor do new parameters, whose logits are even, predict anything else.
  np.testing.assert_allclose(
    transform.apply_inv(jnp.full((1, num_bins), 1 / num_bins)), 0, atol=1e-3
  )


def test_bins_are_spaced_after_the_square_root():
  """Halfway between two bins, by h(x) = sign(x)(sqrt(|x| + 1) - 1) + 0.001 x: both have half."""
  transform = model_lib.make_transform(3, 15.0)
  half = (np.sqrt(16.0) - 1 + 0.015) / 2
  low, high = 0.0, 15.0
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (low, middle) if np.sqrt(middle + 1) - 1 + 1e-3 * middle > half else (middle, high)
  np.testing.assert_allclose(transform.apply(jnp.asarray([low]))[0], [0.0, 0.5, 0.5], atol=1e-4)
  np.testing.assert_allclose(transform.apply(jnp.asarray([-low]))[0], [0.5, 0.5, 0.0], atol=1e-4)


# Latent states.


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (1e3, 2e3), (0.0, 1e-2)])
def test_latent_states_are_normalised(low, high):
  rng = np.random.default_rng(0)
  planes = jnp.asarray(rng.uniform(low, high, size=(5, 3, 3, 2)), jnp.float32)
  scaled = model_lib.scale_latent(planes)
  np.testing.assert_allclose(np.min(scaled, axis=(1, 2, 3)), 0.0, atol=1e-6)
  np.testing.assert_allclose(np.max(scaled, axis=(1, 2, 3)), 1.0, atol=1e-6)
  vectors = jnp.asarray(rng.uniform(low, high, size=(5, 64)), jnp.float32)
  standard = model_lib.standardise(vectors)
  np.testing.assert_allclose(np.mean(standard, axis=-1), 0.0, atol=1e-3)
  np.testing.assert_allclose(np.std(standard, axis=-1), 1.0, atol=0.5 if high < 1 else 1e-3)


@pytest.mark.parametrize("function", [model_lib.scale_latent, model_lib.standardise])
def test_a_latent_state_all_alike_stays_finite(function):
  found, gradient = jax.value_and_grad(lambda x: jnp.sum(function(x)))(jnp.full((2, 4), 7.0))
  assert found == 0 and np.all(np.isfinite(gradient))


# name: (observation, latent, shape of the latent state)
LATENTS = {
  "vector": (spec_of((5,)), "auto", (LATENT,)),
  "masked vector": (spec_of((5,), mask=True), "auto", (LATENT,)),
  "small image as vector": (spec_of((5, 6, 2)), "auto", (LATENT,)),
  "small image as planes": (spec_of((5, 6, 2)), "planes", (5, 6, LATENT)),
  "masked image as planes": (spec_of((3, 3, 2), mask=True), "planes", (3, 3, LATENT)),
}


@pytest.mark.parametrize("name", LATENTS)
def test_the_three_functions(name):
  spec, latent_kind, shape = LATENTS[name]
  model, params = make(spec, config_of(latent_kind))

  @jax.jit
  def call(observation):
    latent = model.apply(params, observation, method="represent")
    # [A, B, ...]
    repeated = jnp.broadcast_to(latent, (NUM_ACTIONS, *latent.shape)).reshape(-1, *shape)
    action = jnp.repeat(jnp.arange(NUM_ACTIONS), BATCH)
    steps, reward_logits = model.apply(params, repeated, action, method="step")
    prediction = model.apply(params, steps, method="predict")
    split = lambda x: x.reshape(NUM_ACTIONS, BATCH, *x.shape[1:])  # noqa: E731
    return latent, *(split(x) for x in (steps, reward_logits, *prediction))

  observation = random_observation(spec)
  latent, steps, reward_logits, policy_logits, value_logits = call(observation)
  assert latent.shape == (BATCH, *shape) and latent.dtype == jnp.float32
  assert policy_logits.shape == (NUM_ACTIONS, BATCH, NUM_ACTIONS)
  assert value_logits.shape == reward_logits.shape == (NUM_ACTIONS, BATCH, 7)
  for state in (latent, *steps):
    flat = state.reshape(BATCH, -1)
    if len(shape) == 1:
      np.testing.assert_allclose(np.mean(flat, axis=1), 0.0, atol=1e-5)
      np.testing.assert_allclose(np.std(flat, axis=1), 1.0, atol=1e-2)
    else:
      np.testing.assert_allclose(np.min(flat, axis=1), 0.0, atol=1e-6)
      np.testing.assert_allclose(np.max(flat, axis=1), 1.0, atol=1e-6)
  # An action changes the state and the reward.
  for one, other in ((0, 1), (1, 2), (0, 2)):
    assert np.all(np.any(np.abs(reward_logits[one] - reward_logits[other]) > 1e-4, axis=-1))
    assert not np.allclose(steps[one], steps[other], atol=1e-4)
  # Streams of a batch don't meet.
  changed = jax.tree.map(lambda x: np.concatenate([x[:1], 1 - x[1:]]), observation)
  latent_too, *others = call(changed)
  np.testing.assert_allclose(latent[0], latent_too[0], atol=1e-6)
  for x, y in zip((steps, reward_logits, policy_logits, value_logits), others, strict=True):
    np.testing.assert_allclose(x[:, 0], y[:, 0], atol=1e-5)
    assert not np.allclose(x[:, 1], y[:, 1], atol=1e-4)


@pytest.mark.parametrize("name", LATENTS)
def test_what_chance_does(name):
  """An action leads to an afterstate, and a code from there to a latent state and a reward."""
  spec, latent_kind, shape = LATENTS[name]
  num_codes = 4
  model, params = make(spec, config_of(latent_kind), num_codes)
  before, after = (random_observation(spec, seed) for seed in (0, 1))
  action = jnp.arange(BATCH)

  @jax.jit
  def call(before, after):
    latent = model.apply(params, before, method="represent")
    afterstate = model.apply(params, latent, action, method="decide")
    shares = model.apply(params, before, after, method="encode")
    happened = [
      model.apply(params, afterstate.latent, jnp.full(BATCH, code), method="happen")
      for code in range(num_codes)
    ]
    again = model.apply(
      params, afterstate.latent, jax.nn.one_hot(jnp.ones(BATCH, int), num_codes), method="happen"
    )
    return afterstate, shares, happened, again

  afterstate, shares, happened, again = call(before, after)
  assert afterstate.latent.shape == (BATCH, *shape)
  assert afterstate.chance_logits.shape == shares.shape == (BATCH, num_codes)
  assert afterstate.value_logits.shape == happened[0].reward_logits.shape == (BATCH, 7)
  np.testing.assert_allclose(np.sum(shares, axis=-1), 1.0, atol=1e-5)
  # A code may come as a number or as one-hot.
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), happened[1], again)
  for one, other in ((0, 1), (1, 2), (2, 3)):
    assert not np.allclose(happened[one].latent, happened[other].latent, atol=1e-4)
    assert not np.allclose(happened[one].reward_logits, happened[other].reward_logits, atol=1e-4)
  # The encoder sees both observations.
  assert not np.allclose(shares, call(before, before)[1], atol=1e-4)
  assert not np.allclose(shares, call(after, after)[1], atol=1e-4)


@pytest.mark.parametrize(
  ("shape", "planes"),
  [
    ((96, 96, 3), (6, 6)),
    ((84, 84, 4), (6, 6)),
    ((4, 84, 84), (6, 6)),
    ((64, 80, 3), (4, 5)),
    ((36, 36, 1), (3, 3)),
  ],
)
@pytest.mark.parametrize("mask", [False, True])
def test_large_images_become_small_planes(shape, planes, mask):
  spec = spec_of(shape, BYTES, mask)
  model = model_lib.Model(NETWORK, config_of(), spec)
  observation = types.zeros_like(spec.observation, (BATCH,))
  action = jnp.zeros((BATCH,), jnp.int32)

  def all_of_it(key):
    params = model.init(key, observation, action)
    latent = model.apply(params, observation, method="represent")
    return latent, model.apply(params, latent, action, method="step").latent

  for latent in jax.eval_shape(all_of_it, jax.random.key(0)):
    assert latent.shape == (BATCH, *planes, LATENT)


@pytest.mark.parametrize(
  ("shape", "latent"),
  [((36, 36, 1), "planes"), ((6, 5, 2), "planes"), ((6, 5, 2), "vector"), ((7,), "vector")],
)
def test_bytes_are_read_as_shares_of_255(shape, latent):
  observation = random_observation(spec_of(shape, BYTES))
  found = [
    represent(spec_of(shape, dtype), config_of(latent), x)
    for dtype, x in ((BYTES, observation), (FLOATS, np.float32(observation) / 255))
  ]
  np.testing.assert_allclose(*found, atol=1e-4)


def test_channels_may_come_first():
  image = random_observation(spec_of((3, 5, 5)))
  found = [
    represent(spec_of(x.shape[1:]), config_of("planes"), x)
    for x in (image, np.moveaxis(image, 1, -1))
  ]
  np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize(
  ("spec", "latent", "expected"),
  [
    (spec_of((5,)), "auto", False),
    (spec_of((5, 5)), "auto", False),
    (spec_of((35, 35, 3)), "auto", False),
    (spec_of((36, 36, 3)), "auto", True),
    (spec_of((35, 84, 3)), "auto", False),
    (spec_of((36, 84, 3)), "auto", True),
    (spec_of((4, 84, 84)), "auto", True),
    (spec_of((84, 84, 4), mask=True), "auto", True),
    (spec_of((84, 84, 4), speed=((2,), FLOATS)), "auto", False),
    (spec_of((84, 84, 4)), "vector", False),
    (spec_of((3, 3, 2)), "planes", True),
    (spec_of((5,)), "vector", False),
    (spec_of((84, 84, 4), speed=((2,), FLOATS)), "vector", False),
  ],
)
def test_what_has_planes(spec, latent, expected):
  assert model_lib.has_planes(config_of(latent), spec) is expected


@pytest.mark.parametrize(
  "spec", [spec_of((5,)), spec_of((5, 5)), spec_of((84, 84, 4), speed=((2,), FLOATS))]
)
def test_planes_need_one_image(spec):
  with pytest.raises(config_lib.InputError, match=r"^model.latent=planes needs .*, probe has .*$"):
    model_lib.has_planes(config_of("planes"), spec)


def test_a_new_model_predicts_nothing():
  """Values and rewards begin near 0 and the policy near uniform, whatever the observation."""
  spec = spec_of((5,))
  model = model_lib.Model(NETWORK, config_of(num_bins=21), spec)
  observation = random_observation(spec)
  params = jax.jit(model.init)(jax.random.key(0), observation, jnp.zeros(BATCH, jnp.int32))
  prediction, transition = model.apply(params, observation, jnp.zeros(BATCH, jnp.int32))
  for logits in (*prediction, transition.reward_logits):
    np.testing.assert_allclose(jax.nn.softmax(logits), 1 / logits.shape[-1], atol=0.01)
