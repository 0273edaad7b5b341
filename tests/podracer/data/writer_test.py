import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from podracer import config, files
from podracer.data import episode as episode_lib
from podracer.data import example, layout, shards, store, worker, writer

DRILL = pathlib.Path(__file__).parent / "drill.py"
TASK = "pong"


@pytest.fixture
def schema(recordings):
  return recordings.make_schema()


@pytest.fixture
def episodes(recordings):
  return [recordings.make_episode(i, length) for i, length in enumerate((3, 600, 1, 256, 20))]


def read(root, task=TASK):
  """Returns all committed episodes, by id, as records say; none may be there twice."""
  folder = layout.task_dir(root, task)
  schema = layout.read_schema(folder)
  found = {}
  for manifest in layout.read_manifests(folder):
    path = folder / layout.SHARDS / manifest.shard
    reader = shards.array_record().ArrayRecordReader(str(path))
    segments = [example.decode(record, schema) for record in reader.read_all()]
    assert len(segments) == manifest.num_records
    end = 0
    for row in manifest.episodes:
      start, end = row["record"], row["record"] + row["num_segments"]
      assert row["shard"] == manifest.shard
      assert [s.metadata["segment_index"] for s in segments[start:end]] == list(range(end - start))
      assert row["episode_id"] not in found
      found[row["episode_id"]] = episode_lib.join(segments[start:end])
      assert all(s.metadata["episode_id"] == row["episode_id"] for s in segments[start:end])
    assert end == manifest.num_records
  return found


def assert_same(found, expected):
  assert found.steps.keys() == expected.steps.keys()
  for name, value in expected.steps.items():
    assert found.steps[name].dtype == value.dtype
    np.testing.assert_array_equal(found.steps[name], value, name)


def shard_files(root, task=TASK):
  folder = layout.task_dir(root, task) / layout.SHARDS
  return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("background", [False, True])
def test_what_is_committed_is_what_was_written(tmp_path, schema, episodes, background):
  made = writer.Writer(tmp_path, TASK, schema, background=background)
  assert [made.write(one) for one in episodes[:3]] == [True] * 3
  made.commit()
  made.commit()
  assert [made.write(one) for one in episodes] == [False] * 3 + [True] * 2
  assert "e3" in made
  assert "e5" not in made
  made.close()
  made.close()
  names = ["w000-00000.array_record", "w000-00000.json"]
  assert shard_files(tmp_path) == [*names, *(n.replace("00.", "01.") for n in names)]
  found = read(tmp_path)
  assert list(found) == [one.metadata["episode_id"] for one in episodes]
  for one in episodes:
    assert_same(found[one.metadata["episode_id"]], one)


def test_the_manifest(tmp_path, recordings, schema):
  made = writer.Writer(tmp_path, TASK, schema, writer_id="w012")
  for i, length in enumerate((600, 2)):
    made.write(recordings.make_episode(i, length, seed=np.int64(9)))
  made.close()
  (manifest,) = layout.read_manifests(layout.task_dir(tmp_path, TASK))
  path = layout.task_dir(tmp_path, TASK) / layout.SHARDS / manifest.shard
  assert manifest.shard == "w012-00000.array_record"
  assert manifest.format_version == layout.VERSION
  assert manifest.num_records == 4
  assert manifest.num_bytes == path.stat().st_size
  assert manifest.sha256 == files.sha256(path)
  long, short = manifest.episodes
  assert {**long, "episode_id": "e1"} | {"record": 3, "num_segments": 1} == {
    **short,
    "episode_length": 600,
    "episode_return": 0.0,
  }
  assert long["seed"] == 9
  assert (long["record"], long["num_segments"], long["writer_id"]) == (0, 3, "w012")
  assert set(long) == {*episode_lib.METADATA, "shard", "record"}


def test_shards_are_cut_by_age_and_by_size(tmp_path, schema, episodes):
  for name, options in (("age", {"shard_seconds": 1e-9}), ("size", {"shard_bytes": 1})):
    made = writer.Writer(tmp_path / name, TASK, schema, **options)
    for one in episodes:
      made.write(one)
    assert len(layout.read_manifests(layout.task_dir(tmp_path / name, TASK))) == len(episodes)
    made.close()
    assert len(read(tmp_path / name)) == len(episodes)


def test_a_thread_writes_the_same_bytes(tmp_path, schema, episodes, monkeypatch):
  monkeypatch.setattr(worker, "QUEUE_BYTES", 1)  # Each episode waits for the one before.
  for name in ("foreground", "background"):
    made = writer.Writer(tmp_path / name, TASK, schema, background=name == "background")
    for one in episodes:
      made.write(one)
    made.close()
  for name in shard_files(tmp_path / "foreground"):
    one, other = (
      layout.task_dir(tmp_path / ground, TASK) / layout.SHARDS / name
      for ground in ("foreground", "background")
    )
    assert one.read_bytes() == other.read_bytes()


