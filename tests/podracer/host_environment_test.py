import jax
import numpy as np
import pytest

from podracer import config, environment, host_environment, testing, types

FIRST, MID, LAST = types.FIRST, types.MID, types.LAST
FLOATS = types.ArraySpec((2,), np.dtype("float32"))
DISCRETE = types.EnvironmentSpec("some:thing", FLOATS, types.DiscreteActions(3))
CONTINUOUS = types.EnvironmentSpec(
  "some:thing", FLOATS, types.ContinuousActions((-1.0, -1.0), (1.0, 1.0))
)
# Each begins another kind of episode at every reset, by its key.
MIXED = testing.chain_environment(((1, "terminate"), (4, "truncate"), (2, "both")))


@pytest.mark.parametrize(
  ("spec", "action"),
  [
    (DISCRETE, np.asarray([0, 2], np.int32)),
    (DISCRETE, np.asarray([1, 1], np.int64)),
    (DISCRETE, np.asarray([2, 0], np.uint8)),
    (CONTINUOUS, np.zeros((2, 2), np.float32)),
    # One outside of the box is clipped by the environment.
    (CONTINUOUS, np.full((2, 2), 7.0, np.float64)),
  ],
)
def test_check_action_lets_right_actions_pass(spec, action):
  host_environment.check_action(spec, action, 2)


@pytest.mark.parametrize(
  ("spec", "action", "message"),
  [
    (DISCRETE, np.zeros(3, np.int32), r"takes actions \[2\] of integers, got \[3\] of int32"),
    (DISCRETE, np.zeros((2, 1), np.int32), r"takes actions \[2\] of integers, got \[2, 1\]"),
    (DISCRETE, np.asarray(0), r"takes actions \[2\] of integers, got \[\]"),
    (DISCRETE, np.zeros(2, np.float32), r"of integers, got \[2\] of float32"),
    (DISCRETE, np.zeros(2, bool), r"of integers, got \[2\] of bool"),
    (DISCRETE, np.asarray([0, 3]), r"has actions 0 \.\. 2, got 0 \.\. 3"),
    (DISCRETE, np.asarray([-1, 1]), r"has actions 0 \.\. 2, got -1 \.\. 1"),
    (CONTINUOUS, np.zeros(2, np.float32), r"takes actions \[2, 2\] of floats, got \[2\]"),
    (CONTINUOUS, np.zeros((2, 3), np.float32), r"takes actions \[2, 2\] of floats, got \[2, 3\]"),
    (CONTINUOUS, np.zeros((2, 2), np.int32), r"of floats, got \[2, 2\] of int32"),
    (CONTINUOUS, np.asarray([[0, 0], [0, np.nan]]), "some:thing is not finite"),
    (CONTINUOUS, np.asarray([[0, np.inf], [0, -np.inf]]), "some:thing is not finite"),
  ],
)
def test_check_action_tells_wrong_ones(spec, action, message):
  with pytest.raises(ValueError, match=message):
    host_environment.check_action(spec, action, 2)


def _timestep(observation, reward=(0.0, 0.0, 0.0)):
  return types.TimeStep(
    step_type=np.full((3,), MID, np.int8),
    reward=np.asarray(reward, np.float32),
    discount=np.ones((3,), np.float32),
    observation=observation,
  )


def test_check_timestep_lets_right_ones_pass():
  greatest = np.full((3, 2), np.finfo(np.float32).max, np.float32)
  # Its sum is not finite, but each number is.
  with np.errstate(over="ignore"):
    assert not np.isfinite(greatest.sum())
  host_environment.check_timestep(DISCRETE, _timestep(greatest), 3)
  both = {"a": FLOATS, "b": types.ArraySpec((), np.dtype("int32"))}
  observation = {"b": np.zeros(3, np.int32), "a": np.zeros((3, 2), np.float32)}
  host_environment.check_timestep(DISCRETE._replace(observation=both), _timestep(observation), 3)


@pytest.mark.parametrize(
  ("timestep", "message"),
  [
    (
      _timestep(np.zeros((3, 3), np.float32)),
      r"observation \[3, 3\] of float32, its spec says \[3, 2\] of float32",
    ),
    (_timestep(np.zeros((2, 2), np.float32)), r"observation \[2, 2\] of float32, its spec says"),
    (_timestep(np.zeros((3, 2))), r"observation \[3, 2\] of float64, its spec says \[3, 2\]"),
    (
      _timestep({"a": np.zeros((3, 2), np.float32), "b": np.zeros(3)}),
      "observation of 2 arrays, not 1",
    ),
    (
      _timestep(np.zeros((3, 2), np.float32), reward=np.zeros((3, 1))),
      r"reward \[3, 1\] of float32, its spec says \[3\]",
    ),
    (
      _timestep(np.zeros((3, 2), np.float32), reward=(0, 0, np.nan)),
      "reward that is not finite, in environment 2 of its batch of 3",
    ),
    (
      _timestep(np.asarray([[np.nan, 0], [0, 0], [0, np.inf]], np.float32)),
      "observation that is not finite, in environment 0, 2 of its batch of 3",
    ),
    (
      _timestep(np.asarray([[0, 0], [np.inf, -np.inf], [0, 0]], np.float32)),
      "observation that is not finite, in environment 1 of its batch of 3",
    ),
  ],
)
@pytest.mark.filterwarnings("error")
def test_check_timestep_tells_wrong_ones(timestep, message):
  with pytest.raises(ValueError, match=f"environment some:thing returned .*{message}"):
    host_environment.check_timestep(DISCRETE, timestep, 3)


