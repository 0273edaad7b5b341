"""Makes one collection of what writers committed, says what is wrong with it, and joins several."""

import collections
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from podracer import config, files

from . import example, features, layout, reader, shards
from . import schema as schema_lib

_NUM_NAMED = 5  # In the message of an error.

Kind = Literal["torn", "orphaned", "duplicated", "altered", "missing", "unfinished"]


class Problem(NamedTuple):
  """Something wrong with a collection.

  Attributes:
    kind: `torn` has lost its end; `orphaned` was never committed, and does not count; `duplicated` is an
      episode that is there more than once; `altered` is not as it was written; `missing` was committed;
      `unfinished` are episodes that wait for `finalise`.
    path: of the file.
    text: one line for people.
  """

  kind: Kind
  path: pathlib.Path
  text: str


def finalise(root: layout.Path) -> None:
  """Writes what TFDS and `dataset.open` read, of all tasks and all that is committed so far.

  Any process may, and again; without new episodes the files stay the same to the byte.

  Raises:
    InputError: a shard is missing or not as it was committed, or an episode is there twice.
  """
  layout.check_root(root)
  tasks = []
  for task in layout.tasks(root):
    folder = layout.task_dir(root, task)
    if layout.manifest_paths(folder):
      tasks.append(task)
    else:
      config.check(
        not (folder / layout.EPISODES).exists(),
        f"{task} in {root} has lost its shards; `podracer data verify` lists what is wrong",
      )
  config.check(bool(tasks), f"{root} holds no committed episode yet")
  described = {}
  for task in tasks:
    folder = layout.task_dir(root, task)
    with files.lock(folder / layout.SHARDS / "finalise.lock", wait=True):
      described[task] = _describe(_finalise_task(folder, task))
  collection = {"format_version": layout.VERSION, "tasks": described}
  layout.write_json(pathlib.Path(root) / layout.COLLECTION, collection)


def _describe(manifests: Sequence[layout.Manifest]) -> dict[str, Any]:
  """Returns what collection.json tells of a task, for whoever lists collections without opening them."""
  episodes = [row for manifest in manifests for row in manifest.episodes]
  return {
    "episodes": len(episodes),
    "steps": sum(row["episode_length"] for row in episodes),
    "shards": len(manifests),
    "bytes": sum(manifest.num_bytes for manifest in manifests),
    "env_ids": sorted({row["env_id"] for row in episodes}),
    "teachers": sorted({row["teacher_id"] for row in episodes}),
  }


def _finalise_task(folder: pathlib.Path, task: str) -> list[layout.Manifest]:
  """Finalises a task and returns the manifests of which it now consists."""
  manifests = layout.read_manifests(folder)
  schema = layout.read_schema(folder)
  _check_ids((manifest.shard, manifest) for manifest in manifests)
  for manifest in manifests:
    layout.check_shard(folder / layout.SHARDS / manifest.shard, manifest, hashed=True)
  names = [layout.link_name(task, i, len(manifests)) for i in range(len(manifests))]
  for name, manifest in zip(names, manifests, strict=True):
    files.link(folder / layout.SHARDS / manifest.shard, folder / name)
  layout.write_bytes(folder / layout.EPISODES, features.index_parquet(manifests))
  layout.write_json(folder / layout.FEATURES, features.features_json(schema))
  layout.write_json(folder / layout.DATASET_INFO, features.dataset_info_json(task, manifests))
  # The links of an earlier time, to which its dataset_info.json led; and what a kill left.
  for path in folder.iterdir():
    if path.name not in names and (_is_link(path, task) or files.is_tmp(path)):
      path.unlink()
  return manifests


def _is_link(path: pathlib.Path, task: str) -> bool:
  """Returns whether a file of a task's folder is one under which TFDS looks for shards."""
  return path.name.startswith(f"{task}-train{layout.SUFFIX}-") and not files.is_tmp(path)


def _duplicates(placed: Iterable[tuple[str, layout.Manifest]]) -> dict[str, list[str]]:
  """Returns the places of every episode that is there more than once."""
  places = collections.defaultdict(list)
  for place, manifest in placed:
    for row in manifest.episodes:
      places[row["episode_id"]].append(place)
  return {episode_id: found for episode_id, found in places.items() if len(found) > 1}


