"""Sequences of raw steps: prompts and masks by hand, batches by their numbers."""

import numpy as np
import pytest

from podracer import config, data
from podracer.agents.generalist import batches, prompts
from podracer.agents.generalist import layout as layout_lib


class _Rng:
  """Draws what a test says."""

  def __init__(self, *draws, choice=None, start=0):
    self._draws, self._choice, self._start = list(draws), choice, start

  def random(self):
    return self._draws.pop(0)

  def choice(self, candidates):
    assert self._choice in candidates
    return self._choice

  def integers(self, number):
    assert self._start < number
    return self._start


def make_sampler(root, task, settings):
  dataset = data.open(root)[task]
  return batches.Sampler(dataset, layout_lib.from_dataset(dataset, settings), settings), dataset


@pytest.fixture(scope="module")
def sampler(mixed, small):
  """Sequences of 8 steps of episodes of 6, 10, 2 and 31 stored steps."""
  return make_sampler(mixed, "vector", small())


def numbers_of(dataset, episode):
  """Returns the first element of each observation, which tells steps from each other."""
  return dataset.episode(episode, ["observation"]).steps["observation"][:, 0]


def find_window(sampler, episode, start):
  """Returns the number of the window of full length that begins at a step."""
  places = sampler._source.places(np.arange(len(sampler)))
  is_it = (places[0] == episode) & (places[1] == start) & (places[2] == sampler.length)
  return int(np.flatnonzero(is_it)[0])


def test_without_a_prompt_a_sequence_is_a_window(sampler):
  made, dataset = sampler
  assert made.length == 8
  index = find_window(made, 0, 2)
  steps = made.draw(index, _Rng(0.25))
  assert steps["mask"].tolist() == [True] * 4 + [False] * 4
  np.testing.assert_array_equal(steps["observation"][:4, 0], numbers_of(dataset, 0)[2:])
  assert not steps["observation"][4:].any()
  assert steps["is_last"].tolist() == [False, False, False, True] + [False] * 4


def test_the_end_of_another_episode_stands_in_front(sampler):
  made, dataset = sampler
  # Episodes 1 and 3 have the other teacher.
  steps = made.draw(find_window(made, 0, 0), _Rng(0.2, 0.4, choice=2))
  expected = np.concatenate([numbers_of(dataset, 2), numbers_of(dataset, 0)])
  assert len(expected) == 8
  np.testing.assert_array_equal(steps["observation"][:, 0], expected)
  assert steps["mask"].all()
  assert steps["is_last"].tolist() == [False, True] + [False] * 5 + [True]


def test_a_prompt_takes_half_of_the_sequence_at_most(sampler):
  made, dataset = sampler
  steps = made.draw(find_window(made, 3, 5), _Rng(0.2, 0.4, choice=1))
  expected = np.concatenate([numbers_of(dataset, 1)[6:10], numbers_of(dataset, 3)[5:9]])
  np.testing.assert_array_equal(steps["observation"][:, 0], expected)


def test_a_uniform_prompt_begins_where_it_is_drawn(sampler):
  made, dataset = sampler
  steps = made.draw(find_window(made, 3, 5), _Rng(0.2, 0.5, choice=1, start=3))
  expected = np.concatenate([numbers_of(dataset, 1)[3:7], numbers_of(dataset, 3)[5:9]])
  np.testing.assert_array_equal(steps["observation"][:, 0], expected)


def test_a_teacher_of_one_episode_prompts_nothing(tmp_path, write, small):
  root = write(tmp_path, "alone", (5, 6), teachers=2)
  data.finalise(root)
  made, dataset = make_sampler(root, "alone", small())
  steps = made.draw(find_window(made, 0, 0), _Rng(0.0, 0.0))
  np.testing.assert_array_equal(steps["observation"][:6, 0], numbers_of(dataset, 0))
  assert steps["mask"].tolist() == [True] * 6 + [False] * 2


def test_histories_cross_the_borders_and_have_the_arrived_reward(tmp_path, write, small):
  root = write(tmp_path, "lives", (2, 3), histories=1)
  data.finalise(root)
  made, dataset = make_sampler(root, "lives", small(histories=True, context=49))
  assert made.length == 7
  rewards = np.concatenate([dataset.episode(i, ["reward"]).steps["reward"] for i in (0, 1)])
  steps = made.draw(6, np.random.default_rng(0))
  assert steps["is_last"].tolist() == [False, False, True, False, False, False, True]
  # What followed an action arrives with the next observation; nothing arrives where an episode begins.
  np.testing.assert_array_equal(steps["reward"], [0, *rewards[:6]])
  assert steps["reward"][3] == 0