def test_make_timestep_by_hand():
  table = [
    # was_last, terminated, truncated -> step type, reward, discount
    (False, False, False, MID, 5.0, 1.0),
    (False, True, False, LAST, 5.0, 0.0),
    (False, False, True, LAST, 5.0, 1.0),
    (False, True, True, LAST, 5.0, 0.0),
    # What an environment says of the step that resets is not heard.
    (True, False, False, FIRST, 0.0, 1.0),
    (True, True, False, FIRST, 0.0, 1.0),
    (True, False, True, FIRST, 0.0, 1.0),
    (True, True, True, FIRST, 0.0, 1.0),
  ]
  was_last, terminated, truncated, step_type, reward, discount = map(
    np.asarray, zip(*table, strict=True)
  )
  observation = np.arange(8.0)
  timestep = host_environment.make_timestep(
    was_last, np.full((8,), 5.0), terminated, truncated, observation
  )
  np.testing.assert_array_equal(timestep.step_type, step_type)
  np.testing.assert_array_equal(timestep.reward, reward)
  np.testing.assert_array_equal(timestep.discount, discount)
  assert timestep.observation is observation
  dtypes = [timestep.step_type.dtype, timestep.reward.dtype, timestep.discount.dtype]
  assert dtypes == [np.int8, np.float32, np.float32]


def test_seeds_are_distinct_small_and_the_same_again():
  streams = [host_environment.make_seeds(seed, 64, stream) for seed in (0, 1) for stream in (0, 1)]
  everything = [seed for stream in streams for seed in stream]
  assert len(set(everything)) == 4 * 64
  assert all(type(seed) is int and 0 <= seed < 2**31 for seed in everything)
  assert host_environment.make_seeds(1, 64, 1) == streams[3]
  assert host_environment.make_seeds(0, 64) == streams[0]
  # A smaller batch is the beginning of a larger one.
  assert host_environment.make_seeds(0, 8) == streams[0][:8]


def _course(host, num_steps):
  """Returns the time steps `[num_steps + 1, B]` of action 0."""
  timesteps = [host.reset()]
  for _ in range(num_steps):
    timesteps.append(host.step(np.zeros(host.num_environments, np.int32)))
  return jax.tree.map(lambda *x: np.stack(x), *timesteps)


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_jax_environment_takes_the_course_of_the_batch():
  made = testing.chain_environment(((3, "terminate"), (1, "truncate")))
  host = host_environment.JaxHostEnvironment(made, num_environments=4, seed=7)
  assert host.spec == made.spec
  assert host.num_environments == 4
  state, timestep = environment.reset(made, jax.random.split(jax.random.key(7), 4))
  expected = [timestep]
  for _ in range(8):
    state, timestep = environment.step(made, state, np.zeros(4, np.int32))
    expected.append(timestep)
  course = _course(host, 8)
  _assert_equal(course, jax.tree.map(lambda *x: np.stack(x), *expected))
  host.close()


def test_a_jax_environment_returns_arrays_of_numpy():
  host = host_environment.JaxHostEnvironment(MIXED, num_environments=2)
  timesteps = [host.reset(), host.step(np.zeros(2, np.int32))]
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(timesteps))


def test_a_jax_environment_begins_new_episodes_on_a_second_reset():
  host = host_environment.JaxHostEnvironment(testing.probe_observation(), num_environments=64)
  first, second = host.reset(), host.reset()
  assert np.all(second.is_first())
  assert np.any(first.observation != second.observation)


def test_a_jax_environment_tells_wrong_use():
  host = host_environment.JaxHostEnvironment(testing.chain_environment(), num_environments=2)
  with pytest.raises(RuntimeError, match=r"step\(\) was called before reset\(\)"):
    host.step(np.zeros(2, np.int32))
  with pytest.raises(config.InputError, match="chain cannot be rendered"):
    host.render()


def test_a_jax_environment_renders_its_first_environment():
  made = testing.chain_environment(((5, "terminate"),))

  def render(state):
    return np.full((2, 2, 3), int(state[1]), np.uint8)

  host = host_environment.JaxHostEnvironment(made._replace(render=render), num_environments=2)
  with pytest.raises(RuntimeError, match="before reset"):
    host.render()
  host.reset()
  assert np.all(host.render() == 0)
  host.step(np.zeros(2, np.int32))
  assert np.all(host.render() == 1)


def test_the_course_of_a_factorys_environment_depends_on_its_own_seed_only():
  factory = host_environment.from_jax(MIXED)
  options = host_environment.HostOptions()
  seeds = host_environment.make_seeds(0, 6)
  course = _course(factory.make(seeds, options), 12)
  assert len(np.unique(course.step_type, axis=1).T) > 1
  _assert_equal(_course(factory.make(seeds, options), 12), course)
  reordered = _course(factory.make([seeds[4], 12345, seeds[1]], options), 12)
  for column, original in ((0, 4), (2, 1)):
    _assert_equal(
      jax.tree.map(lambda x, i=column: x[:, i], reordered),
      jax.tree.map(lambda x, i=original: x[:, i], course),
    )
  other = _course(factory.make(host_environment.make_seeds(1, 6), options), 12)
  assert np.any(other.step_type != course.step_type)


def test_a_factory_says_what_its_environment_can_do():
  factory = host_environment.from_jax(MIXED._replace(frames_per_second=7))
  assert (factory.spec, factory.can_render, factory.can_be_async) == (MIXED.spec, False, False)
  assert factory.frames_per_second == 7
  picture = np.zeros((2, 2, 3), np.uint8)
  assert host_environment.from_jax(MIXED._replace(render=lambda state: picture)).can_render
  assert host_environment.as_factory(factory) is factory
  assert host_environment.as_factory(MIXED).spec == MIXED.spec
