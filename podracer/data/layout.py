"""Where a collection keeps what: the names of its files, their manifests and their schemas.

<root>/ README.md  scores.json  collection.json
  <task_id>/1.0.0/ features.json  dataset_info.json  episodes.parquet  schema.json
    <task_id>-train.array_record-IIIII-of-NNNNN     links to the shards, which `store.finalise` makes
    shards/wNNN-SSSSS.array_record  + .json         a shard, and the manifest that commits it
"""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from podracer import config, files

from . import episode as episode_lib
from . import schema as schema_lib

VERSION = schema_lib.FORMAT_VERSION
SHARDS = "shards"
SUFFIX = ".array_record"
EPISODES = "episodes.parquet"
FEATURES = "features.json"
DATASET_INFO = "dataset_info.json"
SCHEMA = "schema.json"
SCORES = "scores.json"
COLLECTION = "collection.json"
README = "README.md"

_TASK = re.compile(r"[a-z][a-z0-9_]*")
_WRITER = re.compile(r"w[0-9]{3,}")
_SHARD = re.compile(r"(?P<writer>w[0-9]{3,})-(?P<number>[0-9]{5,})\.array_record")

_DEPTH = 4
"""Folders above one in a collection, among which its root is looked for: a shard's folder has three."""

_COLUMNS = {*episode_lib.METADATA, "shard", "record"}

Path = str | os.PathLike[str]


class Manifest(NamedTuple):
  """What a committed shard holds.

  Attributes:
    format_version: of the files.
    shard: name of the file.
    num_records: segments in it.
    num_bytes: size of the file.
    sha256: of the file, in hexadecimal.
    episodes: one row an episode: its metadata, `shard`, and `record`, which is the index of its first
      segment in the shard; the others follow it.
  """

  format_version: str
  shard: str
  num_records: int
  num_bytes: int
  sha256: str
  episodes: tuple[dict[str, Any], ...]


class ShardName(NamedTuple):
  """A shard's writer and its number among that writer's."""

  writer_id: str
  number: int

  def __str__(self) -> str:
    return f"{self.writer_id}-{self.number:05d}{SUFFIX}"


def check_task(task: str) -> None:
  """Raises InputError unless `task` is a name of a data set as TFDS takes one."""
  config.check(
    _TASK.fullmatch(task) is not None,
    f"task {task!r} must be lower-case letters, digits and _, beginning with a letter",
  )


def check_writer_id(writer_id: str) -> None:
  """Raises InputError unless `writer_id` is `w` and three or more digits."""
  config.check(
    _WRITER.fullmatch(writer_id) is not None,
    f"writer_id {writer_id!r} must be w and at least three digits, for example w000",
  )


def task_dir(root: Path, task: str) -> pathlib.Path:
  """Returns the folder of a task, which is what TFDS opens."""
  return pathlib.Path(root) / task / VERSION


def tasks(root: Path) -> list[str]:
  """Returns the names of the tasks of a collection, sorted, also of one that has lost its schema."""
  folders = pathlib.Path(root).glob(f"*/{VERSION}")
  return sorted(
    path.parent.name for path in folders if (path / SCHEMA).exists() or manifest_paths(path)
  )


def check_root(root: Path) -> None:
  """Raises InputError unless a folder is the root of a collection."""
  path = pathlib.Path(root)
  config.check(path.is_dir(), f"{root} is not a directory")
  check_outside(root)
  config.check(any(path.glob(f"*/{VERSION}/{SHARDS}")), f"{root} holds no recorded task")


def check_outside(root: Path) -> None:
  """Raises InputError, naming the collection, where a folder is a part of one."""
  for above in pathlib.Path(root).resolve().parents[:_DEPTH]:
    config.check(not tasks(above), f"{root} is a part of the collection {above}")


def link_name(task: str, index: int, num_shards: int) -> str:
  """Returns the name under which TFDS looks for a shard."""
  return f"{task}-train.array_record-{index:05d}-of-{num_shards:05d}"


def parse_shard(name: str) -> ShardName | None:
  """Returns what the name of a file says where it is a shard's, else None."""
  match = _SHARD.fullmatch(name)
  return ShardName(match["writer"], int(match["number"])) if match else None


def manifest_path(shard: pathlib.Path) -> pathlib.Path:
  """Returns where the manifest of a shard is."""
  return shard.with_suffix(".json")


