"""Reading of real files: what comes back is what was written, wherever a window begins and ends."""

import json
import multiprocessing
import pickle
import threading
import time

import numpy as np
import pytest

from podracer import config
from podracer.data import dataset as dataset_lib
from podracer.data import index, layout, reader

LENGTHS = (1, 9, 255, 256, 257, 600, 512)


@pytest.fixture(scope="module")
def episodes(recordings):
  return [
    recordings.make_episode(
      k,
      length,
      history_id=f"h{k % 2}",
      history_index=10 - k,
      lifetime_step=1000 * (10 - k),
      teacher_step=k,
    )
    for k, length in enumerate(LENGTHS)
  ]


@pytest.fixture(scope="module")
def root(recordings, episodes, tmp_path_factory):
  root = tmp_path_factory.mktemp("collection")
  recordings.write(root, episodes, shard_bytes=10_000)
  recordings.write(root, episodes[:2], task="catch")
  scores = {"pong": {"random": {"mean": 1.0, "n": 8}, "expert": {"mean": 5.0, "n": 8}}}
  (root / "scores.json").write_text(json.dumps(scores))
  return root


@pytest.fixture(scope="module")
def dataset(root):
  return dataset_lib.open(root)["pong"]


def assert_steps(found, expected, start=0, stop=None):
  for name, value in found.items():
    assert value.dtype == expected[name].dtype, name
    np.testing.assert_array_equal(value, expected[name][start:stop], name)


def test_a_collection(root, dataset):
  collection = dataset_lib.open(root)
  assert collection.tasks == ("catch", "pong")
  assert [(made.task, len(made)) for made in collection] == [("catch", 2), ("pong", len(LENGTHS))]
  assert collection.scores["pong"]["expert"]["mean"] == 5.0
  assert dataset.scores == collection.scores["pong"]
  assert dataset.num_steps == sum(LENGTHS)
  assert dataset.num_total == len(LENGTHS)
  assert len(dataset.index.shards) > 2
  assert dataset.rows["episode_id"].to_pylist() == [f"e{k}" for k in range(len(LENGTHS))]


@pytest.mark.parametrize("path", ["pong", "pong/1.0.0"])
def test_a_task_by_itself(root, path, monkeypatch):
  assert dataset_lib.open(root / path).tasks == ("pong",)
  monkeypatch.chdir(root / path)
  assert dataset_lib.open(".").tasks == ("pong",)
  assert dataset_lib.open(".")["pong"].scores["random"]["mean"] == 1.0


def test_episodes_are_bit_exact(dataset, episodes):
  for found, expected in zip(dataset.episodes(), episodes, strict=True):
    assert found.num_steps == expected.num_steps
    assert found.steps.keys() == expected.steps.keys()
    assert_steps(found.steps, expected.steps)
    for name in ("episode_id", "episode_return", "history_id", "lifetime_step"):
      assert found.metadata[name] == expected.metadata[name]


def test_windows_wherever_they_begin_and_end(dataset, episodes):
  for i, expected in enumerate(episodes):
    num_steps = expected.num_steps
    borders = {0, 1, 254, 255, 256, 257, 511, 512, num_steps - 2, num_steps - 1}
    for start in sorted(t for t in borders if 0 <= t < num_steps):
      for length in (1, 2, 255, 256, 257, 600):
        found = dataset.window(i, start, length)
        assert len(found["reward"]) == min(length, num_steps - start)
        assert_steps(found, expected.steps, start, start + length)


def test_only_the_segments_that_are_needed_are_read(dataset, monkeypatch):
  read = []

  class Spy(reader.Readers):
    def read(self, shard, records):
      read.extend(records)
      return super().read(shard, records)

  monkeypatch.setattr(reader, "READERS", Spy())
  long = LENGTHS.index(600)
  first = int(dataset.column("record")[long])
  dataset.window(long, 255, 1)
  assert read == [first]
  dataset.window(long, 256, 1, frame_stack=4)
  assert read[1:] == [first, first + 1]
  dataset.window(long, 599, 5)
  assert read[3:] == [first + 2]