def _check_ids(placed: Iterable[tuple[str, layout.Manifest]]) -> None:
  """Raises InputError naming the episodes that are there more than once."""
  twice = _duplicates(placed)
  named = [f"{name} in {' and '.join(found)}" for name, found in list(twice.items())[:_NUM_NAMED]]
  config.check(
    not twice,
    f"{len(twice)} episodes are there more than once: {'; '.join(named)}"
    + ("; ..." if len(twice) > _NUM_NAMED else ""),
  )


def verify(root: layout.Path) -> list[Problem]:
  """Returns what is wrong with a collection; reads every shard, and repairs nothing."""
  layout.check_root(root)
  path = pathlib.Path(root)
  found = [*_verify_json(path / layout.SCORES), *_verify_json(path / layout.COLLECTION)]
  for folder in sorted(path.glob(f"*/{layout.VERSION}")):
    found += _verify_task(folder, folder.parent.name)
  return found


def _verify_json(path: pathlib.Path) -> Iterator[Problem]:
  try:
    layout.read_json(path)
  except config.InputError as error:
    yield Problem("altered", path, str(error))


def _verify_task(folder: pathlib.Path, task: str) -> Iterator[Problem]:
  manifests, bad = [], []
  for path in layout.manifest_paths(folder):
    try:
      manifests.append(layout.read_manifest(path))
    except config.InputError as error:
      bad.append(Problem("altered", path, str(error)))
  yield from bad
  for path in sorted((*folder.iterdir(), *folder.glob(f"{layout.SHARDS}/*"))):
    is_shard = layout.parse_shard(path.name) is not None
    if files.is_tmp(path):
      yield Problem("orphaned", path, f"{path} was left by a kill, or is being written")
    elif is_shard and not layout.manifest_path(path).exists():
      yield Problem("orphaned", path, f"{path} was never committed")
  whole = []
  for manifest in manifests:
    path = folder / layout.SHARDS / manifest.shard
    problems = list(_verify_shard(path, manifest))
    yield from problems
    if not problems:
      whole.append(path)
  for episode_id, names in _duplicates((m.shard, m) for m in manifests).items():
    path = folder / layout.SHARDS / names[-1]
    yield Problem("duplicated", path, f"episode {episode_id} is in {' and '.join(names)}")
  try:
    schema = layout.read_schema(folder)
  except config.InputError as error:
    exists = (folder / layout.SCHEMA).exists()
    yield Problem("altered" if exists else "missing", folder / layout.SCHEMA, str(error))
    return
  yield from _verify_schema(folder / layout.SCHEMA, schema, whole)
  if not bad:
    yield from _verify_finalised(folder, task, schema, manifests)


def _verify_shard(path: pathlib.Path, manifest: layout.Manifest) -> Iterator[Problem]:
  if not path.is_file():
    yield Problem("missing", path, f"{path} was committed")
  elif path.stat().st_size < manifest.num_bytes:
    size = f"{path.stat().st_size:,} bytes of {manifest.num_bytes:,}"
    yield Problem("torn", path, f"{path} has {size}, and {shards.num_records(path)} whole records")
  elif files.sha256(path) != manifest.sha256:
    yield Problem("altered", path, f"{path} has another hash than when it was committed")


def _verify_finalised(
  folder: pathlib.Path,
  task: str,
  schema: schema_lib.Schema,
  manifests: Sequence[layout.Manifest],
) -> Iterator[Problem]:
  known = {manifest.shard for manifest in manifests}
  for name in sorted(features.indexed_shards(folder / layout.EPISODES) - known):
    path = layout.manifest_path(folder / layout.SHARDS / name)
    yield Problem("missing", path, f"{path} was committed")
  info = folder / layout.DATASET_INFO
  if not info.exists() or not _holds(info, features.dataset_info_json(task, manifests)):
    yield Problem("unfinished", info, f"{info} is not of the shards there are; finalise makes it")
    return
  for i, manifest in enumerate(manifests):
    path = folder / layout.link_name(task, i, len(manifests))
    original = folder / layout.SHARDS / manifest.shard
    if not (path.exists() and original.exists() and path.samefile(original)):
      yield from _verify_shard(path, manifest)
  expected = {
    layout.FEATURES: _holds(folder / layout.FEATURES, features.features_json(schema)),
    layout.EPISODES: features.is_index_of(folder / layout.EPISODES, manifests),
  }
  for name, is_right in expected.items():
    path = folder / name
    if not path.exists():
      yield Problem("missing", path, f"{path} was written by finalise")
    elif not is_right:
      yield Problem("altered", path, f"{path} is not as finalise wrote it")


