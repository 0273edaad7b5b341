"""Each export, read back by the library that it is for, is what was recorded, bit by bit."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
from pyarrow import parquet

from podracer import config
from podracer.data import dataset as dataset_lib
from podracer.data import episode as episode_lib
from podracer.data import example, export, layout, png, schema, store, writer
from podracer.data.export import _jat_columns, jat_parquet, rlds_tfrecord, tfrecord

ROOT = pathlib.Path(__file__).parents[3]
FRAMES = "toy_frames"
ROBOT = "toy_robot"
STEP_TYPE = (
  schema.Field("discount", (), "float32"),
  schema.Field("is_first", (), "bool"),
  schema.Field("is_last", (), "bool"),
  schema.Field("is_terminal", (), "bool"),
  schema.Field("reward", (), "float32"),
)
SCHEMAS = {
  FRAMES: (
    schema.Field("action", (), "int32"),
    schema.Field("behaviour_log_prob", (), "float32"),
    # Of a size at which Minari would take it for a picture, and make it a JPEG.
    schema.Field("observation", (36, 33), "uint8"),
    schema.Field("policy_logits", (3,), "float16"),
    schema.Field("search_visits", (3,), "uint16"),
    schema.Field("teacher_action", (), "int32"),
    schema.Field("value", (), "float32"),
  ),
  ROBOT: (
    schema.Field("action", (2,), "float32"),
    schema.Field("observation/camera", (9, 7, 3), "uint8"),
    schema.Field("observation/hand/force", (2, 3), "float32"),
    schema.Field("observation/joints", (4,), "float32"),
    schema.Field("observation/planes", (3, 3, 2), "bool"),
    schema.Field("observation/room", (), "int32"),
    schema.Field("policy_logits", (4,), "float16"),
  ),
}
# Lengths in transitions; the second episode is of two segments, and one is truncated.
EPISODES = ((5, True), (300, False), (1, True), (40, False))


def make_steps(fields, length, is_terminal, generator):
  steps = {}
  for field in fields:
    shape, dtype = (length + 1, *field.shape), np.dtype(field.dtype)
    if dtype.kind == "f":
      steps[field.name] = generator.normal(size=shape).astype(dtype)
    else:
      high = 2 if dtype.kind == "b" else 3 if not field.shape else np.iinfo(dtype).max + 1
      steps[field.name] = generator.integers(0, high, shape).astype(dtype)
  t = np.arange(length + 1)
  steps["is_first"], steps["is_last"] = t == 0, t == length
  steps["is_terminal"] = steps["is_last"] & is_terminal
  steps["discount"] = np.where(t + 1 == length, 1 - is_terminal, t < length).astype(np.float32)
  for name in ("action", "reward", "policy_logits", "value", "teacher_action"):
    if name in steps:
      steps[name][-1] = 0
  return steps


def make_episode(task, number, length, is_terminal, history_id=""):
  generator = np.random.default_rng([number, zlib.crc32(task.encode())])
  steps = make_steps(make_schema(task).fields, length, is_terminal, generator)
  metadata = {name: kind() for name, kind in episode_lib.METADATA.items()}
  metadata.update(
    episode_id=f"{task}-{number}",
    task=task,
    env_id="gymnasium:CartPole-v1" if task == FRAMES else "gymnasium:robots.arm:make",
    env_backend="gymnasium",
    env_kwargs='{"sutton_barto_reward": true}',
    seed=7,
    teacher_algo="impala",
    phase="train",
    episode_return=float(steps["reward"].sum(dtype=np.float64)),
    episode_length=length,
    history_id=history_id,
    history_index=number,
    frame_stack=1,
    num_segments=1,
    format_version=schema.FORMAT_VERSION,
  )
  return episode_lib.Episode(steps, metadata)


def make_schema(task):
  return schema.Schema(tuple(sorted((*SCHEMAS[task], *STEP_TYPE))))


def record(root, task, history_ids=("",), episodes=EPISODES):
  recorder = writer.Writer(root, task, make_schema(task))
  for number, (length, is_terminal) in enumerate(episodes):
    history_id = history_ids[number % len(history_ids)]
    recorder.write(make_episode(task, number, length, is_terminal, history_id))
  recorder.close()


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
  root = tmp_path_factory.mktemp("recorded")
  record(root, FRAMES, ("seed-0", "seed-1"))
  record(root, ROBOT)
  store.finalise(root)
  score = {"mean": 12.5, "std": 1.0, "n": 30, "seeds": [1], "mode": "sample"}
  layout.write_json(
    root / layout.SCORES, {FRAMES: {"random": {**score, "mean": -1.0}, "expert": score}}
  )
  return dataset_lib.open(root)


@pytest.fixture
def small(monkeypatch):
  """Makes every episode a row group, and every shard one of few episodes."""
  monkeypatch.setattr(jat_parquet, "ROW_GROUP_BYTES", 1)
  monkeypatch.setattr(jat_parquet, "SHARD_BYTES", 50_000)
  monkeypatch.setattr(rlds_tfrecord, "SHARD_BYTES", 20_000)


def same(found, expected):
  """Bit by bit: -0.0 is not 0.0 and a NaN is itself."""
  found = np.asarray(found)
  assert found.dtype == expected.dtype and found.shape == expected.shape
  assert found.tobytes() == expected.tobytes()


def num_bytes(folder):
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", export.FORMATS)
def test_summary_counts_what_is_there_and_a_full_folder_is_refused(name, collection, tmp_path):
  out = tmp_path / "new" / "out"
  summary = export.export(name, collection, out)
  tasks = (FRAMES,) if name == "history-hdf5" else (FRAMES, ROBOT)
  assert summary.tasks == tasks
  assert summary.episodes == 4 * len(tasks) and summary.steps == 346 * len(tasks)
  assert summary.num_bytes == num_bytes(out) > 0
  assert str(out) in str(summary) and "\n" not in str(summary)
  with pytest.raises(config.InputError, match="no empty folder"):
    export.export(name, collection, out)
  assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", export.FORMATS)
def test_what_fails_midway_leaves_nothing(name, collection, tmp_path):
  class Broken:
    def __init__(self, real):
      self._real = real

    def __getattr__(self, attribute):
      return getattr(self._real, attribute)

    def __len__(self):
      return len(self._real)

    def episodes(self):
      yield self._real.episode(0)
      raise RuntimeError("the disk is gone")

    def episode(self, i):
      raise RuntimeError("the disk is gone")

  out = tmp_path / "out"
  with pytest.raises(RuntimeError, match="the disk is gone"):
    export.export(name, [Broken(collection[FRAMES])], out)
  assert not list(tmp_path.iterdir())


FULL_DISK = """
import errno, resource, sys
from podracer.data import dataset, export

