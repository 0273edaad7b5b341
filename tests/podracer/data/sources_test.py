"""Sources: which windows there are, and Grain over them, interrupted and not."""

import collections

import numpy as np
import pytest
from absl import flags

from podracer import config
from podracer.data import dataset as dataset_lib
from podracer.data import sources

LENGTHS = (3, 300, 20, 5)
LENGTH = 8


@pytest.fixture(scope="module")
def root(recordings, tmp_path_factory):
  episodes = [
    recordings.make_episode(k, length, history_id=f"h{k // 2}", history_index=k)
    for k, length in enumerate(LENGTHS)
  ]
  return recordings.write(tmp_path_factory.mktemp("collection"), episodes)


@pytest.fixture(scope="module")
def dataset(root):
  return dataset_lib.open(root)["pong"]


def coverage(source):
  """Returns (episode, step) -> in how many windows it is."""
  count = collections.Counter()
  for i, start, length, num_steps in zip(*source.places(np.arange(len(source))), strict=True):
    assert num_steps == LENGTHS[i] + 1
    stop = min(start + length, num_steps)
    assert 0 <= start < stop <= start + LENGTH
    count.update((i, t) for t in range(start, stop))
  return count


def test_every_step_is_in_equally_many_windows(dataset):
  source = sources.WindowSource(dataset, LENGTH)
  assert len(source) == sum(length + 1 + LENGTH - 1 for length in LENGTHS)
  count = coverage(source)
  assert len(count) == sum(length + 1 for length in LENGTHS)
  assert set(count.values()) == {LENGTH}


def test_weights_multiply_how_often_a_step_is_seen(dataset):
  weighted = dataset.filter("sample_weight", by=np.array([1.0, 0.25, 4.0, 0.0]))
  source = sources.WindowSource(weighted, LENGTH)
  assert len(source) == len(sources.WindowSource(dataset, LENGTH))
  count = coverage(source)
  mean = [np.mean([count[i, t] for t in range(length + 1)]) for i, length in enumerate(LENGTHS[:3])]
  # Windows are whole: shares of so few are met up to a tenth.
  np.testing.assert_allclose(np.array(mean) / mean[0], [1, 0.25, 4], rtol=0.1)
  assert not any(count[3, t] for t in range(6))
  equal = dataset.filter("sample_weight", by=np.full(4, 3.0))
  assert coverage(sources.WindowSource(equal, LENGTH)) == coverage(
    sources.WindowSource(dataset, LENGTH)
  )


def test_windows_are_filled_up(dataset, recordings):
  source = sources.WindowSource(dataset, LENGTH)
  expected = recordings.make_episode(0, 3).steps
  # The first window has the first step alone, the one after LENGTH - 1 has all four.
  for index, steps in ((0, slice(0, 1)), (7, slice(0, 4)), (10, slice(3, 4))):
    window = source[index]
    size = steps.stop - steps.start
    assert window["mask"].tolist() == [True] * size + [False] * (LENGTH - size)
    for name, value in expected.items():
      assert window[name].shape == (LENGTH, *value.shape[1:])
      assert window[name].dtype == value.dtype
      np.testing.assert_array_equal(window[name][:size], value[steps])
      assert not window[name][size:].any()


def test_names_and_stacks(dataset):
  source = sources.WindowSource(dataset, LENGTH, names=["observation"], frame_stack=3)
  window = source[5]
  assert window.keys() == {"observation", "mask"}
  assert window["observation"].shape == (LENGTH, 3, 3, 4)


def test_episodes(dataset, recordings):
  source = sources.EpisodeSource(dataset, names=["reward"])
  assert len(source) == 4
  expected = recordings.make_episode(2, 20).steps["reward"]
  np.testing.assert_array_equal(source[2]["reward"], expected)


def test_histories(dataset):
  source = sources.HistorySource(dataset, LENGTH)
  h0, h1 = (int(dataset.history(name).ends[-1]) for name in ("h0", "h1"))
  assert len(source) == h0 + h1 + 2 * (LENGTH - 1)
  # Over the border of the first two episodes: four steps of one, four of the next.
  window = source[LENGTH - 1]
  assert window["mask"].all()
  assert window["is_first"].tolist() == [True, False, False, False] * 2
  assert window["is_last"].tolist() == [False, False, False, True] + [False] * 4
  assert source[len(source) - 1]["mask"].tolist() == [True] + [False] * (LENGTH - 1)
  assert sum(source[index]["mask"].sum() for index in range(len(source))) == LENGTH * (h0 + h1)


