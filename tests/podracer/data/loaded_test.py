"""Windows held in memory are those that are read from files."""

import numpy as np
import pytest

from podracer.data import dataset as dataset_lib
from podracer.data import loaded, sources

LENGTHS = (3, 300, 20, 5)
LENGTH = 8


@pytest.fixture(scope="module", params=[((3, 4), 1), ((2, 3, 4), 1), ((3, 4), 4), ((2, 3, 4), 4)])
def dataset(request, recordings, tmp_path_factory):
  shape, recorded_stack = request.param
  episodes = [
    recordings.make_episode(k, length, shape, frame_stack=recorded_stack)
    for k, length in enumerate(LENGTHS)
  ]
  root = recordings.write(tmp_path_factory.mktemp("collection"), episodes)
  return dataset_lib.open(root)["pong"]


def assert_equal_windows(dataset, **options):
  source = sources.WindowSource(dataset, LENGTH, **options)
  windows = loaded.LoadedWindows(dataset, LENGTH, **options)
  assert len(windows) == len(source)
  order = np.random.default_rng(0).permutation(len(source))
  batch = windows.take(order)
  expected = [source[int(index)] for index in order]
  assert set(batch) == set(expected[0])
  for name, value in batch.items():
    one_by_one = np.stack([window[name] for window in expected])
    assert value.dtype == one_by_one.dtype
    np.testing.assert_array_equal(value, one_by_one, err_msg=name)


@pytest.mark.parametrize("frame_stack", [None, 1, 3])
def test_all_windows_of_all_fields(dataset, frame_stack):
  assert_equal_windows(dataset, frame_stack=frame_stack)


def test_some_fields_and_weights(dataset):
  assert_equal_windows(dataset, names=["action", "is_last"])
  assert_equal_windows(dataset.filter("sample_weight", by=np.array([1.0, 0.25, 4.0, 0.0])))


def test_size_in_memory(dataset):
  num_steps = sum(length + 1 for length in LENGTHS)
  assert loaded.num_bytes(dataset, ["action", "is_last"]) == 5 * num_steps
  pixels = int(np.prod(dataset.episode(0).steps["observation"].shape[1:]))
  assert loaded.num_bytes(dataset, ["observation"]) == pixels * num_steps
