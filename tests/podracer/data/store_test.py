import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from pyarrow import parquet

from podracer import config
from podracer.data import dataset, example, features, layout, shards, store, writer
from podracer.data import episode as episode_lib
from podracer.data import schema as schema_lib

TASK = "pong"
LENGTHS = (3, 600, 1, 256, 20)


def all_fields(*observation):
  return schema_lib.Schema(
    tuple(
      sorted(
        (
          *observation,
          schema_lib.Field("action", (), "int32"),
          schema_lib.Field("behaviour_log_prob", (), "float32"),
          schema_lib.Field("discount", (), "float32"),
          schema_lib.Field("exact", (), "float64"),
          schema_lib.Field("half", (), "float16"),
          schema_lib.Field("is_last", (), "bool"),
          schema_lib.Field("number", (), "uint64"),
          schema_lib.Field("policy_logits", (6,), "float16"),
          schema_lib.Field("search_visits", (6,), "uint16"),
          schema_lib.Field("small", (), "int8"),
        )
      )
    )
  )


PLAIN = all_fields(schema_lib.Field("observation", (12, 10), "uint8"))
NESTED = all_fields(
  schema_lib.Field("observation/frame", (4, 3, 2), "uint8"),
  schema_lib.Field("observation/hand/force", (3,), "float32"),
  schema_lib.Field("observation/hand/touch", (), "bool"),
  schema_lib.Field("observation/mask", (6,), "bool"),
  schema_lib.Field("observation/offset", (2,), "int8"),
  schema_lib.Field("observation/room", (), "int64"),
)


def make_episode(schema, number, length):
  """An episode of all bits that there are, but for those that aren't numbers."""
  rng = np.random.default_rng(number)
  steps = {}
  for name, shape, dtype in schema.fields:
    shape = (length + 1, *shape)
    if dtype == "bool":
      steps[name] = rng.random(shape) < 0.5
    else:
      bits = rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
      values = np.frombuffer(bits, dtype).reshape(shape)
      steps[name] = np.where(np.isfinite(values), values, 0).astype(dtype)
  metadata = {name: kind() for name, kind in episode_lib.METADATA.items()}
  metadata |= {"episode_id": f"e{number}", "task": TASK, "env_kwargs": '{"ü": 1}', "seed": 2**62}
  return episode_lib.Episode(steps, {**metadata, "episode_length": length, "episode_return": 0.1})


def record(root, schema=PLAIN, numbers=(0, 1, 2, 3, 4), task=TASK, **options):
  """Writes episodes, each in a shard of its own."""
  made = writer.Writer(root, task, schema, **{"shard_seconds": 1e-9, **options})
  for number in numbers:
    made.write(make_episode(schema, number, LENGTHS[number]))
  made.close()
  return layout.task_dir(root, task)


def contents(root):
  return {
    path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
  }


def kinds(root):
  return [problem.kind for problem in store.verify(root)]


def links(folder):
  return sorted(path.name for path in folder.glob("*-of-*"))


@pytest.mark.parametrize("schema", [PLAIN, NESTED], ids=["plain", "nested"])
def test_stock_tfds_reads_every_bit(tmp_path, schema):
  import tensorflow_datasets as tfds

  folder = record(tmp_path, schema)
  store.finalise(tmp_path)
  builder = tfds.builder_from_directory(folder)
  assert (builder.name, str(builder.version)) == (TASK, layout.VERSION)
  source = builder.as_data_source(split="train")
  segments = [
    segment
    for number, length in enumerate(LENGTHS)
    for segment in episode_lib.split(make_episode(schema, number, length))
  ]
  assert len(source) == len(segments) == 7
  for found, expected in zip(source, segments, strict=True):
    steps = list(found["steps"])
    assert len(steps) == expected.num_steps
    for name, value in expected.steps.items():
      parts = [step[name.split("/")[0]] for step in steps]
      for key in name.split("/")[1:]:
        parts = [part[key] for part in parts]
      assert all(part.dtype == value.dtype for part in parts), name
      assert np.stack(parts).tobytes() == value.tobytes(), name
    metadata = {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}
    del metadata["steps"]
    own = {"writer_id": "w000", "format_version": layout.VERSION}
    float32 = {"episode_return": float(np.float32(0.1))}
    assert metadata == {**expected.metadata, **own, **float32}