def test_histories_of_every_second_episode(recordings, tmp_path):
  """Rewards tell which episodes a window is from: of history h those of 1, 2 .. 5 steps, and of g one."""
  episodes = [
    recordings.make_episode(
      k, k + 1, history_id="h", history_index=k, lifetime_step=k * (k + 1) // 2
    )
    for k in range(5)
  ]
  episodes.append(recordings.make_episode(5, 7, history_id="g", history_index=0))
  dataset = dataset_lib.open(recordings.write(tmp_path, episodes))["pong"]
  source = sources.HistorySource(dataset, 100, names=["reward", "is_last"], stride=2)
  expected = [
    np.concatenate([episodes[k].steps["reward"] for k in chosen])
    for chosen in ([5], [0, 2, 4], [1, 3])
  ]
  assert len(source) == sum(map(len, expected)) + 3 * 99
  end = 0
  for rewards in expected:
    end += len(rewards) + 99
    # The last window that begins at the first step.
    window = source[end - len(rewards)]
    assert window["mask"].sum() == len(rewards)
    np.testing.assert_array_equal(window["reward"][: len(rewards)], rewards)
  with pytest.raises(config.InputError, match="stride must be above 0, got 0"):
    sources.HistorySource(dataset, 8, stride=0)


def test_the_same_words_for_the_same_data(root):
  def said(wanted=None, **options):
    dataset = dataset_lib.open(root)["pong"]
    view = dataset.filter(wanted, **options) if wanted else dataset
    return [
      repr(made)
      for made in (
        sources.WindowSource(view, LENGTH),
        sources.EpisodeSource(view),
        sources.HistorySource(view, LENGTH),
        sources.HistorySource(view, LENGTH, stride=2),
      )
    ]

  assert said() == said()
  assert "length=8" in said()[0] and "pong" in said()[0]
  views = [
    said(),
    said("min_return", value=1),
    said("sample_weight"),
    said("sample_weight", by="episode_length"),
  ]
  assert len({text for view in views for text in view}) == 16


def test_bad_arguments(dataset):
  for make, message in [
    (lambda: sources.WindowSource(dataset, 0), "length must be above 0, got 0"),
    (lambda: sources.WindowSource(dataset, 4, ["rewards"]), "no field rewards of a step"),
    (lambda: sources.WindowSource(dataset, 4, []), "no field of a step is wanted"),
  ]:
    with pytest.raises(config.InputError, match=message):
      make()
  for source in (sources.WindowSource(dataset, 4), sources.EpisodeSource(dataset)):
    for index in (-1, len(source)):
      with pytest.raises(IndexError):
        source[index]


def test_no_history(recordings, tmp_path):
  root = recordings.write(tmp_path, [recordings.make_episode(0, 3)])
  with pytest.raises(config.InputError, match="pong has no learning histories"):
    sources.HistorySource(dataset_lib.open(root)["pong"], 4)


def make_iterator(dataset, make):
  grain = pytest.importorskip("grain")
  made = grain.MapDataset.source(make(dataset)).shuffle(seed=3).repeat(2).batch(16)
  return iter(made.to_iter_dataset())


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, name)


@pytest.mark.parametrize(
  "make",
  [
    lambda dataset: sources.WindowSource(dataset, LENGTH, frame_stack=2),
    lambda dataset: sources.WindowSource(dataset.filter("sample_weight"), LENGTH),
    lambda dataset: sources.HistorySource(dataset, LENGTH),
  ],
  ids=["windows", "weighted", "histories"],
)
def test_grain_goes_on_where_it_stopped(root, dataset, make):
  whole = list(make_iterator(dataset, make))
  assert whole[0]["observation"].shape[:2] == (16, LENGTH)
  seen = np.concatenate([batch["reward"][:, 0] for batch in whole])
  assert not np.array_equal(seen, np.sort(seen))
  begun = make_iterator(dataset, make)
  for expected in whole[:5]:
    assert_same(next(begun), expected)
  state = begun.get_state()
  # Another process would open it anew.
  resumed = make_iterator(dataset_lib.open(root)["pong"], make)
  resumed.set_state(state)
  rest = list(resumed)
  assert len(rest) == len(whole) - 5
  for found, expected in zip(rest, whole[5:], strict=True):
    assert_same(found, expected)


def test_grain_workers(dataset):
  grain = pytest.importorskip("grain")
  # Its workers are given the flags of a program of absl.
  flags.FLAGS.mark_as_parsed()
  source = sources.WindowSource(dataset, LENGTH)
  made = grain.MapDataset.source(source).shuffle(seed=3).batch(16).to_iter_dataset()
  options = grain.MultiprocessingOptions(num_workers=1)
  plain, other = iter(made), iter(made.mp_prefetch(options))
  for _ in range(3):
    assert_same(next(other), next(plain))
  resumed = iter(made.mp_prefetch(options))
  resumed.set_state(other.get_state())
  assert_same(next(resumed), next(plain))
