"""What is told of a task: copies, sizes, and bins that hold equally many values each."""

import numpy as np
import pytest

from podracer.data import dataset as dataset_lib
from podracer.data import report


@pytest.fixture
def dataset(recordings, tmp_path):
  episodes = [recordings.make_episode(k, length) for k, length in enumerate((300, 300, 9, 300))]
  # The last step has no action: what stands there makes no difference.
  episodes[3].steps["action"][:-1] = episodes[1].steps["action"][:-1]
  episodes[3].steps["action"][-1] = 1
  return dataset_lib.open(recordings.write(tmp_path, episodes))["pong"]


def test_copies(dataset):
  assert report.duplicate_rate(dataset) == 0.25
  assert report.duplicate_rate(dataset.filter("min_return", value=2)) == 0.0


def test_sizes_are_those_of_all_episodes(dataset):
  (shard,) = (dataset.folder / "shards").glob("*.array_record")
  for view in (dataset, dataset.filter("min_return", value=3)):
    described = report.describe(view)
    assert described.bytes_per_step == shard.stat().st_size / 913
    # 12 of the picture, 4 of each action, reward and discount, 2 * 2 of logits, 3 of flags.
    assert described.raw_bytes == 12 + 3 * 4 + 4 + 3
  assert (described.num_episodes, described.num_total, described.num_steps) == (1, 4, 300)


@pytest.mark.parametrize(
  "returns",
  [
    [5.0],
    [-1, 1],
    range(-21, 22),
    np.arange(101) / 100,
    np.arange(0, 5000, 10),
    np.random.default_rng(0).normal(size=1000),
    [0.0, 1e-9, 1000.0],
  ],
)
def test_bins(returns):
  returns = np.array(returns, np.float64)
  edges = report._bins(returns)
  counts, _ = np.histogram(returns, edges)
  assert counts.sum() == len(returns)
  assert len(counts) <= 2 * report.NUM_BINS
  if len(returns) not in (1000, 3):
    # Values on a grid: the same number in every bin that is not empty, but for the last.
    assert len(set(counts[counts > 0][:-1])) <= 1


def test_a_picture_without_scores(dataset, tmp_path):
  out = report.draw_returns([report.describe(dataset, False)] * 4, tmp_path / "returns.png")
  assert out.read_bytes().startswith(b"\x89PNG")
  assert [path.name for path in tmp_path.glob("*.png")] == ["returns.png"]