def test_every_second_episode_of_a_history(tmp_path, write, small):
  root = write(tmp_path, "lives", (2, 3, 4), histories=1)
  data.finalise(root)
  made, _ = make_sampler(root, "lives", small(histories=True, history_stride=2, context=60))
  # Episodes 0 and 2, of 3 and 5 stored steps, and 1 of 4.
  assert len(made) == (3 + 5) + 4 + 2 * (made.length - 1)
  steps = made.draw(7, np.random.default_rng(0))
  assert steps["is_last"].tolist() == [False, False, True, False, False, False, False, True]


def test_histories_where_there_are_none(mixed, small):
  with pytest.raises(config.InputError, match="vector has no learning histories"):
    make_sampler(mixed, "vector", small(histories=True))


def samplers_of(root, settings):
  return {task: make_sampler(root, task, settings)[0] for task in data.open(root).tasks}


def assert_same(a, b):
  assert a.keys() == b.keys()
  for task in a:
    assert a[task].keys() == b[task].keys()
    for name in a[task]:
      np.testing.assert_array_equal(a[task][name], b[task][name])


def test_batches_go_on_where_they_were(mixed, small):
  settings = small()
  whole = list(batches.batches(samplers_of(mixed, settings), 4, seed=3, num_batches=12))
  assert len(whole) == 12
  rest = list(batches.batches(samplers_of(mixed, settings), 4, seed=3, num_batches=12, start=7))
  assert len(rest) == 5
  for a, b in zip(whole[7:], rest, strict=True):
    assert_same(a, b)
  shapes = {task: steps["observation"].shape for task, steps in whole[0].items()}
  # Each task has four rows of as many steps as fit in 48 tokens.
  expected = {"vector": (4, 8, 4), "frames": (4, 8, 2, 20, 20), "torque": (4, 8, 3)}
  assert shapes == expected
  num_valid = sum(int((s["mask"] & ~s["is_last"]).sum()) for s in whole[0].values())
  assert batches.num_steps(whole[0]) == num_valid > 0


def test_every_window_is_drawn_once_an_epoch_in_another_order(mixed, small):
  made, _ = make_sampler(mixed, "vector", small(prompt_fraction=0.0))
  size = len(made)
  rows = [
    steps["vector"]["observation"][0]
    for steps in batches.batches({"vector": made}, 1, seed=0, num_batches=2 * size)
  ]
  expected = sorted(made.draw(i, _Rng(1.0))["observation"].tobytes() for i in range(size))
  epochs = [[row.tobytes() for row in rows[k * size : (k + 1) * size]] for k in range(2)]
  assert sorted(epochs[0]) == sorted(epochs[1]) == expected
  assert epochs[0] != epochs[1]


def test_another_seed_is_another_order(mixed, small):
  settings = small()
  one, other = (
    next(iter(batches.batches(samplers_of(mixed, settings), 4, seed, num_batches=1)))
    for seed in (0, 1)
  )
  assert not np.array_equal(one["vector"]["observation"], other["vector"]["observation"])


def test_prompts_are_the_ends_of_the_best_episodes(sampler, tmp_path):
  made, dataset = sampler
  chosen = prompts.choose(dataset, made, 3)
  # Returns rise with the number of the episode; that of two steps is filled up.
  assert chosen.lengths.tolist() == [4, 2, 4]
  np.testing.assert_array_equal(chosen.steps["observation"][0, :, 0], numbers_of(dataset, 3)[-4:])
  np.testing.assert_array_equal(chosen.steps["observation"][1, :2, 0], numbers_of(dataset, 2))
  assert not chosen.steps["observation"][1, 2:].any()
  assert prompts.choose(dataset, made, 0) is None
  path = tmp_path / "vector.npz"
  prompts.save(path, chosen)
  layout = layout_lib.from_dataset(dataset, made._config)
  loaded = prompts.load(path, layout)
  assert_same({"x": loaded.steps}, {"x": chosen.steps})
  assert [p.name for p in tmp_path.iterdir()] == ["vector.npz"]
  other = layout._replace(parts=(layout_lib.Part("observation/other", "continuous", (4,)),))
  with pytest.raises(config.InputError, match="holds demonstrations of another task"):
    prompts.load(path, other)