def test_features_are_what_tfds_itself_writes(tmp_path):
  from tensorflow_datasets import features as tfds_features

  def tensor(name, shape, dtype):
    if example.default_encoding(schema_lib.Field(name, shape, dtype)) == example.NUMBERS:
      return tfds_features.Scalar(np.dtype(dtype))
    return tfds_features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding="bytes")

  steps = {field.name: tensor(*field) for field in NESTED.fields if "/" not in field.name}
  parts = {f.name.removeprefix("observation/"): tensor(*f) for f in NESTED.fields if "/" in f.name}
  hand = {key: parts.pop(f"hand/{key}") for key in ("force", "touch")}
  steps["observation"] = {**parts, "hand": hand}
  of = {
    str: tfds_features.Text(),
    int: tfds_features.Scalar(np.int64),
    float: tfds_features.Scalar(np.float32),
  }
  metadata = {name: of[kind] for name, kind in episode_lib.METADATA.items()}
  expected = tfds_features.FeaturesDict({"steps": tfds_features.Dataset(steps), **metadata})
  expected.save_config(tmp_path)
  written = json.loads((tmp_path / "features.json").read_text())
  assert features.features_json(NESTED) == written


def test_grain_reads_the_records(tmp_path):
  import grain

  folder = record(tmp_path, NESTED)
  store.finalise(tmp_path)
  source = grain.sources.ArrayRecordDataSource([str(folder / name) for name in links(folder)])
  assert len(source) == 7
  found = example.decode(source[1], NESTED)
  expected = next(episode_lib.split(make_episode(NESTED, 1, 600)))
  for name, value in expected.steps.items():
    assert found.steps[name].tobytes() == value.tobytes()


def test_the_index_has_a_row_an_episode(tmp_path):
  record(tmp_path, numbers=(0, 1), shard_seconds=1e9, writer_id="w001")
  folder = record(tmp_path, numbers=(2, 3, 4), shard_seconds=1e9)
  store.finalise(tmp_path)
  table = parquet.read_table(folder / layout.EPISODES)
  assert table.column_names == [*episode_lib.METADATA, "shard", "record"]
  rows = table.to_pylist()
  assert rows == [row for m in layout.read_manifests(folder) for row in m.episodes]
  assert [(row["episode_id"], row["shard"][:4], row["record"]) for row in rows] == [
    ("e2", "w000", 0),
    ("e3", "w000", 1),
    ("e4", "w000", 2),
    ("e0", "w001", 0),
    ("e1", "w001", 1),
  ]
  assert rows[-1]["num_segments"] == 3
  assert rows[-1]["episode_return"] == 0.1


def test_twice_gives_the_same_bytes(tmp_path):
  folder = record(tmp_path)
  record(tmp_path, NESTED, task="breakout")
  store.finalise(tmp_path)
  before = contents(tmp_path)
  assert links(folder) == [layout.link_name(TASK, i, 5) for i in range(5)]
  assert {path.name for path in folder.iterdir() if path.is_file()} == {
    *links(folder),
    layout.DATASET_INFO,
    layout.EPISODES,
    layout.FEATURES,
    layout.SCHEMA,
  }
  store.finalise(tmp_path)
  assert contents(tmp_path) == before
  assert store.verify(tmp_path) == []


def test_it_goes_on_with_what_came_later(tmp_path):
  folder = record(tmp_path, numbers=(0, 1))
  store.finalise(tmp_path)
  record(tmp_path, numbers=(2,))
  assert kinds(tmp_path) == ["unfinished"]
  (folder / "episodes.parquet.tmp-7-0").write_bytes(b"torn")
  store.finalise(tmp_path)
  assert links(folder) == [layout.link_name(TASK, i, 3) for i in range(3)]
  assert store.verify(tmp_path) == []


def test_a_task_without_episodes(tmp_path):
  record(tmp_path, numbers=())
  with pytest.raises(config.InputError, match="no committed episode yet"):
    store.finalise(tmp_path)
  assert [problem.kind for problem in store.verify(tmp_path)] == ["unfinished"]


