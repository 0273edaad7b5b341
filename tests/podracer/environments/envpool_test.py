import json

import envpool as library
import jax
import numpy as np
import pytest

from podracer import config, environments, host_environment, types
from podracer.environments import envpool

FIRST, MID, LAST = types.FIRST, types.MID, types.LAST


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  # Written here so that no test of an environment makes the list.
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "podracer"


@pytest.fixture
def make():
  hosts = []

  def make(name, seeds=(1, 2), host_options=None, **options):
    factory = environments.make(f"envpool:{name}", **options)
    hosts.append(factory.make(seeds, host_options or host_environment.HostOptions(num_threads=1)))
    return hosts[-1]

  yield make
  for host in hosts:
    host.close()


def _random(host, seed=0):
  rng = np.random.default_rng(seed)
  return lambda t: rng.integers(0, host.spec.action.num_actions, host.num_environments)


def _walk(host, num_steps, action_of):
  timesteps = [host.reset()]
  for t in range(num_steps):
    timesteps.append(host.step(action_of(t)))
    host_environment.check_timestep(host.spec, timesteps[-1], host.num_environments)
  return jax.tree.map(lambda *x: np.stack(x), *timesteps)


def _check_convention(course):
  is_first, is_last = course.step_type == FIRST, course.step_type == LAST
  assert np.all(is_first[0]) and np.any(is_last[:-1])
  np.testing.assert_array_equal(is_first[1:], is_last[:-1])
  assert np.all(course.reward[is_first] == 0) and np.all(course.discount[is_first] == 1)
  assert np.all(course.discount[course.step_type == MID] == 1)


def test_a_terminated_episode(make):
  host = make("CartPole-v1")
  course = _walk(host, 100, _random(host))
  _check_convention(course)
  is_last = course.step_type == LAST
  assert np.all(course.discount[is_last] == 0) and np.all(course.reward[is_last] == 1)


@pytest.mark.parametrize(
  ("name", "options", "action", "limit"),
  [
    ("CartPole-v1", {"max_episode_steps": 5}, np.zeros(2, np.int32), 5),
    ("Pendulum-v1", {}, np.zeros((2, 1), np.float32), 200),
  ],
)
def test_a_truncated_episode(make, name, options, action, limit):
  course = _walk(make(name, **options), 2 * limit + 2, lambda t: action)
  _check_convention(course)
  assert np.all(course.discount == 1)
  for i in range(2):
    np.testing.assert_array_equal(
      np.flatnonzero(course.step_type[:, i] == LAST), [limit, 2 * limit + 1]
    )


def test_a_lost_life_ends_an_episode_but_not_a_whole_one(make):
  options = {"episodic_life": True, "repeat_action_probability": 0.0}
  host = make("Breakout-v5", **options)
  course = _walk(host, 130, _random(host))
  _check_convention(course)
  is_last = course.step_type == LAST
  # Five lives, of about 25 steps each.
  assert np.all(is_last.sum(axis=0) >= 2) and np.all(course.discount[is_last] == 0)
  whole = make(
    "Breakout-v5", host_options=host_environment.HostOptions(whole_episodes=True), **options
  )
  ends = _walk(whole, 130, _random(whole)).step_type == LAST
  assert ends.sum() < is_last.sum() / 2


def test_the_reward_is_not_clipped(make):
  host = make("SpaceInvaders-v5", reward_clip=True)
  course = _walk(host, 200, _random(host))
  assert course.reward.max() >= 5
  np.testing.assert_array_equal(course.reward % 5, 0)


def _own_action(num_steps_taken, index):
  return np.asarray((num_steps_taken + index) % 2, np.int32)


def test_a_course_depends_on_its_seed_only_in_any_mode(make):
  seeds, indices = (3, 4, 5, 6), np.arange(4)

  def action_of(t):
    return _own_action(np.full(4, t), indices)

  course = _walk(make("CartPole-v1", seeds), 60, action_of)
  assert np.any(course.observation[:, 0] != course.observation[:, 1])
  threads = make("CartPole-v1", seeds, host_environment.HostOptions(num_threads=3))
  jax.tree.map(np.testing.assert_array_equal, _walk(threads, 60, action_of), course)

  options = host_environment.HostOptions(num_threads=2, batch_size=2)
  host = make("CartPole-v1", seeds, options)
  assert host.batch_size == 2
  host.start()
  found = [[] for _ in seeds]
  while min(map(len, found)) < 61:
    timestep, index = host.receive()
    host_environment.check_timestep(host.spec, timestep, 2)
    host.send(_own_action(np.asarray([len(found[i]) for i in index]), index), index)
    for row, i in enumerate(index):
      found[i].append(jax.tree.map(lambda x, row=row: x[row], timestep))
  for i, timesteps in enumerate(found):
    alone = jax.tree.map(lambda *x: np.stack(x), *timesteps[:61])
    jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(lambda x, i=i: x[:, i], course))