def test_a_writer_goes_on_and_cleans_up_after_itself_only(tmp_path, schema, episodes):
  for writer_id, one in zip(("w000", "w001"), episodes, strict=False):
    made = writer.Writer(tmp_path, TASK, schema, writer_id=writer_id)
    made.write(one)
    made.close()
  folder = layout.task_dir(tmp_path, TASK) / layout.SHARDS
  for writer_id in ("w000", "w001"):
    for name in ("00001.array_record.tmp-7-0", "00001.array_record", "00001.json.tmp-7-0"):
      (folder / f"{writer_id}-{name}").write_bytes(b"torn")
  made = writer.Writer(tmp_path, TASK, schema)
  assert [path.name for path in folder.glob("w000-00001*")] == []
  assert len(list(folder.glob("w001-00001*"))) == 3
  assert "e0" in made
  assert "e1" in made
  made.write(episodes[2])
  made.close()
  assert [m.shard for m in layout.read_manifests(folder.parent)] == [
    "w000-00000.array_record",
    "w000-00001.array_record",
    "w001-00000.array_record",
  ]


def test_nothing_written_leaves_no_shard(tmp_path, schema):
  made = writer.Writer(tmp_path, TASK, schema, background=True)
  made.commit()
  made.close()
  assert shard_files(tmp_path) == []


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"task": "Pong-v5"}, "task 'Pong-v5' must be lower-case"),
    ({"writer_id": "1"}, "writer_id '1' must be w and at least three digits"),
    ({"shard_bytes": 0}, "shard_bytes must be above 0"),
    ({"shard_seconds": -1}, "shard_seconds must be above 0"),
  ],
)
def test_bad_arguments(tmp_path, schema, options, message):
  with pytest.raises(config.InputError, match=message):
    writer.Writer(tmp_path, **{"task": TASK, "schema": schema, **options})


def test_a_task_has_one_schema(tmp_path, recordings, schema):
  writer.Writer(tmp_path, TASK, schema).close()
  other = recordings.make_schema((5, 5))._replace(
    fields=tuple(f for f in recordings.make_schema((5, 5)).fields if f.name != "action")
  )
  with pytest.raises(config.InputError) as caught:
    writer.Writer(tmp_path, TASK, other, writer_id="w001")
  assert str(caught.value) == (
    f"the steps differ from those recorded in {layout.task_dir(tmp_path, TASK)}: "
    "action is absent, not int32[]; observation is uint8[5, 5], not uint8[3, 4]"
  )
  writer.Writer(tmp_path, TASK, schema, writer_id="w001").close()


def test_two_writers_of_a_process_cannot_have_the_same_id(tmp_path, schema):
  first = writer.Writer(tmp_path, TASK, schema)
  with pytest.raises(
    config.InputError, match=r"w000 is at work in .*; every process needs its own"
  ):
    writer.Writer(tmp_path, TASK, schema)
  writer.Writer(tmp_path, TASK, schema, writer_id="w001").close()
  first.close()
  writer.Writer(tmp_path, TASK, schema).close()


def test_an_episode_that_is_not_of_the_schema(tmp_path, recordings, schema, episodes):
  made = writer.Writer(tmp_path, TASK, schema)
  made.write(episodes[0])
  with pytest.raises(config.InputError, match="observation must be"):
    made.write(recordings.make_episode(7, 3, observation=(5, 5)))
  assert "e7" not in made
  made.write(episodes[1])
  made.close()
  assert list(read(tmp_path)) == ["e0", "e1"]


def test_the_exception_of_the_thread_is_raised_and_ends_the_writing(
  tmp_path, recordings, schema, episodes
):
  made = writer.Writer(tmp_path, TASK, schema, background=True)
  made.write(episodes[0])
  made.write(recordings.make_episode(7, 3, observation=(5, 5)))
  for call in (made.commit, made.commit, lambda: made.write(episodes[1]), made.close):
    with pytest.raises(config.InputError, match="observation must be"):
      call()
  assert list(read(tmp_path)) == ["e0"]
  again = writer.Writer(tmp_path, TASK, schema)
  assert "e7" not in again
  again.close()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("failing", ["sync", "sha256", "tmp_path"])
