import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from podracer import checkpoint, config, replay, types

KEY = jax.random.key(0)
T, B = 3, 4
KINDS = ("uniform", "prioritised")


@functools.partial(jax.jit, static_argnames="batch_size")
def unrolls(count, batch_size=B):
  """Returns the `count`-th trajectory; each leaf tells its unroll, `count * B + b`, and its time."""
  tag = count * batch_size + jnp.arange(batch_size)  # [B]
  time = jnp.arange(T + 1)[:, None]
  tags = tag + 0 * time  # [T+1, B]
  timesteps = types.TimeStep(
    step_type=(tags % 3).astype(jnp.int8),
    reward=tags + time / 8,
    discount=(tags % 2).astype(jnp.float32),
    observation={
      "picture": jnp.broadcast_to(tags[..., None, None], (T + 1, batch_size, 2, 2)).astype(
        jnp.uint8
      ),
      types.ACTION_MASK: tags[..., None] & (1 << jnp.arange(6)) > 0,
    },
  )
  tags = tags[:-1]
  outputs = types.ActorOutput(
    action=tags * 10 + time[:-1],
    logits=jnp.stack([tags, -tags], -1).astype(jnp.bfloat16),
    log_prob=-tags.astype(jnp.float32),
    value=tags.astype(jnp.float32),
  )
  state = (jnp.stack([tag, 2 * tag], -1).astype(jnp.float32), tag.astype(jnp.int8))
  return types.Trajectory(timesteps, outputs, state)


def of_tags(tags):
  """Returns, leaf by leaf, the trajectory of the unrolls `tags`, `[T+1, S, ...]`."""
  every = unrolls(0, int(max(tags)) + 1)
  return types.map_batch(lambda axis, x: jnp.take(x, jnp.asarray(tags), axis=axis), every)


def tags_of(trajectory):
  return np.asarray(trajectory.initial_state[0][:, 0]).astype(int)


SHAPES = jax.eval_shape(lambda: unrolls(0))


def make(num_kept=5, kind="prioritised", num_drawn=8, num_devices=1, batch_size=B, **keywords):
  values = {
    "capacity": num_kept * T * batch_size,
    "batch_size": num_drawn,
    "kind": kind,
    **keywords,
  }
  return replay.make_replay(config.ReplayConfig(**values), batch_size, T, num_devices)


def filled(made, num_adds):
  state = made.init(SHAPES)
  for count in range(num_adds):
    state = made.add(state, unrolls(count))
  return state


@functools.partial(jax.jit, static_argnums=0)
def draw_often(made, state, key=KEY):
  """Returns 1000 samples' unrolls, `[1000, S]`."""
  samples = jax.vmap(made.sample, in_axes=(None, 0))(state, jax.random.split(key, 1000))
  return samples.trajectory.initial_state[0][..., 0].astype(jnp.int32)


def assert_drawn_like(drawn, expected):
  """Checks counts against probabilities by chi-square, at about five standard deviations."""
  drawn = np.bincount(np.ravel(drawn), minlength=len(expected))
  mean = np.asarray(expected) / np.sum(expected) * drawn.sum()
  assert not drawn[mean == 0].any()
  drawn, mean = drawn[mean > 0], mean[mean > 0]
  freedom = len(mean) - 1
  assert np.sum((drawn - mean) ** 2 / mean) < freedom + 5 * np.sqrt(2 * freedom)