@pytest.mark.parametrize("link", [None, "link"])
def test_disks_without_links(tmp_path, monkeypatch, link):
  def refuse(*args, **kwargs):
    raise PermissionError("this disk has no links")

  if link:
    monkeypatch.setattr(os, link, refuse)
  folder = record(tmp_path / "a")
  store.finalise(tmp_path / "a")
  assert [(folder / name).is_symlink() for name in links(folder)] == [bool(link)] * 5
  assert store.verify(tmp_path / "a") == []
  (tmp_path / "a").rename(tmp_path / "moved")
  assert store.verify(tmp_path / "moved") == []
  store.merge([tmp_path / "moved"], tmp_path / "merged")
  assert store.verify(tmp_path / "merged") == []


def test_a_copy_is_whole(tmp_path):
  record(tmp_path / "a")
  store.finalise(tmp_path / "a")
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  assert store.verify(tmp_path / "b") == []


def test_no_collection(tmp_path):
  for call in (store.finalise, store.verify):
    with pytest.raises(config.InputError, match="nowhere is not a directory"):
      call(tmp_path / "nowhere")
    with pytest.raises(config.InputError, match="holds no recorded task"):
      call(tmp_path)


@pytest.mark.parametrize("part", [".", "shards", ".."])
def test_a_part_of_a_collection_is_answered_with_its_root(tmp_path, part):
  root = tmp_path / "a"
  path = record(root) / part
  expected = f"is a part of the collection {root}$"
  for call in (
    store.finalise,
    store.verify,
    lambda path: writer.Writer(path, TASK, PLAIN),
    lambda path: store.merge([root], path / "merged"),
  ):
    with pytest.raises(config.InputError, match=expected):
      call(path)
  assert kinds(root) == ["unfinished"]


def test_a_lost_schema_is_not_overlooked(tmp_path):
  other = record(tmp_path, NESTED, task="breakout")
  folder = record(tmp_path)
  store.finalise(tmp_path)
  (folder / layout.SCHEMA).unlink()
  message = f"{folder} holds no recorded task: it has no schema.json"
  for call in (store.finalise, lambda root: dataset.open(root)[TASK]):
    with pytest.raises(config.InputError, match=message):
      call(tmp_path)
  (problem,) = store.verify(tmp_path)
  assert (problem.kind, problem.path) == ("missing", folder / layout.SCHEMA)
  assert (other / layout.SCHEMA).exists()


def test_lost_shards_are_not_forgotten(tmp_path):
  folder = record(tmp_path / "a")
  record(tmp_path / "a", NESTED, task="breakout")
  store.finalise(tmp_path / "a")
  (folder / layout.SHARDS / "w000-00001.json").unlink()
  assert sorted(kinds(tmp_path / "a"))[:2] == ["missing", "orphaned"]
  for path in folder.glob(f"{layout.SHARDS}/w*"):
    path.unlink()
  found = store.verify(tmp_path / "a")
  missing = [folder / layout.SHARDS / f"w000-{i:05d}.json" for i in range(len(LENGTHS))]
  assert [problem.path for problem in found if problem.kind == "missing"] == missing
  with pytest.raises(config.InputError, match=r"pong in .* has lost its shards"):
    store.finalise(tmp_path / "a")
  with pytest.raises(config.InputError, match=r"pong in .* holds no committed episode"):
    store.merge([tmp_path / "a"], tmp_path / "merged")
  assert not (tmp_path / "merged").exists()


def test_what_no_reader_could_read_is_found(tmp_path):
  folder = record(tmp_path)
  store.finalise(tmp_path)
  right = (folder / layout.SCHEMA).read_text()
  for old, new, message in (
    ("uint8", "float32", "is not that of .*w000-00000.array_record: a record is not"),
    ("uint8", "uint9", "schema.json is not the schema of a task: .*uint9"),
    (layout.VERSION, "9.0.0", "schema.json has format version 9.0.0; this podracer reads"),
  ):
    (folder / layout.SCHEMA).write_text(right.replace(old, new))
    problem = store.verify(tmp_path)[0]
    assert (problem.kind, problem.path) == ("altered", folder / layout.SCHEMA)
    assert re.search(message, problem.text)
  (folder / layout.SCHEMA).write_text(right)
  (tmp_path / layout.SCORES).write_text("{")
  (problem,) = store.verify(tmp_path)
  assert (problem.kind, problem.path) == ("altered", tmp_path / layout.SCORES)