def test_a_failing_disk(tmp_path, schema, episodes, monkeypatch, background, failing):
  made = writer.Writer(tmp_path, TASK, schema, background=background)
  made.write(episodes[0])
  made.commit()
  made.write(episodes[1])
  if background:
    made._worker.drain()

  def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files, failing, fail)
  with pytest.raises(writer.WriteError, match=r"00001.array_record: .*No space left.* 1 episodes"):
    made.commit()
  assert "e0" in made
  assert "e1" not in made
  with pytest.raises(writer.WriteError):
    made.write(episodes[2])
  with pytest.raises(writer.WriteError):
    made.close()
  monkeypatch.undo()
  assert shard_files(tmp_path) == ["w000-00000.array_record", "w000-00000.json"]
  again = writer.Writer(tmp_path, TASK, schema)
  assert [again.write(one) for one in episodes[:3]] == [False, True, True]
  again.close()
  assert list(read(tmp_path)) == ["e0", "e1", "e2"]


def test_a_torn_shard_is_not_committed(tmp_path, schema, episodes, monkeypatch):
  made = writer.Writer(tmp_path, TASK, schema)
  made.write(episodes[1])
  monkeypatch.setattr(shards, "num_records", lambda path: 0)
  with pytest.raises(writer.WriteError, match="holds 0 records of 3"):
    made.commit()
  assert shard_files(tmp_path) == []


def test_a_shard_that_was_damaged_is_seen_before_anything_is_written(tmp_path, schema, episodes):
  made = writer.Writer(tmp_path, TASK, schema)
  made.write(episodes[1])
  made.close()
  (path,) = (layout.task_dir(tmp_path, TASK) / layout.SHARDS).glob("*.array_record")
  os.truncate(path, path.stat().st_size - 1)
  with pytest.raises(config.InputError, match="is not as it was committed; `podracer data verify`"):
    writer.Writer(tmp_path, TASK, schema)
  path.unlink()
  with pytest.raises(config.InputError, match="is missing, though it was committed"):
    writer.Writer(tmp_path, TASK, schema, writer_id="w001")


def test_without_array_record(tmp_path, schema, monkeypatch):
  monkeypatch.setitem(sys.modules, "array_record.python", None)
  with pytest.raises(config.InputError, match=r"pip install 'podracer-rl\[data\]'"):
    writer.Writer(tmp_path, TASK, schema)
  assert list(tmp_path.iterdir()) == []


def drill(name, root, *args):
  result = subprocess.run(
    [sys.executable, str(DRILL), name, str(root), *map(str, args)],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout.splitlines()


def load_drill():
  spec = importlib.util.spec_from_file_location("drill", DRILL)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def check_killed(root, num_kills, signal):
  drill("random_kills", root, num_kills, signal)
  found = read(root, "toy")
  for writer_id in ("w000", "w001", "w002"):
    numbers = sorted(int(name.split("-")[1]) for name in found if name.startswith(writer_id))
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 20
  module = load_drill()
  for episode_id in list(found)[:: max(1, len(found) // 20)]:
    writer_id, number = episode_id.split("-")
    assert_same(found[episode_id], module.make_episode(writer_id, int(number)))
  store.finalise(root)
  assert store.verify(root) == []
  # The stock readers find each of them, and once.
  import grain
  import tensorflow_datasets as tfds

  folder = layout.task_dir(root, "toy")
  source = tfds.builder_from_directory(folder).as_data_source()["train"]
  names = [record["episode_id"].decode() for record in source if record["segment_index"] == 0]
  assert sorted(names) == sorted(found)
  paths = sorted(str(path) for path in folder.glob("toy-train*"))
  assert len(grain.sources.ArrayRecordDataSource(paths)) == len(source)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_writers_that_are_killed(tmp_path, signal):
  check_killed(tmp_path / "root", 6, signal)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_writers_that_are_killed_many_times(tmp_path, signal):
  check_killed(tmp_path / "root", 100, signal)


def test_a_writer_killed_at_every_point_where_it_touches_the_disk(tmp_path):
  (num_points,) = drill("every_point", tmp_path)
  assert int(num_points) > 20
  for root in sorted(tmp_path.iterdir()):
    found = read(root, "toy")
    assert sorted(found) == [f"w000-{i}" for i in range(5)]
    assert {problem.kind for problem in store.verify(root)} <= {"unfinished", "orphaned"}
    store.finalise(root)
    assert store.verify(root) == []


@pytest.mark.parametrize("background", ["foreground", "background"])
def test_a_full_disk(tmp_path, background):
  *errors, there = drill("full_disk", tmp_path, background)
  assert len(errors) == 3
  assert len(set(errors)) == 1
  assert "File too large" in errors[0]
  assert errors[0].endswith("| RuntimeError")
  assert there == "True False"
  assert shard_files(tmp_path, "toy") == ["w000-00000.array_record", "w000-00000.json"]
  assert sorted(read(tmp_path, "toy")) == ["w000-0", "w000-1", "w000-2"]


def test_processes_cannot_have_the_same_id(tmp_path):
  assert drill("locked", tmp_path) == ["refused"]