def leaves(state, made_kept=5):
  """Returns the priorities of the unrolls, `[B, U]`."""
  nodes = np.asarray(state.priorities.nodes)
  return nodes[nodes.size // 2 :][: B * made_kept].reshape(B, made_kept)


def assert_trees_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", [pytest.param("uniform", marks=pytest.mark.slow), "prioritised"])
def test_what_goes_in_comes_out_unmixed(kind):
  made = make(kind=kind, num_drawn=64)
  sample = made.sample(filled(made, 4), KEY)
  tags = tags_of(sample.trajectory)
  assert set(tags) == set(range(16))
  expected = of_tags(tags)
  drawn = sample.trajectory._replace(importance_weights=None)
  assert_trees_equal(drawn, expected)
  assert jax.tree.map(lambda x: x.dtype, drawn) == jax.tree.map(lambda x: x.dtype, expected)
  if kind == "uniform":
    assert sample.indices == () and sample.trajectory.importance_weights is None
  else:
    assert sample.indices.shape == sample.trajectory.importance_weights.shape == (64,)
    assert sample.indices.dtype == jnp.int32


@pytest.mark.parametrize("kind", KINDS)
def test_the_oldest_are_overwritten(kind):
  made = make(kind=kind, num_kept=3, num_drawn=64)
  state = made.init(SHAPES)
  for count in range(8):
    state = made.add(state, unrolls(count))
    oldest = max(0, count - 2)
    expected = np.zeros((count + 1) * B)
    expected[oldest * B :] = 1
    assert_drawn_like(draw_often(made, state), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", (1, B))
def test_one_unroll_of_each_environment(kind, batch_size):
  made = make(kind=kind, capacity=1, batch_size=batch_size)
  state = made.init(jax.eval_shape(lambda: unrolls(0, batch_size)))
  assert not made.can_sample(state)
  for count in range(3):
    state = made.add(state, unrolls(count, batch_size))
    sample = made.sample(state, KEY)
    assert set(tags_of(sample.trajectory)) == set(count * batch_size + np.arange(batch_size))
    state = made.set_priorities(state, sample.indices, jnp.ones(8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  ("num_devices", "min_size", "num_adds"),
  [(1, 0, 1), (1, 1, 1), (1, 12, 1), (1, 13, 2), (1, 24, 2), (2, 24, 1), (2, 25, 2), (1, 70, 5)],
)
def test_can_sample_from_min_size_on(kind, num_devices, min_size, num_adds):
  # A capacity of 70 has room for five times 12 steps, and so is full with 60.
  made = make(kind=kind, capacity=70 * num_devices, min_size=min_size, num_devices=num_devices)
  state = made.init(SHAPES)
  for count in range(8):
    assert made.can_sample(state) == (count >= num_adds)
    state = made.add(state, unrolls(count))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_over_all_devices(kind):
  keywords = {"kind": kind, "capacity": 8 * T * B, "num_drawn": 6}
  one, two = make(**keywords), make(**keywords, num_devices=2)
  assert one.init(SHAPES).unrolls.experience.timesteps.reward.shape == (B, 8, T + 1)
  assert two.init(SHAPES).unrolls.experience.timesteps.reward.shape == (B, 4, T + 1)
  assert two.sample(filled(two, 1), KEY).trajectory.timesteps.reward.shape == (T + 1, 3)


def test_uniform_draws_all_alike():
  made = make(kind="uniform", num_drawn=32)
  assert_drawn_like(draw_often(made, filled(made, 4)), [1] * 16)
  assert_drawn_like(draw_often(made, filled(made, 7)), [0] * 8 + [1] * 20)


def with_errors(made, errors, num_adds=5):
  """Returns a full replay in which the unroll of tag i has the error `errors[i]`."""
  by_environment = np.reshape(errors, (num_adds, B)).T
  return made.set_priorities(
    filled(made, num_adds),
    jnp.arange(num_adds * B),
    jnp.asarray(by_environment.ravel(), jnp.float32),
  )


@pytest.mark.parametrize("alpha", (0.0, 0.6, 1.0))
def test_prioritised_draws_by_error_to_alpha(alpha):
  made = make(num_drawn=32, priority_exponent=alpha)
  errors = np.arange(20.0) ** 2
  drawn = draw_often(made, with_errors(made, errors))
  assert_drawn_like(drawn, (errors + replay.EPSILON) ** alpha)
  # In random order: a part of a sample is a sample.
  assert_drawn_like(drawn[:, :4], (errors + replay.EPSILON) ** alpha)


@pytest.mark.parametrize("beta", (0.0, 0.4, 1.0))
def test_importance_weights(beta):
  made = make(importance_exponent=beta, priority_exponent=0.7)
  errors = 1 + np.arange(20.0)
  sample = made.sample(with_errors(made, errors), KEY)
  probabilities = (errors + replay.EPSILON) ** 0.7
  probabilities /= probabilities.sum()
  weights = (1 / (20 * probabilities[tags_of(sample.trajectory)])) ** beta
  actual = sample.trajectory.importance_weights
  np.testing.assert_allclose(actual, weights / weights.max(), rtol=1e-5)
  assert actual.dtype == jnp.float32


def test_priorities_set_where_drawn():
  made = make(num_drawn=32, priority_exponent=1.0)
  state = filled(made, 5)
  assert_drawn_like(draw_often(made, state), [1] * 20)
  sample = made.sample(state, KEY)
  tags = tags_of(sample.trajectory)
  state = made.set_priorities(state, sample.indices, jnp.asarray(tags % 3 + 2.0))
  expected = np.ones(20)
  expected[tags] = tags % 3 + 2
  assert_drawn_like(draw_often(made, state), expected)


def test_uniform_has_no_priorities():
  made = make(kind="uniform")
  state = filled(made, 2)
  assert made.set_priorities(state, made.sample(state, KEY).indices, jnp.ones(8)) is state


def test_new_unrolls_have_the_largest_priority():
  made = make(num_drawn=32, priority_exponent=1.0)
  state = made.add(made.init(SHAPES), unrolls(0))
  np.testing.assert_array_equal(leaves(state)[:, 0], 1.0)
  state = made.set_priorities(state, jnp.arange(B) * 5, jnp.array([0.5, 1.9, 0.0, 0.3]))
  state = made.add(state, unrolls(1))
  # Not rounded, which flashbax's own would be.
  np.testing.assert_allclose(leaves(state)[:, 1], 1.9, rtol=1e-5)
  assert_drawn_like(draw_often(made, state), [0.5, 1.9, 1e-6, 0.3] + [1.9] * 4)


def test_the_larger_error_of_one_drawn_twice_counts_and_nan_changes_nothing():
  made = make(priority_exponent=1.0)
  state = filled(made, 5)
  errors = jnp.array([3.0, 5.0, 4.0, jnp.nan, jnp.inf, 2.0])
  state = made.set_priorities(state, jnp.array([7, 7, 7, 8, 9, 19]), errors)
  expected = np.ones(20)
  expected[[7, 19]] = 5, 2
  np.testing.assert_allclose(leaves(state).ravel(), expected, rtol=1e-5)
  assert np.all(np.isfinite(state.priorities.nodes))
  np.testing.assert_allclose(state.priorities.max_recorded_priority, 5.0, rtol=1e-5)


def test_sums_do_not_drift():
  made = make(priority_exponent=1.0, num_drawn=16)

  def step(state, key):
    index_key, error_key = jax.random.split(key)
    indices = jax.random.randint(index_key, (16,), 0, 20)
    errors = jnp.exp(3 * jax.random.normal(error_key, (16,)))
    return made.set_priorities(state, indices, errors), None

  state, _ = jax.lax.scan(step, filled(made, 5), jax.random.split(KEY, 5000))
  nodes = np.asarray(state.priorities.nodes)
  np.testing.assert_array_equal(nodes[: nodes.size // 2], nodes[1::2] + nodes[2::2])


def test_a_draw_that_rounding_leads_astray_is_a_stored_unroll():
  made = make(num_drawn=64)
  state = filled(made, 2)
  tree = state.priorities
  astray = tree.replace(nodes=tree.nodes.at[0].multiply(2.0))
  sample = made.sample(state._replace(priorities=astray), KEY)
  assert set(tags_of(sample.trajectory)) == set(range(8))
  np.testing.assert_allclose(sample.trajectory.importance_weights, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_the_empty_replay_is_finite(kind):
  made = make(kind=kind)
  sample = made.sample(made.init(SHAPES), KEY)
  for leaf in jax.tree.leaves(sample):
    assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


@pytest.mark.parametrize("kind", KINDS)
def test_same_key_same_sample(kind):
  made = make(kind=kind)
  state = filled(made, 5)
  assert_trees_equal(made.sample(state, KEY), made.sample(state, KEY))
  other = made.sample(state, jax.random.key(1))
  assert np.any(tags_of(other.trajectory) != tags_of(made.sample(state, KEY).trajectory))


@pytest.mark.parametrize("kind", KINDS)
def test_no_leaves_and_none(kind):
  made = make(kind=kind)
  trajectory = unrolls(0)._replace(initial_state=())
  state = made.add(made.init(trajectory), trajectory)
  drawn = made.sample(state, KEY).trajectory._replace(importance_weights=None)
  assert jax.tree.structure(drawn) == jax.tree.structure(trajectory)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_enough_to_begin(kind):
  made = make(kind=kind)
  state = made.init(SHAPES)
  assert_trees_equal(state, made.init(unrolls(3)))
  assert_trees_equal(state, jax.jit(made.init)(unrolls(3)))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.unrolls))
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
  shapes = jax.eval_shape(made.init, SHAPES)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes
  )
  with pytest.raises(AssertionError):
    made.init(jax.eval_shape(lambda: unrolls(0, B + 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_flashbax_has_nothing_to_warn_of(kind, capsys):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for capacity in (1, 12, 100):
      made = make(kind=kind, capacity=capacity, min_size=capacity)
      made.sample(filled(made, 2), KEY)
  assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_devices", (1, 2))
def test_num_bytes(kind, num_devices):
  made = make(kind=kind, num_devices=num_devices)
  values = config.ReplayConfig(capacity=5 * T * B, kind=kind)
  expected = sum(leaf.nbytes for leaf in jax.tree.leaves(made.init(SHAPES)))
  assert replay.num_bytes(values, SHAPES, num_devices) == expected
  assert replay.num_bytes(values, unrolls(0), num_devices) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_brings_it_back(kind, tmp_path):
  made = make(kind=kind)
  state = filled(made, 3)
  flat, _ = jax.tree_util.tree_flatten_with_path(state)
  assert len({jax.tree_util.keystr(path) for path, _ in flat}) == len(flat)
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save(1, {"replay": state}, {})
  assert checkpointer.wait()
  restored = checkpointer.restore({"replay": made.init(SHAPES)}).items["replay"]
  checkpointer.close()
  assert_trees_equal(restored, state)
  assert_trees_equal(made.sample(restored, KEY), made.sample(state, KEY))


def update(made, state, key, count):
  """Does what a learner does; returns the unrolls drawn."""
  state = made.add(state, unrolls(count))

  def step(state, key):
    sample = made.sample(state, key)
    errors = jnp.abs(sample.trajectory.timesteps.reward).mean(0)
    return made.set_priorities(state, sample.indices, errors), sample.trajectory.initial_state[0]

  def learn(state):
    return jax.lax.scan(step, state, jax.random.split(key, 2))

  shape = jax.eval_shape(learn, state)[1]

  def wait(state):
    return state, jnp.full(shape.shape, -1, shape.dtype)

  return jax.lax.cond(made.can_sample(state), learn, wait, state)


def run(made, state, key, num_updates=8):
  """Scans `num_updates` updates."""
  xs = jax.random.split(key, num_updates), jnp.arange(num_updates)
  return jax.lax.scan(lambda state, x: update(made, state, *x), state, xs)


@pytest.mark.parametrize("kind", KINDS)
def test_under_jit_with_donation_and_scan(kind):
  made = make(kind=kind, min_size=2 * T * B)
  step = jax.jit(functools.partial(update, made), donate_argnums=0)
  state = made.init(SHAPES)
  seen = []
  for count, key in enumerate(jax.random.split(KEY, 8)):
    before = state
    state, drawn = step(state, key, count)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    seen.append(drawn)
  assert np.all(seen[0] == -1) and np.all(np.stack(seen[1:]) >= 0)
  assert step._cache_size() == 1
  scanned, drawn = jax.jit(functools.partial(run, made))(made.init(SHAPES), KEY)
  assert_trees_equal(scanned, state)
  np.testing.assert_array_equal(drawn, np.stack(seen))


@pytest.mark.parametrize("kind", KINDS)
def test_under_vmap_each_seed_is_as_alone(kind):
  made = make(kind=kind, min_size=2 * T * B)
  keys = jax.random.split(KEY, 3)
  states = jax.vmap(lambda _: made.init(SHAPES))(jnp.arange(3))
  states, drawn = jax.jit(jax.vmap(functools.partial(run, made)))(states, keys)
  alone = [jax.jit(functools.partial(run, made))(made.init(SHAPES), key) for key in keys]
  assert_trees_equal((states, drawn), jax.tree.map(lambda *xs: jnp.stack(xs), *alone))


def on_devices(function, num_devices, *leading):
  """Returns `function` of (state `[..., D, ...]`, keys `[D]`) under shard_map."""
  mesh = jax.make_mesh(
    (num_devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:num_devices]
  )
  specs = P(*leading, "data"), P("data")

  def mapped(state, keys):
    return function(state, keys[0])

  return jax.shard_map(
    mapped, mesh=mesh, in_specs=specs, out_specs=P(*leading, "data"), check_vma=False
  )


@pytest.mark.parametrize("kind", KINDS)
def test_under_shard_map_each_device_is_as_alone(kind):
  made = make(kind=kind, num_devices=2, num_kept=10, num_drawn=16)
  sharded = replay.with_device_axis(made)

  def run_one(state, key):
    state, drawn = run(sharded, state, key)
    return state, drawn[None]

  keys = jax.random.split(KEY, 2)
  states = jax.tree.map(lambda x: jnp.concatenate([x, x]), sharded.init(SHAPES))
  together = jax.jit(on_devices(run_one, 2), donate_argnums=0)(states, keys)
  alone = [jax.jit(functools.partial(run, made))(made.init(SHAPES), key) for key in keys]
  assert_trees_equal(together, jax.tree.map(lambda *xs: jnp.stack(xs), *alone))


def scan_on_device(made, state, key):
  return run(replay.with_device_axis(made), state, key)[0]


def seeds_on_device(made, state, key):
  return jax.vmap(functools.partial(scan_on_device, made))(state, jax.random.split(key, 2))


PROGRAMS = {
  "scan": (lambda made: lambda state, keys: run(made, state, keys[0])[0], ()),
  "shard_map": (lambda made: on_devices(functools.partial(scan_on_device, made), 1), (1,)),
  "seeds": (lambda made: on_devices(functools.partial(seeds_on_device, made), 1, None), (2, 1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_copies_the_replay(kind, program):
  build, leading = PROGRAMS[program]

  def memory(num_kept):
    made = make(kind=kind, num_kept=num_kept)
    shapes = jax.eval_shape(made.init, SHAPES)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype), shapes)
    compiled = jax.jit(build(made), donate_argnums=0).lower(state, KEY[None]).compile()
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state.unrolls))
    return compiled.memory_analysis().temp_size_in_bytes, size

  (small, size_of_small), (large, size_of_large) = memory(10), memory(1000)
  assert large - small < 0.2 * (size_of_large - size_of_small)