def test_names(dataset, episodes):
  assert dataset.window(3, 7, 9, names=["reward"]).keys() == {"reward"}
  assert dataset.episode(5, names=["action", "is_last"]).steps.keys() == {"action", "is_last"}
  np.testing.assert_array_equal(
    dataset.episode(5, names=["action"]).steps["action"], episodes[5].steps["action"]
  )


def test_what_is_read_can_be_written_to(dataset):
  for length in (4, 300):
    dataset.window(5, 100, length)["reward"][0] = 7


def test_frame_stacks_at_every_step(dataset, episodes):
  i = LENGTHS.index(600)
  frames = episodes[i].steps["observation"]
  expected = np.stack([frames[np.maximum(np.arange(601) + k, 0)] for k in (-3, -2, -1, 0)], 1)
  np.testing.assert_array_equal(dataset.episode(i, frame_stack=4).steps["observation"], expected)
  for start in (0, 1, 2, 3, 4, 255, 256, 257, 258, 259, 600):
    window = dataset.window(i, start, 5, frame_stack=4)
    np.testing.assert_array_equal(window["observation"], expected[start : start + 5])
    assert_steps({"reward": window["reward"]}, episodes[i].steps, start, start + 5)


@pytest.mark.parametrize(
  ("shape", "recorded_stack", "expected"),
  [
    ((3, 4), 1, (2, 3, 4)),
    ((1, 3, 4), 1, (2, 3, 4)),
    ((3, 4, 4), 1, (6, 4, 4)),
    ((4, 4, 3), 2, (2, 4, 4, 3)),
    ((7,), 1, (2, 7)),
  ],
)
def test_shapes_of_stacks(recordings, tmp_path, shape, recorded_stack, expected):
  made = recordings.make_episode(0, 4, shape, frame_stack=recorded_stack)
  dataset = dataset_lib.open(recordings.write(tmp_path, [made]))["pong"]
  stacked = dataset.window(0, 1, 2, frame_stack=2)["observation"]
  frames = made.steps["observation"]
  assert stacked.shape == (2, *expected)
  np.testing.assert_array_equal(stacked[1].ravel(), np.stack([frames[1], frames[2]]).ravel())


@pytest.mark.parametrize("name", ["Pong-v5", "Breakout-v5"])
def test_stacks_are_those_of_envpool(recordings, tmp_path, name):
  envpool = pytest.importorskip("envpool")
  pool = envpool.make(
    name, env_type="gymnasium", num_envs=1, seed=0, stack_num=4, max_episode_steps=300
  )
  stacked, played, episodes = [pool.reset()[0][0].copy()], [], []
  rng = np.random.default_rng(0)
  while len(episodes) < 3:
    observation, _, terminated, truncated, _ = pool.step(rng.integers(0, 3, 1))
    stacked.append(observation[0].copy())
    if terminated or truncated:
      made = recordings.make_episode(len(episodes), len(stacked) - 1, (84, 84), frame_stack=4)
      made.steps["observation"] = np.stack(stacked)[:, -1]
      episodes.append(made)
      played.append(np.stack(stacked))
      # The next step begins an episode.
      stacked = [pool.step(np.zeros(1, int))[0][0].copy()]
  dataset = dataset_lib.open(recordings.write(tmp_path, episodes))["pong"]
  for i, expected in enumerate(played):
    found = dataset.episode(i, frame_stack=4).steps["observation"]
    np.testing.assert_array_equal(found, expected)
    for start in (0, 1, 2, 3, 100, 254, 256, len(expected) - 1):
      if start < len(expected):
        window = dataset.window(i, start, 64, ["observation"], frame_stack=4)
        np.testing.assert_array_equal(window["observation"], expected[start : start + 64])