def test_without_pyarrow(tmp_path, monkeypatch):
  record(tmp_path)
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(config.InputError, match=r"pip install 'podracer-rl\[data\]'"):
    store.finalise(tmp_path)


def damage(kind, folder, shard):
  """Damages a finalised task; returns what is found, and whether finalise refuses."""
  manifest = layout.manifest_path(shard)
  match kind:
    case "torn":
      data = shard.read_bytes()
      os.truncate(shard, len(data) // 2)
      return ["torn"], True
    case "altered":
      data = bytearray(shard.read_bytes())
      data[-100] ^= 1
      shard.write_bytes(data)
      return ["altered"], True
    case "missing shard":
      shard.unlink()
      return ["missing"], True
    case "missing manifest":
      manifest.unlink()
      return ["orphaned", "missing", "unfinished"], False
    case "garbage manifest":
      manifest.write_bytes(b"\x00\xff")
      return ["altered"], True
    case "manifest of another shard":
      manifest.write_bytes(layout.manifest_path(shard.with_name("w000-00002.json")).read_bytes())
      return ["altered"], True
    case "left by a kill":
      shard.with_name("w007-00000.array_record.tmp-1-0").write_bytes(b"")
      return ["orphaned"], False
    case "never committed":
      shard.with_name("w007-00000.array_record").write_bytes(b"")
      return ["orphaned"], False
    case "missing link":
      (folder / links(folder)[0]).unlink()
      return ["missing"], False
    case "torn copy":
      link = folder / links(folder)[0]
      data = link.read_bytes()
      link.unlink()
      link.write_bytes(data[:-1])
      return ["torn"], False
    case "not finalised":
      (folder / layout.DATASET_INFO).unlink()
      return ["unfinished"], False
    case "garbage info":
      (folder / layout.DATASET_INFO).write_text("{")
      return ["unfinished"], False
    case "missing features":
      (folder / layout.FEATURES).unlink()
      return ["missing"], False
    case "garbage index":
      (folder / layout.EPISODES).write_bytes(b"years of work")
      return ["altered"], False
    case "missing index":
      (folder / layout.EPISODES).unlink()
      return ["missing"], False
    case "missing schema":
      (folder / layout.SCHEMA).unlink()
      return ["missing"], True
    case "garbage schema":
      (folder / layout.SCHEMA).write_text("[1]")
      return ["altered"], True
  raise AssertionError(kind)


@pytest.mark.parametrize(
  "kind",
  [
    "torn",
    "altered",
    "missing shard",
    "missing manifest",
    "garbage manifest",
    "manifest of another shard",
    "left by a kill",
    "never committed",
    "missing link",
    "torn copy",
    "not finalised",
    "garbage info",
    "missing features",
    "garbage index",
    "missing index",
    "missing schema",
    "garbage schema",
  ],
)
def test_damage_is_found(tmp_path, kind):
  folder = record(tmp_path)
  store.finalise(tmp_path)
  shard = folder / layout.SHARDS / "w000-00001.array_record"
  for name in links(folder):  # As in a copy: else a link would show the same damage.
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(data)
  found, refused = damage(kind, folder, shard)
  problems = store.verify(tmp_path)
  assert [problem.kind for problem in problems] == found
  assert all("\n" not in problem.text for problem in problems)
  if refused:
    before = contents(tmp_path)
    with pytest.raises(config.InputError) as caught:
      store.finalise(tmp_path)
    assert "\n" not in str(caught.value)
    assert {**contents(tmp_path), **before} == contents(tmp_path)  # Nothing but the lock is new.
  else:
    store.finalise(tmp_path)
    assert set(kinds(tmp_path)) <= {"orphaned"}


def test_a_torn_shard_shows_through_its_link(tmp_path):
  folder = record(tmp_path)
  store.finalise(tmp_path)
  os.truncate(folder / layout.SHARDS / "w000-00001.array_record", 70_000)
  (problem,) = store.verify(tmp_path)
  assert problem.kind == "torn"
  assert "has 70,000 bytes of " in problem.text
  assert problem.text.endswith("and 0 whole records")
  assert shards.num_records(problem.path) == 0


def test_duplicates_are_named_and_refused(tmp_path):
  folder = record(tmp_path, numbers=(0, 1))
  shutil.move(folder / layout.SHARDS, tmp_path / "aside")
  record(tmp_path, numbers=(1, 2), writer_id="w001")
  for path in (tmp_path / "aside").glob("w000-*"):
    shutil.move(path, folder / layout.SHARDS / path.name)
  found = [problem for problem in store.verify(tmp_path) if problem.kind == "duplicated"]
  where = "w000-00001.array_record and w001-00000.array_record"
  assert [problem.text for problem in found] == [f"episode e1 is in {where}"]
  with pytest.raises(
    config.InputError, match=f"^1 episodes are there more than once: e1 in {where}$"
  ):
    store.finalise(tmp_path)


def test_merge(tmp_path):
  """Two writers of the same name, one task that only one has, and scores of both."""
  a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "c" / "merged"
  record(a, numbers=(0, 1))
  record(a, numbers=(2,), writer_id="w003")
  folder = record(b, numbers=(3, 4))
  record(b, NESTED, numbers=(0,), task="breakout")
  scores = {
    a: {"pong": {"random": {"mean": 1.0}}},
    b: {"pong": {"random": {"mean": 2.0, "n": 9}, "expert": {"mean": 20.0}}, "breakout": {}},
  }
  for root in (a, b):
    layout.write_json(root / layout.SCORES, scores[root])
  store.merge([a, b], out)
  assert store.verify(out) == []
  assert layout.tasks(out) == ["breakout", "pong"]
  merged = layout.read_manifests(layout.task_dir(out, TASK))
  assert [m.shard for m in merged] == [
    "w000-00000.array_record",
    "w000-00001.array_record",
    "w001-00000.array_record",
    "w002-00000.array_record",
    "w002-00001.array_record",
  ]
  rows = [row for manifest in merged for row in manifest.episodes]
  assert [row["episode_id"] for row in rows] == [f"e{i}" for i in range(5)]
  assert [row["shard"] for row in rows] == [manifest.shard for manifest in merged]
  assert [row["writer_id"] for row in rows] == ["w000", "w000", "w003", "w000", "w000"]
  path = layout.task_dir(out, TASK) / layout.SHARDS / "w002-00000.array_record"
  assert path.samefile(folder / layout.SHARDS / "w000-00000.array_record")
  assert layout.read_json(out / layout.SCORES) == {
    "breakout": {},
    "pong": {"random": {"mean": 1.0}, "expert": {"mean": 20.0}},
  }
  described = layout.read_json(out / layout.COLLECTION)["tasks"][TASK]
  assert described["episodes"] == len(rows) and described["shards"] == len(merged)
  assert described["steps"] == sum(row["episode_length"] for row in rows)
  assert sorted(path.name for path in out.parent.iterdir()) == ["merged"]
  made = writer.Writer(out, TASK, PLAIN)
  assert "e4" in made
  made.close()


def test_merging_what_does_not_go_together(tmp_path):
  a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
  record(a, numbers=(0, 1))
  record(b, numbers=(1, 2))
  record(c, NESTED, numbers=(3,))
  full = tmp_path / "full"
  full.mkdir()
  (full / "thesis").touch()
  before = sorted(tmp_path.iterdir())
  for roots, out, message in (
    ([a, b], "out", "^1 episodes are there more than once: e1 in .*/a/.*00001.* and .*/b/.*00000"),
    ([a, a], "out", "2 episodes are there more than once"),
    ([a, c], "out", f"the steps differ from those of {a}, task pong: observation is absent, not"),
    ([a, full], "out", "full holds no recorded task"),
    ([a], "full", "full is there already; a merged collection needs a new folder"),
    ([], "out", "merge needs at least one collection"),
  ):
    with pytest.raises(config.InputError, match=message):
      store.merge(roots, tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before