def _verify_schema(
  path: pathlib.Path, schema: schema_lib.Schema, whole: Iterable[pathlib.Path]
) -> Iterator[Problem]:
  """Reads the first record of each shard that is as it was committed: it must be of the schema."""
  for shard in whole:
    try:
      example.decode(reader.open_shard(shard).read([0])[0], schema)
    except config.InputError as error:
      yield Problem("altered", path, f"{path} is not that of {shard}: {error}")


def _holds(path: pathlib.Path, value: Any) -> bool:
  """Returns whether a JSON file holds a value."""
  try:
    return bool(layout.read_json(path) == value)
  except config.InputError:
    return False


def merge(roots: Sequence[layout.Path], out: layout.Path) -> None:
  """Makes one collection of several; their shards are linked, and not copied.

  Writers are numbered anew, so that their shards' names differ; what an episode says of its writer
  stays. Of two scores of one player, that of the first collection is taken.

  Raises:
    InputError: `out` is not empty, a task's steps differ, or an episode is there twice.
  """
  config.check(bool(roots), "merge needs at least one collection")
  sources, target = [pathlib.Path(root) for root in roots], pathlib.Path(out)
  config.check(
    not target.exists() or (target.is_dir() and not any(target.iterdir())),
    f"{target} is there already; a merged collection needs a new folder",
  )
  layout.check_outside(target)
  for source in sources:
    layout.check_root(source)
    for task in layout.tasks(source):
      is_committed = bool(layout.manifest_paths(layout.task_dir(source, task)))
      config.check(is_committed, f"{task} in {source} holds no committed episode")
  target.parent.mkdir(parents=True, exist_ok=True)
  tmp = files.tmp_path(target)
  try:
    for task in sorted({task for source in sources for task in layout.tasks(source)}):
      _merge_task([source for source in sources if task in layout.tasks(source)], tmp, task)
    finalise(tmp)
    _merge_scores(sources, tmp)
    os.replace(tmp, target)
  except BaseException:
    shutil.rmtree(tmp, ignore_errors=True)
    raise


def _merge_task(sources: Sequence[pathlib.Path], out: pathlib.Path, task: str) -> None:
  folder = layout.task_dir(out, task) / layout.SHARDS
  schema = layout.read_schema(layout.task_dir(sources[0], task))
  writers: dict[tuple[pathlib.Path, str], str] = {}
  renamed = []
  for source in sources:
    found = layout.task_dir(source, task)
    layout.check_schema(layout.read_schema(found), schema, f"those of {sources[0]}, task {task}")
    for manifest in layout.read_manifests(found):
      name = layout.parse_shard(manifest.shard)
      assert name is not None  # It is that of the manifest's file.
      writer_id = writers.setdefault((source, name.writer_id), f"w{len(writers):03d}")
      shard = str(layout.ShardName(writer_id, name.number))
      rows = tuple({**row, "shard": shard} for row in manifest.episodes)
      renamed.append((found / layout.SHARDS / manifest.shard, manifest, shard, rows))
  _check_ids((str(path), manifest) for path, manifest, _, _ in renamed)
  folder.mkdir(parents=True)
  layout.write_schema(folder.parent, schema)
  for path, manifest, shard, rows in renamed:
    layout.check_shard(path, manifest, hashed=True)
    files.link(path, folder / shard)
    layout.write_manifest(folder, manifest._replace(shard=shard, episodes=rows))


def _merge_scores(sources: Sequence[pathlib.Path], out: pathlib.Path) -> None:
  scores: dict[str, dict[str, Any]] = {}
  for source in reversed(sources):
    for task, players in layout.read_json(source / layout.SCORES).items():
      scores[task] = {**scores.get(task, {}), **players}
  if scores:
    layout.write_json(out / layout.SCORES, scores)