def test_filters_are_views(dataset, episodes):
  view = dataset.filter("min_return", value=2).filter("top_fraction", fraction=0.4)
  assert view.column("episode_id").tolist() == ["e5", "e6"]
  assert view.dropped == [("min_return:2", 5, 2), ("top_fraction:0.4", 2, 3)]
  assert (len(view), view.num_total, len(dataset)) == (2, len(LENGTHS), len(LENGTHS))
  assert view.num_steps == 600 + 512
  assert_steps(view.episode(0).steps, episodes[5].steps)
  assert_steps(view.window(1, 250, 10), episodes[6].steps, 250, 260)
  # 0.8 of the way from 1 to 5
  assert dataset.filter("norm80").column("episode_return").tolist() == [5, 6]
  odd = dataset.filter(lambda rows: rows.column("seed_index") == 0)
  assert len(odd) == len(dataset) and odd.digest() == dataset.digest()


def test_weights_stay_with_their_episodes(dataset):
  view = dataset.filter("sample_weight", by="episode_length").filter("min_return", value=5)
  assert view.weights.tolist() == [600, 512]
  assert view.digest() != dataset.filter("min_return", value=5).digest()
  assert dataset.weights is None


def test_a_collection_is_filtered_task_by_task(root):
  collection = dataset_lib.open(root).filter("min_return", value=1)
  assert [len(made) for made in collection] == [1, len(LENGTHS) - 1]
  with pytest.raises(config.InputError, match="leaves none of the 2 episodes of catch"):
    dataset_lib.open(root).filter("min_return", value=2)


def test_histories_are_in_lifetime_order(dataset, episodes):
  assert dataset.histories() == ["h0", "h1"]
  found = dataset.history("h0")
  # Written the other way round.
  assert found.episodes.tolist() == [6, 4, 2, 0]
  assert found.ends.tolist() == [513, 513 + 258, 513 + 258 + 256, 513 + 258 + 256 + 2]
  whole = {
    name: np.concatenate([episodes[i].steps[name] for i in (6, 4, 2, 0)])
    for name in episodes[0].steps
  }
  for start, length in [(0, 5000), (0, 1), (510, 10), (513, 258), (512, 517), (1028, 1)]:
    window = dataset.history_window("h0", start, length)
    assert_steps(window, whole, start, start + length)
  firsts = np.flatnonzero(dataset.history_window("h0", 0, 5000)["is_first"])
  assert firsts.tolist() == [0, *found.ends[:-1]]
  assert dataset.filter("min_return", value=3).history("h0").episodes.tolist() == [3, 1]


def test_a_stack_stays_in_its_episode(dataset):
  window = dataset.history_window("h0", 511, 4, ["observation"], frame_stack=2)["observation"]
  assert (window[2, 0] == window[2, 1]).all()
  assert (window[3, 0] == window[2, 1]).all()


def test_a_million_episodes(dataset):
  rows = dataset.rows.take(np.arange(1_000_000) % len(dataset))
  many = dataset_lib.Dataset(dataset.folder, dataset.schema, index.Index(rows), dataset.scores)
  begun = time.monotonic()
  view = many.filter("norm80").filter("top_fraction", fraction=0.1)
  assert len(view) == 28572 and len(many.histories()) == 2
  assert len(view.window(20_000, 3, 5)["reward"]) == 5
  assert time.monotonic() - begun < 10


def test_pickled_and_read_in_another_process(dataset, episodes):
  dataset.window(5, 0, 1)
  assert len(pickle.dumps(dataset)) < 100_000
  assert_steps(pickle.loads(pickle.dumps(dataset)).window(5, 250, 9), episodes[5].steps, 250, 259)
  context = multiprocessing.get_context("fork")
  receive, send = context.Pipe()
  child = context.Process(target=lambda: send.send(dataset.window(5, 250, 9)))
  child.start()
  assert receive.poll(60)
  assert_steps(receive.recv(), episodes[5].steps, 250, 259)
  child.join(60)