@pytest.mark.parametrize(
  ("name", "action", "options"),
  [
    ("CartPole-v1", np.ones(2, np.int64), {}),  # Terminates.
    ("Pendulum-v1", np.full((2, 1), 0.5), {"max_episode_steps": 9}),
    ("MiniGrid-Empty-5x5-v0", np.full(2, 2), {"max_episode_steps": 9}),
    ("Pong-v5", np.full(2, 3), {}),  # For its pictures.
  ],
)
def test_a_step_is_what_the_step_of_envpool_says(make, name, action, options):
  host = make(name, **options)
  # The same of another pool of the same seeds.
  pool = make(name, **options)._pool
  observation, _ = pool.reset()
  jax.tree.map(np.testing.assert_array_equal, host.reset().observation, observation)
  was_done, num_ends = np.zeros(2, bool), 0
  for _ in range(30):
    timestep = host.step(action)
    dtype = pool.action_space.dtype
    observation, reward, terminated, truncated, _ = pool.step(action.astype(dtype))
    jax.tree.map(np.testing.assert_array_equal, timestep.observation, observation)
    np.testing.assert_array_equal(timestep.reward, np.where(was_done, 0, reward))
    np.testing.assert_array_equal(timestep.discount == 0, terminated)
    was_done = terminated | truncated
    np.testing.assert_array_equal(timestep.step_type == LAST, was_done)
    num_ends += was_done.sum()
  assert num_ends > 0 or name == "Pong-v5"


@pytest.mark.parametrize("name", ["CartPole-v1", "Breakout-v5"])
def test_what_was_returned_is_not_written_again(make, name):
  host = make(name)
  action_of = _random(host)
  kept = [host.reset(), *(host.step(action_of(t)) for t in range(4))]
  copies = jax.tree.map(np.copy, kept)
  for t in range(40):
    host.step(action_of(t))
  jax.tree.map(np.testing.assert_array_equal, kept, copies)


def test_mujoco_comes_as_float32_and_minigrid_as_a_dict(make):
  host = make("Ant-v4")
  course = _walk(host, 3, lambda t: np.full((2, 8), 2.0, np.float32))
  assert course.observation.dtype == np.float32
  host = make("MiniGrid-Empty-5x5-v0")
  course = _walk(host, 3, _random(host))
  assert set(course.observation) == {"image", "direction", "mission"}
  assert host.spec.observation["image"].maximum == 10.0


def test_render_and_frames(make):
  host = make("Pong-v5", host_options=host_environment.HostOptions(num_threads=1, render=True))
  host.reset()
  picture = host.render()
  assert picture.shape == (210, 160, 3) and picture.dtype == np.uint8
  assert len(np.unique(picture)) > 1
  factory = environments.make("envpool:Pong-v5", frame_skip=4)
  assert (factory.frames_per_step, factory.frames_per_second) == (4, 15)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("Pong-v5", {"nope": 1}, "has no option nope"),
    ("Pong-v5", {"frame_skip": 0}, "frame_skip must be at least 1, got 0"),
    ("Pong-v5", {"frame_skip": "x"}, "frame_skip must be a whole number, got 'x'"),
    ("Pong-v5", {"seed": 1}, "has no option seed"),
    ("Pnog-v5", {}, "nearest: envpool:Pong-v5"),
    ("Othello-v1", {}, "several players"),
    ("Jumanji/RubiksCube-v0", {}, "action space that is not supported"),
    ("VizdoomCustom-v1", {}, "cannot be loaded"),
  ],
)
def test_bad_input_is_one_line(name, options, message):
  with pytest.raises(config.InputError, match=message) as caught:
    environments.make(f"envpool:{name}", **options)
  assert "\n" not in str(caught.value)


def test_more_at_a_time_than_there_are():
  factory = environments.make("envpool:CartPole-v1")
  with pytest.raises(config.InputError, match="3 environments at a time of only 2"):
    factory.make([1, 2], host_environment.HostOptions(batch_size=3))


def test_procgen_works_or_says_what_is_missing(make):
  try:
    library.make_spec("CoinrunHard-v0")
  except ImportError:
    with pytest.raises(config.InputError, match=r"cannot be loaded: .*Qt"):
      environments.make("envpool:CoinrunHard-v0")
  else:
    host = make("CoinrunHard-v0")
    assert np.all(_walk(host, 3, _random(host)).step_type[0] == FIRST)


@pytest.mark.parametrize("torn", [None, '["Pong-v5", "Bre', ""])
def test_names_are_kept_in_a_file(cache, torn):
  expected = tuple(sorted(library.list_all_envs()))
  assert tuple(envpool.NAMES) == expected
  (path,) = cache.iterdir()
  assert json.loads(path.read_text()) == list(expected)
  if torn is not None:
    path.write_text(torn)
    assert tuple(envpool.NAMES) == expected
    assert json.loads(path.read_text()) == list(expected)
  path.write_text('["Only-v0"]')
  assert envpool.NAMES == ("Only-v0",)