collection = dataset.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
  export.export(sys.argv[2], collection, sys.argv[3])
except OSError as error:
  print(type(error).__name__, error.errno == errno.EFBIG)
"""


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_full_disk_is_an_error_and_leaves_nothing(name, collection, tmp_path):
  # In a process of its own, for HDF5 ended it as it cleaned up.
  result = subprocess.run(
    [sys.executable, "-c", FULL_DISK, str(collection.root), name, str(tmp_path / "out")],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert (result.returncode, result.stdout) == (0, "OSError True\n"), result.stderr
  assert not result.stderr
  assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from podracer.data import dataset, export

class Killed:
  def __init__(self, real):
    self._real = real
    self._left = 3
  def __getattr__(self, name):
    return getattr(self._real, name)
  def __len__(self):
    return len(self._real)
  def episodes(self):
    return map(self.episode, range(len(self)))
  def episode(self, i):
    self._left -= 1
    if not self._left:
      os.kill(os.getpid(), signal.SIGKILL)
    return self._real.episode(i)

name, source, out = sys.argv[1:]
export.export(name, map(Killed, dataset.open(source)), out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", export.FORMATS)
def test_a_killed_export_is_not_there_and_can_be_done_again(name, collection, tmp_path):
  out = tmp_path / "out"
  process = subprocess.run([sys.executable, "-c", KILLED, name, collection.root, out], cwd=ROOT)
  assert process.returncode == -signal.SIGKILL
  (left,) = tmp_path.iterdir()
  assert left.name.startswith("out.tmp-")
  assert export.export(name, collection, out).episodes in (4, 8)


def test_unknown_formats_and_missing_libraries_are_told_in_one_line(
  collection, tmp_path, monkeypatch
):
  with pytest.raises(config.InputError, match=r"valid are rlds-tfrecord, jat-parquet, minari, "):
    export.export("lerobot", collection, tmp_path / "out")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for name, form in export.FORMATS.items():
    with pytest.raises(config.InputError, match=rf"pip install 'podracer-rl\[{form.extra}\]'"):
      export.export(name, collection, tmp_path / "out")


def test_an_empty_folder_is_taken_and_an_empty_collection_is_not(collection, tmp_path):
  (tmp_path / "out").mkdir()
  with pytest.raises(config.InputError, match="no episode"):
    export.export("minari", [], tmp_path / "out")
  assert list(tmp_path.iterdir()) == [tmp_path / "out"]
  assert export.export("minari", collection, tmp_path / "out").episodes == 8


# TFRecord


def test_checksums_are_those_of_the_standard(tmp_path):
  # RFC 3720, B.4: CRC-32C of 32 zeros is 0x8a9136aa; masked as TensorFlow does.
  assert tfrecord.masked_crc(bytes(32)) == (
    ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF
  )
  path = tmp_path / "records"
  records = [b"", b"one", bytes(1000)]
  data = b"".join(tfrecord.frame(item) for item in records)
  path.write_bytes(data)
  assert list(tfrecord.read(path)) == records
  for at in (3, 9, 21, len(data) - 1):
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(config.InputError, match=r"damaged|ends within"):
      list(tfrecord.read(path))
  path.write_bytes(data[:-2])
  with pytest.raises(config.InputError, match="ends within"):
    list(tfrecord.read(path))


def tfrecord_folders(collection, out):
  export.export("rlds-tfrecord", collection, out)
  for dataset in collection:
    yield dataset, out / dataset.task / "1.0.0"


def test_tfrecords_hold_whole_episodes(collection, tmp_path, small):
  for dataset, folder in tfrecord_folders(collection, tmp_path / "out"):
    paths = sorted(folder.glob("*.tfrecord-*"))
    assert len(paths) > 1
    assert paths[0].name == f"{dataset.task}-train.tfrecord-00000-of-{len(paths):05d}"
    info = json.loads((folder / layout.DATASET_INFO).read_text())
    records = [list(tfrecord.read(path)) for path in paths]
    assert info["splits"][0]["shardLengths"] == [str(len(shard)) for shard in records]
    decoded = [
      example.decode(item, dataset.schema, encoding=rlds_tfrecord.encoding)
      for shard in records
      for item in shard
    ]
    for found, expected in zip(decoded, dataset.episodes(), strict=True):
      for name, value in expected.steps.items():
        same(found.steps[name], value)
      assert found.metadata["episode_id"] == expected.metadata["episode_id"]
      assert (found.metadata["segment_index"], found.metadata["num_segments"]) == (0, 1)


def test_tfds_decodes_tfrecords_by_their_features(collection, tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")
  for dataset, folder in tfrecord_folders(collection, tmp_path / "out"):
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == len(dataset)
    (path,) = folder.glob("*.tfrecord-*")
    for item, expected in zip(tfrecord.read(path), dataset.episodes(), strict=True):
      found = builder.info.features.deserialize_example_np(item)
      check_rlds(list(found["steps"]), expected)


def check_rlds(steps, expected):
  """Compares steps as TFDS gives them, a nested dict of each, with an episode."""
  assert len(steps) == expected.num_steps
  for name, value in expected.steps.items():
    found = steps
    for key in name.split("/"):
      found = [step[key] for step in found]
    same(np.stack(found).reshape(value.shape), value)


@pytest.mark.tensorflow
def test_tensorflow_reads_episodes_of_nested_steps(collection, tmp_path, small):
  try:
    import tensorflow
  except ImportError:
    if os.environ.get("CI") == "true":
      raise
    pytest.skip("TensorFlow is not installed")
  import tensorflow_datasets as tfds

  for dataset, folder in tfrecord_folders(collection, tmp_path / "out"):
    episodes = tfds.builder_from_directory(folder).as_dataset(split="train")
    found = {item["episode_id"].numpy().decode(): item for item in episodes}
    assert len(found) == len(dataset)
    for expected in dataset.episodes():
      item = found[expected.metadata["episode_id"]]
      check_rlds(list(tfds.as_numpy(item["steps"])), expected)
      assert item["episode_length"].numpy() == expected.num_steps - 1
    # Octo and OpenVLA leave out the features' decoding: strings are pictures, all else is an array.
    skip = {"steps": tfds.decode.SkipDecoding()}
    (plain,) = tfds.builder_from_directory(folder).as_dataset(split="train", decoders=skip).take(1)
    for field in dataset.schema.fields:
      item = plain["steps"]
      for key in field.name.split("/"):
        item = item[key]
      if png.is_picture(field):
        assert tensorflow.io.decode_image(item[0]).shape == (*field.shape, 1)[:3]
      else:
        assert item.shape[1:] == field.shape and item.dtype.name == field.dtype


# JAT


def load_jat(collection, tmp_path):
  datasets = pytest.importorskip("datasets")
  out = tmp_path / "out"
  export.export("jat-parquet", collection, out)
  for dataset in collection:
    loaded = datasets.load_dataset(
      os.fspath(out), dataset.task, split="train", cache_dir=os.fspath(tmp_path / "cache")
    )
    yield dataset, loaded


def test_jat_has_an_episode_a_row(collection, tmp_path):
  names = {}
  for dataset, loaded in load_jat(collection, tmp_path):
    columns = _jat_columns.columns(dataset.schema)
    names[dataset.task] = {column.field.name: column.name for column in columns}
    assert len(loaded) == len(dataset)
    for row, expected in zip(loaded, dataset.episodes(), strict=True):
      is_terminal = bool(expected.steps["is_terminal"][-1])
      assert (row["terminated"], row["truncated"]) == (is_terminal, not is_terminal)
      assert row["episode_id"] == expected.metadata["episode_id"]
      for column in columns:
        value = expected.steps[column.field.name]
        found = row[column.name]
        if column.field.name.startswith("observation"):
          found = [*found, row[f"final_{column.name}"]]
        else:
          value = value[:-1]
        found = np.stack([np.asarray(item, value.dtype) for item in found])
        same(found.reshape(value.shape), value)
  assert names[FRAMES]["observation"] == "image_observations"
  assert names[FRAMES]["action"] == "discrete_actions"
  assert names[FRAMES]["reward"] == "rewards"
  assert names[ROBOT]["action"] == "continuous_actions"
  assert names[ROBOT]["observation/camera"] == "image_observations"
  assert names[ROBOT]["observation/joints"] == "continuous_observations_joints"
  assert names[ROBOT]["observation/hand/force"] == "continuous_observations_hand_force"


def test_jat_features_are_those_of_jat(collection, tmp_path):
  datasets = pytest.importorskip("datasets")
  of = {dataset.task: loaded.features for dataset, loaded in load_jat(collection, tmp_path)}
  float32 = datasets.Value("float32")
  assert of[FRAMES]["image_observations"] == datasets.List(datasets.Image())
  assert of[FRAMES]["discrete_actions"] == datasets.List(datasets.Value("int64"))
  assert of[FRAMES]["rewards"] == datasets.List(float32)
  assert of[ROBOT]["continuous_actions"] == datasets.List(datasets.List(float32))


def test_jat_cuts_row_groups_and_shards(collection, tmp_path, small):
  for dataset, loaded in load_jat(collection, tmp_path):
    folder = tmp_path / "out" / dataset.task
    paths = sorted(folder.iterdir())
    assert len(paths) > 1 and paths[0].name == f"train-00000-of-{len(paths):05d}.parquet"
    groups = [parquet.ParquetFile(path).num_row_groups for path in paths]
    assert sum(groups) == len(dataset)
    assert loaded["episode_id"] == [e.metadata["episode_id"] for e in dataset.episodes()]


def test_a_picture_comes_back_from_a_png():
  generator = np.random.default_rng(0)
  for shape in ((5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)):
    assert png.is_picture(schema.Field("observation", shape, "uint8"))
    frame = generator.integers(0, 256, shape, np.uint8)
    same(png.decode(png.encode(frame), shape), frame)
  for shape, dtype in (((5,), "uint8"), ((5, 4, 2), "uint8"), ((5, 4), "bool"), ((0, 4), "uint8")):
    assert not png.is_picture(schema.Field("observation", shape, dtype))


# Minari


@pytest.fixture
def minari_datasets(collection, tmp_path, monkeypatch):
  minari = pytest.importorskip("minari")
  export.export("minari", collection, tmp_path / "out")
  monkeypatch.setenv("MINARI_DATASETS_PATH", os.fspath(tmp_path / "out"))
  assert sorted(minari.list_local_datasets()) == [f"{FRAMES}-v0", f"{ROBOT}-v0"]
  return {dataset.task: minari.load_dataset(f"{dataset.task}-v0") for dataset in collection}


def test_minari_has_the_episodes(collection, minari_datasets):
  for dataset in collection:
    loaded = minari_datasets[dataset.task]
    assert (len(loaded), loaded.total_steps) == (4, 346)
    for found, expected in zip(loaded, dataset.episodes(), strict=True):
      steps = expected.steps
      for name, value in steps.items():
        root, *keys = name.split("/")
        if root == "observation":
          item = found.observations
          for key in keys:
            item = item[key]
          same(item, value.astype(np.uint8) if value.dtype == bool else value)
        elif root in ("policy_logits", "value", "search_visits", "teacher_action", "discount"):
          same(found.infos[name], value.reshape(len(value), -1))
      same(found.actions, steps["action"][:-1])
      same(found.rewards, steps["reward"][:-1])
      ends = np.zeros(len(found), bool)
      ends[-1] = True
      is_terminal = steps["is_terminal"][-1]
      same(found.terminations, ends & is_terminal)
      same(found.truncations, ends & ~is_terminal)
    (attributes,) = loaded.storage.get_episode_metadata([1])
    assert attributes["seed"] == 7 and attributes["total_steps"] == 300
    assert json.loads(attributes["metadata"]) == dataset.episode(1).metadata


def first_of(tree):
  if isinstance(tree, dict):
    return {key: first_of(value) for key, value in tree.items()}
  return tree[0]


def test_minari_knows_the_spaces_scores_and_environment(collection, minari_datasets):
  minari = pytest.importorskip("minari")
  from gymnasium import spaces

  frames, robot = minari_datasets[FRAMES], minari_datasets[ROBOT]
  assert frames.action_space == spaces.Discrete(3)
  assert frames.observation_space == spaces.Box(0, 255, (36, 33), np.uint8)
  assert robot.action_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
  assert robot.observation_space["room"] == spaces.Discrete(3)
  assert robot.observation_space["hand"]["force"].shape == (2, 3)
  for loaded in (frames, robot):
    episode = loaded[0]
    assert loaded.action_space.contains(episode.actions[0])
    assert loaded.observation_space.contains(first_of(episode.observations))
  assert minari.get_normalized_score(frames, np.array([-1.0, 12.5])).tolist() == [0, 1]
  assert frames.env_spec.id == "CartPole-v1" and robot.env_spec is None
  assert frames.env_spec.kwargs["sutton_barto_reward"] is True
  assert frames.recover_environment().spec.id == "CartPole-v1"


# Histories


def test_histories_are_flat(collection, tmp_path):
  export.export("history-hdf5", collection, tmp_path / "out")
  assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{FRAMES}.hdf5"]
  dataset = collection[FRAMES]
  with h5py.File(tmp_path / "out" / f"{FRAMES}.hdf5") as file:
    # Of seed-0 there are 5 and 1 transitions, of seed-1 300 and 40.
    assert [file[i].attrs["history_id"] for i in "01"] == ["seed-0", "seed-1"]
    for number, episodes in (("0", (0, 2)), ("1", (1, 3))):
      parts = [dataset.episode(i).steps for i in episodes]

      def flat(name, parts=parts):
        return np.concatenate([steps[name][:-1] for steps in parts])[None]

      group = file[number]
      assert group.attrs["task"] == FRAMES and group.attrs["env-id"] == "gymnasium:CartPole-v1"
      for field, name in (
        ("observation", "states"),
        ("action", "actions"),
        ("reward", "rewards"),
        ("teacher_action", "expert_actions"),
      ):
        same(group[name][()], flat(field))
      dones = np.concatenate([steps["is_last"][1:] for steps in parts])[None]
      terminal = np.concatenate([steps["is_terminal"][1:] for steps in parts])[None]
      same(group["dones"][()], dones)
      same(group["truncations"][()], dones & ~terminal)


def test_histories_are_read_as_xland_reads_its_own(collection, tmp_path):
  """Its readers index [task][name][history][steps], and take the length of task 0 for all."""
  export.export("history-hdf5", collection, tmp_path / "out")
  with h5py.File(tmp_path / "out" / f"{FRAMES}.hdf5") as file:
    num_histories, length = file["0/rewards"].shape
    assert num_histories == 1
    for task in file:
      states = file[task]["states"][0][1:length]
      previous = file[task]["actions"][0][: length - 1]
      assert len(states) == len(previous) == length - 1
      assert {"benchmark-id", "env-id", "ruleset-id"} <= set(file[task].attrs)


def test_histories_of_dicts_are_groups(tmp_path):
  record(tmp_path / "recorded", ROBOT, ("only",))
  store.finalise(tmp_path / "recorded")
  recorded = dataset_lib.open(tmp_path / "recorded")
  export.export("history-hdf5", recorded, tmp_path / "out")
  with h5py.File(tmp_path / "out" / f"{ROBOT}.hdf5") as file:
    expected = np.concatenate(
      [e.steps["observation/hand/force"][:-1] for e in recorded[ROBOT].episodes()]
    )
    same(file["0/states/hand/force"][0], expected)
    assert "expert_actions" not in file["0"]


def test_data_without_histories_is_told(collection, tmp_path):
  with pytest.raises(config.InputError, match="no episode has a history_id"):
    export.export("history-hdf5", [collection[ROBOT]], tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_formats_are_known_without_their_libraries():
  code = (
    "import sys, podracer.data.export as e; assert len(e.FORMATS) == 4; "
    "assert not {'jax', 'h5py', 'pyarrow', 'minari'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