def manifest_paths(task_dir: pathlib.Path) -> list[pathlib.Path]:
  """Returns where a task's manifests are, by writer and number."""
  named = []
  for path in (task_dir / SHARDS).glob("w*.json"):
    name = parse_shard(path.with_suffix(SUFFIX).name)
    if name is not None:
      named.append((len(name.writer_id), name, path))
  return [path for _, _, path in sorted(named)]


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
  """Writes the manifest of a shard in `folder`: this is what commits it."""
  write_json(manifest_path(folder / manifest.shard), manifest._asdict(), indent=None)


def read_manifest(path: pathlib.Path) -> Manifest:
  """Returns a manifest; raises InputError where the file is not one of this format."""
  value = read_json(path)
  is_manifest = (
    isinstance(value, dict)
    and set(value) == set(Manifest._fields)
    and value["shard"] == path.with_suffix(SUFFIX).name
    and isinstance(value["episodes"], list)
    and all(isinstance(row, dict) and row.keys() >= _COLUMNS for row in value["episodes"])
  )
  config.check(is_manifest, f"{path} is not the manifest of a shard")
  manifest = Manifest(**{**value, "episodes": tuple(value["episodes"])})
  _check_version(path, manifest.format_version)
  return manifest


def read_manifests(task_dir: pathlib.Path) -> list[Manifest]:
  """Returns the manifests of a task's committed shards, by writer and number."""
  return [read_manifest(path) for path in manifest_paths(task_dir)]


def check_shard(path: pathlib.Path, manifest: Manifest, *, hashed: bool) -> None:
  """Raises InputError unless a committed shard is there, has its size and, where `hashed`, its hash."""
  config.check(path.is_file(), f"{path} is missing, though it was committed")
  config.check(
    path.stat().st_size == manifest.num_bytes
    and (not hashed or files.sha256(path) == manifest.sha256),
    f"{path} is not as it was committed; `podracer data verify` lists what is wrong",
  )


def write_schema(task_dir: pathlib.Path, schema: schema_lib.Schema) -> None:
  """Writes the schema of a task; raises InputError where it has another one already."""
  path = task_dir / SCHEMA
  if not path.exists():
    value = {"format_version": VERSION, "fields": [field._asdict() for field in schema.fields]}
    # Of several first writers one wins, and the others compare.
    write_json(path, value, replace=False)
  check_schema(schema, read_schema(task_dir), f"those recorded in {task_dir}")


def read_schema(task_dir: pathlib.Path) -> schema_lib.Schema:
  """Returns the schema of a task; raises InputError where it has none."""
  path = task_dir / SCHEMA
  config.check(path.exists(), f"{task_dir} holds no recorded task: it has no {SCHEMA}")
  try:
    value = read_json(path)
    version = value["format_version"]
    fields = [
      schema_lib.Field(row["name"], tuple(row["shape"]), np.dtype(row["dtype"]).name)
      for row in value["fields"]
    ]
  except (TypeError, KeyError) as error:
    raise config.InputError(f"{path} is not the schema of a task: {error}") from error
  _check_version(path, version)
  return schema_lib.Schema(tuple(fields))


def check_schema(given: schema_lib.Schema, known: schema_lib.Schema, whose: str) -> None:
  """Raises InputError, saying what differs, unless the schemas are the same."""
  given_fields = {field.name: field for field in given.fields}
  known_fields = {field.name: field for field in known.fields}
  differing = [
    f"{name} is {_describe(given_fields.get(name))}, not {_describe(known_fields.get(name))}"
    for name in sorted({*given_fields, *known_fields})
    if given_fields.get(name) != known_fields.get(name)
  ]
  config.check(not differing, f"the steps differ from {whose}: {'; '.join(differing)}")


def _check_version(path: pathlib.Path, version: str) -> None:
  config.check(
    version == VERSION, f"{path} has format version {version}; this podracer reads {VERSION}"
  )


def _describe(field: schema_lib.Field | None) -> str:
  return "absent" if field is None else f"{field.dtype}{list(field.shape)}"


def read_json(path: pathlib.Path) -> Any:
  """Returns what a JSON file holds, {} where there is none; raises InputError where it is not JSON."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise config.InputError(f"{path} is not JSON: {error}") from error


def write_json(
  path: pathlib.Path, value: Any, *, indent: int | None = 2, replace: bool = True
) -> None:
  """Writes plain values, see `write_bytes`; the same value gives the same bytes."""
  text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)
  write_bytes(path, f"{text}\n".encode(), replace=replace)


def write_bytes(path: pathlib.Path, data: bytes, *, replace: bool = True) -> None:
  """Writes a file at once and durably: it is there as a whole or not at all.

  Args:
    path: of the file; its folder is made.
    data: what it shall hold.
    replace: False keeps the file that is there.
  """
  files.write(path, data, replace=replace)