def test_threads_and_few_open_shards(dataset, episodes, monkeypatch):
  monkeypatch.setattr(reader, "READERS", reader.Readers(max_open=1))
  errors = []

  def read(seed):
    rng = np.random.default_rng(seed)
    try:
      for _ in range(50):
        i = int(rng.integers(len(LENGTHS)))
        assert_steps(dataset.window(i, LENGTHS[i] - 1, 9), episodes[i].steps, LENGTHS[i] - 1)
    except BaseException as error:
      errors.append(error)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert not errors
  assert len(reader.READERS._open) == 1


def one_line(function, *args, **keywords):
  with pytest.raises(config.InputError) as error:
    function(*args, **keywords)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_bad_directories(recordings, episodes, tmp_path):
  missing, empty, other = tmp_path / "missing", tmp_path / "empty", tmp_path / "other"
  empty.mkdir()
  assert one_line(dataset_lib.open, missing) == f"{missing} is not a directory"
  assert one_line(dataset_lib.open, empty) == (
    f"{empty} holds no expert data: no <task>/1.0.0/shards in it"
  )
  (other / "pong" / "2.0.0" / "shards").mkdir(parents=True)
  message = f"{other}/pong has format version 2.0.0; this podracer reads 1.0.0"
  assert one_line(dataset_lib.open, other) == message
  assert one_line(dataset_lib.open, other / "pong") == message
  raw = recordings.write(tmp_path / "raw", episodes[:1], finalise=False)
  assert one_line(dataset_lib.open, raw) == (
    f"pong in {raw} is not finalised: podracer data finalise {raw}"
  )


def test_bad_arguments(root, dataset):
  collection = dataset_lib.open(root)
  assert one_line(collection.__getitem__, "pon") == (
    "no task pon; nearest: pong (there is: catch, pong)"
  )
  assert one_line(dataset.episode, 7) == "no episode 7 among the 7 of pong"
  assert one_line(dataset.window, -1, 0, 1) == "no episode -1 among the 7 of pong"
  assert one_line(dataset.window, 0, 2, 1) == "no step 2 in an episode of 2 steps"
  assert one_line(dataset.window, 0, 0, 0) == "length must be above 0, got 0"
  assert "no field rewards of a step (there is: action," in one_line(
    dataset.window, 0, 0, 1, names=["rewards"]
  )
  assert one_line(dataset.window, 0, 0, 1, frame_stack=0) == "frame_stack must be above 0, got 0"
  assert one_line(dataset.history_window, "h9", 0, 1) == "no history h9 among the 2 of pong"
  assert (
    one_line(dataset.history_window, "h0", 1029, 1) == "no step 1029 in a history of 1029 steps"
  )
  assert "no column colour of the index (there is: episode_id," in one_line(
    dataset.column, "colour"
  )


@pytest.fixture
def copy(recordings, episodes, tmp_path):
  return recordings.write(tmp_path, episodes)


def test_damaged_files(copy):
  dataset = dataset_lib.open(copy)["pong"]
  folder = layout.task_dir(copy, "pong")
  (shard,) = (folder / "shards").glob("*.array_record")
  data = shard.read_bytes()
  shard.unlink()
  assert one_line(dataset.episode, 0).startswith(f"{shard} is missing; `podracer data verify`")
  shard.write_bytes(data[: len(data) // 2])
  assert one_line(dataset.episode, 0).startswith(f"{shard} is damaged: it has 0 records of 11")
  shard.write_bytes(data)
  dataset.episode(0)
  rows = dataset.rows.set_column(
    dataset.rows.column_names.index("record"), "record", [dataset.rows["record"].to_pylist()[::-1]]
  )
  dataset.index = index.Index(rows)
  assert "does not hold segment 0 of e0; see `podracer data verify`" in one_line(dataset.episode, 0)
  (folder / "episodes.parquet").write_bytes(b"years of work")
  assert "episodes.parquet cannot be read" in one_line(dataset_lib.open(copy).__getitem__, "pong")
