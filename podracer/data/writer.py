"""Writes episodes into shards: what is committed survives a kill, the rest was never there."""

import contextlib
from collections.abc import Iterator

from podracer import config, files, report

from . import episode as episode_lib
from . import example, layout, shards, worker
from . import schema as schema_lib

_at_work: set[str] = set()  # The locks of this process, which don't hold against itself.


class WriteError(report.RunError, OSError):
  """The disk did not take a shard; what was committed before is whole and stays."""


class Writer:
  """Writes the episodes of one task, called by one thread.

  A writer owns the files that begin with its id, and no others. Once an episode is lost it writes no
  more, so that what is committed is the beginning of what was written: every later call raises the
  exception of the first.
  """

  def __init__(
    self,
    root: layout.Path,
    task: str,
    schema: schema_lib.Schema,
    *,
    writer_id: str = "w000",
    shard_bytes: int = 64 << 20,
    shard_seconds: float = 300.0,
    background: bool = False,
  ):
    """Goes on where a writer of the same id left off.

    Args:
      root: folder of the collection.
      task: see `schema.task_id`.
      schema: of the steps; a task has one.
      writer_id: `w` and at least three digits; every process of a recording has its own.
      shard_bytes: size on the disk from which a shard is committed, known to some 16 MB.
      shard_seconds: age from which a shard is committed, when an episode is written.
      background: whether a thread encodes and writes, whose exception the next call raises. Compressing
        holds Python's lock all the same; what is saved is the wait for the disk.

    Raises:
      InputError: the task has other steps, a shard is not as it was committed, `root` is a part of a
        collection, or a writer of this id is at work.
    """
    shards.array_record()
    layout.check_outside(root)
    layout.check_task(task)
    layout.check_writer_id(writer_id)
    config.check_positive(shard_bytes=shard_bytes, shard_seconds=shard_seconds)
    example.check_schema(schema)
    self._encoder = example.Encoder(schema)
    self._writer_id = writer_id
    self._shard_bytes = shard_bytes
    self._shard_seconds = shard_seconds
    self._folder = layout.task_dir(root, task) / layout.SHARDS
    self._shard: shards.Shard | None = None
    self._error: BaseException | None = None
    self._is_closed = False
    with contextlib.ExitStack() as stack:
      self._acquire(stack)
      layout.write_schema(self._folder.parent, schema)
      self._remove_stale()
      manifests = layout.read_manifests(self._folder.parent)
      for manifest in manifests:  # Not after hours of play.
        layout.check_shard(self._folder / manifest.shard, manifest, hashed=False)
      self._lock = stack.pop_all()
    self._ids = {row["episode_id"] for manifest in manifests for row in manifest.episodes}
    names = [layout.parse_shard(manifest.shard) for manifest in manifests]
    self._number = 1 + max((n.number for n in names if n and n.writer_id == writer_id), default=-1)
    self._worker = worker.Worker(self._write_later, f"writer-{task}") if background else None

  def __contains__(self, episode_id: str) -> bool:
    """Whether the episode was committed before this writer began, or written by it."""
    return episode_id in self._ids

  def write(self, episode: episode_lib.Episode) -> bool:
    """Writes an episode; returns False, having written nothing, where its id is there already.

    Args:
      episode: a whole one, whose arrays must not change afterwards. `writer_id`, `format_version` and
        what is said of segments are set here.

    Raises:
      InputError: the episode is not of the schema.
      WriteError: the disk did not take the shard.
    """
    assert not self._is_closed
    self._raise_error()
    episode_id = episode.metadata.get("episode_id", "")
    if episode_id in self._ids:
      return False
    self._ids.add(episode_id)
    if self._worker is None:
      self._write(episode)
    else:
      self._worker.put(episode)
    return True

  def commit(self) -> None:
    """Makes everything that was written last."""
    if self._worker is not None:
      self._worker.drain()
    # After an exception, what came before it.
    self._commit()
    self._raise_error()

  def close(self) -> None:
    """Commits, and lets go of the id."""
    if self._is_closed:
      return
    try:
      self.commit()
    finally:
      self._is_closed = True
      if self._worker is not None:
        self._worker.stop()
      self._lock.close()

  def _raise_error(self) -> None:
    if self._error is not None:
      raise self._error

  def _write_later(self, episode: episode_lib.Episode) -> None:
    """Writes an episode in the thread."""
    if self._error is not None:
      self._ids.discard(episode.metadata.get("episode_id", ""))
      return
    try:
      self._write(episode)
    except BaseException as error:
      self._error = error

  def _write(self, episode: episode_lib.Episode) -> None:
    try:
      own = {"writer_id": self._writer_id, "format_version": layout.VERSION}
      metadata = example.plain_metadata({**episode.metadata, **own})
      episode = episode._replace(metadata=metadata)
      self._encoder.check(episode)
    except BaseException:
      self._ids.discard(episode.metadata.get("episode_id", ""))
      raise
    with self._whole_shards():
      if self._shard is None:
        name = layout.ShardName(self._writer_id, self._number)
        self._number += 1
        self._shard = shards.Shard(self._folder / str(name))
      segments = list(episode_lib.split(episode))
      # One at a time: the records of a long episode are as large as the episode.
      self._shard.write(segments[0].metadata, map(self._encoder.encode, segments))
      is_due = self._shard.is_due(self._shard_bytes, self._shard_seconds)
    if is_due:
      self._commit()

  def _commit(self) -> None:
    with self._whole_shards():
      if self._shard is not None:
        self._shard.commit()
        self._shard = None

  @contextlib.contextmanager
  def _whole_shards(self) -> Iterator[None]:
    """Removes the open shard on an exception: it may hold a part of an episode."""
    try:
      yield
    except BaseException as error:
      shard, self._shard = self._shard, None
      self._error = error
      if shard is not None and not shard.is_committed:
        self._ids.difference_update(shard.episode_ids)
        shard.discard()
        if isinstance(error, (OSError, RuntimeError)):
          self._error = WriteError(
            f"could not write {shard.path}: {error}; its {len(shard.episode_ids)} episodes are lost, "
            "what was committed before is not"
          )
          raise self._error from error
      raise

  def _acquire(self, stack: contextlib.ExitStack) -> None:
    """Takes the lock of this writer's id, which `stack` lets go of."""
    self._folder.mkdir(parents=True, exist_ok=True)
    path = self._folder.resolve() / f"{self._writer_id}.lock"
    try:
      if str(path) in _at_work:
        raise BlockingIOError
      stack.enter_context(files.lock(path))
    except BlockingIOError as error:
      raise config.InputError(
        f"writer_id {self._writer_id} is at work in {self._folder}; every process needs its own"
      ) from error
    _at_work.add(str(path))
    stack.callback(_at_work.discard, str(path))

  def _remove_stale(self) -> None:
    """Removes what this writer's id had begun and not committed."""
    for path in self._folder.glob(f"{self._writer_id}-*"):
      is_shard = layout.parse_shard(path.name) is not None
      if files.is_tmp(path) or (is_shard and not layout.manifest_path(path).exists()):
        path.unlink()
