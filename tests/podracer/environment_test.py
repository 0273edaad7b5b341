import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import environment, testing, types

FIRST, MID, LAST = types.FIRST, types.MID, types.LAST
# Step types, rewards, discounts and positions of six steps of one kind of episode.
COURSES = {
  (1, "terminate"): (
    [FIRST, LAST, FIRST, LAST, FIRST, LAST, FIRST],
    [0, 1, 0, 1, 0, 1, 0],
    [1, 0, 1, 0, 1, 0, 1],
    [0, 1, 0, 1, 0, 1, 0],
  ),
  (3, "terminate"): (
    [FIRST, MID, MID, LAST, FIRST, MID, MID],
    [0, 1, 2, 3, 0, 1, 2],
    [1, 1, 1, 0, 1, 1, 1],
    [0, 1, 2, 3, 0, 1, 2],
  ),
  (3, "truncate"): (
    [FIRST, MID, MID, LAST, FIRST, MID, MID],
    [0, 1, 2, 3, 0, 1, 2],
    [1, 1, 1, 1, 1, 1, 1],
    [0, 1, 2, 3, 0, 1, 2],
  ),
  (2, "both"): (
    [FIRST, MID, LAST, FIRST, MID, LAST, FIRST],
    [0, 1, 2, 0, 1, 2, 0],
    [1, 1, 0, 1, 1, 0, 1],
    [0, 1, 2, 0, 1, 2, 0],
  ),
  (6, "terminate"): (
    [FIRST, MID, MID, MID, MID, MID, LAST],
    [0, 1, 2, 3, 4, 5, 6],
    [1, 1, 1, 1, 1, 1, 0],
    [0, 1, 2, 3, 4, 5, 6],
  ),
}


def _keys(num_environments, seed=0):
  return jax.random.split(jax.random.key(seed), num_environments)


def _walk(made, keys, num_steps):
  """Returns the time steps `[num_steps + 1, B]` of action 0, by a scan under jit."""
  action = jnp.zeros(keys.shape, jnp.int32)

  def walk(keys):
    state, first = environment.reset(made, keys)

    def step(state, _):
      return environment.step(made, state, action)

    _, rest = jax.lax.scan(step, state, None, num_steps)
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)

  return types.to_numpy(jax.jit(walk)(keys))


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("reset_chunk", [0, 2])
@pytest.mark.parametrize("episode", COURSES)
def test_course_is_the_one_computed_by_hand(episode, reset_chunk):
  made = testing.chain_environment((episode,))._replace(reset_chunk=reset_chunk)
  course = _walk(made, _keys(3), 6)
  step_type, reward, discount, position = COURSES[episode]
  for stream in range(3):
    np.testing.assert_array_equal(course.step_type[:, stream], step_type)
    np.testing.assert_array_equal(course.reward[:, stream], reward)
    np.testing.assert_array_equal(course.discount[:, stream], discount)
    np.testing.assert_array_equal(np.argmax(course.observation[:, stream], axis=-1), position)


def test_dtypes_are_those_of_the_contract():
  course = _walk(testing.chain_environment(), _keys(2), 4)
  assert course.step_type.dtype == np.int8
  assert course.reward.dtype == np.float32
  assert course.discount.dtype == np.float32
  assert course.step_type.shape == (5, 2)


def test_step_after_last_ignores_its_action():
  made = testing.probe_policy()
  state, _ = environment.reset(made, _keys(4))
  state, timestep = environment.step(made, state, jnp.zeros(4, jnp.int32))
  assert np.all(timestep.is_last())
  for reset_chunk in (0, 2):
    other = made._replace(reset_chunk=reset_chunk)
    _assert_equal(
      environment.step(other, state, jnp.zeros(4, jnp.int32))[1],
      environment.step(other, state, jnp.ones(4, jnp.int32))[1],
    )


def test_each_episode_is_drawn_anew():
  observations = _walk(testing.probe_observation(), _keys(1), 200).observation[::2, 0, 0]
  assert set(np.unique(observations)) == {-1.0, 1.0}
  assert 30 < np.sum(observations > 0) < 70


@pytest.mark.parametrize("reset_chunk", [1, 3, 7, 100])
def test_chunks_equal_the_select_however_many_end_at_once(reset_chunk):
  made = testing.chain_environment(((4, "terminate"), (2, "truncate"), (9, "both")))
  chunked = made._replace(reset_chunk=reset_chunk)
  state, _ = environment.reset(made, _keys(7))
  action = jnp.zeros(7, jnp.int32)
  select_step = jax.jit(lambda s: environment.step(made, s, action))
  chunk_step = jax.jit(lambda s: environment.step(chunked, s, action))
  for num_ends in range(8):
    ends = np.random.default_rng(num_ends).permutation(7) < num_ends
    state = state._replace(needs_reset=jnp.asarray(ends))
    expected, found = select_step(state), chunk_step(state)
    np.testing.assert_array_equal(found[1].is_first(), ends)
    _assert_equal(jax.tree.map(_raw, expected), jax.tree.map(_raw, found))


def _raw(x):
  return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_chunks_compute_resets_only_for_those_that_need_one():
  num_resets = []

  def count(made):
    def reset(key):
      jax.debug.callback(lambda _: num_resets.append(1), key)
      return made.reset(key)

    return made._replace(reset=reset)

  made = count(testing.chain_environment())
  state, _ = environment.reset(made, _keys(6))
  ends = jnp.asarray([False, True, False, False, True, False])
  state = state._replace(needs_reset=ends)
  for reset_chunk, expected in ((0, 6), (1, 2), (3, 3)):
    jax.effects_barrier()
    num_resets.clear()
    environment.step(made._replace(reset_chunk=reset_chunk), state, jnp.zeros(6, jnp.int32))
    jax.effects_barrier()
    assert len(num_resets) == expected


def test_continuous_actions_are_clipped_to_the_bounds():
  made = testing.probe_continuous(target=0.5, size=2)
  actions = jnp.asarray([[0.5, 0.5], [3.0, 0.5], [-9.0, -1.0], [1.0, 0.0]])
  state, _ = environment.reset(made, _keys(4))
  _, timestep = environment.step(made, state, actions)
  np.testing.assert_allclose(timestep.reward, [0.0, -0.25, -4.5, -0.5])


def test_random_numbers_differ_between_steps_and_environments():
  noise = types.ArraySpec((1,), jnp.dtype("float32"))

  def step(key, state, action):
    del action
    return state, environment.Outcome(
      observation=jax.random.uniform(key, (1,)),
      reward=jnp.zeros(()),
      terminated=jnp.asarray(False),
      truncated=jnp.asarray(False),
    )

  made = environment.Environment(
    spec=types.EnvironmentSpec("noise", noise, types.DiscreteActions(2)),
    reset=lambda key: ((), jax.random.uniform(key, (1,))),
    step=step,
  )
  observations = _walk(made, _keys(5), 20).observation
  assert len(np.unique(observations)) == observations.size
