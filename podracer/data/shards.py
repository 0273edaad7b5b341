"""One shard: a file of records that is there, counted, once its manifest is.

It is written under a temporary name, closed, opened again and counted (a torn ArrayRecord opens without
an error and says that it has no records), synced and renamed. Its manifest, which appears by a rename
too, is the commit.
"""

import contextlib
import ctypes
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from podracer import config, files

from . import layout

# Each record can be read by itself; the fastest level finds nearly all there is to find in frames.
OPTIONS = "group_size:1,zstd:1"
# What array_record holds back before it writes to the file.
_BUFFER_BYTES = 16 << 20
_STAT_BYTES = 1 << 20
# Their metadata waits in memory for the manifest: some 2 kB each.
MAX_EPISODES = 4_000


def array_record() -> Any:
  """Returns the module that reads and writes ArrayRecord files."""
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise config.InputError(
      "expert data needs array-record, of Linux and macOS: pip install 'podracer-rl[data]'"
    ) from error
  return array_record_module


def num_records(path: pathlib.Path) -> int:
  """Returns the number of records of a file; 0 where it is torn."""
  try:
    reader = array_record().ArrayRecordReader(str(path), "readahead_buffer_size:0")
    count = reader.num_records() if reader.ok() else 0
    reader.close()
  except RuntimeError:
    return 0
  return count


class Shard:
  """A shard that is being written."""

  def __init__(self, path: pathlib.Path):
    """Opens the file; what is wrong with the disk shows later."""
    self.path = path
    self._tmp = files.tmp_path(path)
    self._began = time.monotonic()
    self._num_records = 0
    self._num_bytes = 0  # Of the records, before they are compressed.
    self._stat_at = 0
    self._rows: list[dict[str, Any]] = []
    self._file = array_record().ArrayRecordWriter(str(self._tmp), OPTIONS)

  @property
  def episode_ids(self) -> list[str]:
    """The ids of its episodes."""
    return [row["episode_id"] for row in self._rows]

  @property
  def is_committed(self) -> bool:
    """True once the shard counts."""
    return layout.manifest_path(self.path).exists()

  def write(self, metadata: dict[str, Any], records: Iterable[bytes]) -> None:
    """Adds the segments of one episode; after an exception the shard is of no use."""
    self._rows.append({**metadata, "shard": self.path.name, "record": self._num_records})
    for record in records:
      self._file.write(record)
      self._num_records += 1
      self._num_bytes += len(record)

  def is_due(self, num_bytes: int, seconds: float) -> bool:
    """Returns whether the shard is large or old enough to be committed."""
    if time.monotonic() - self._began >= seconds or len(self._rows) >= MAX_EPISODES:
      return True
    if self._num_bytes < self._stat_at:
      return False
    self._stat_at = self._num_bytes + min(_STAT_BYTES, num_bytes // 16)
    return self._tmp.stat().st_size + min(self._num_bytes, _BUFFER_BYTES) >= num_bytes

  def commit(self) -> None:
    """Makes the shard count; raises OSError or RuntimeError where the disk doesn't take it."""
    self._file.close()
    count = num_records(self._tmp)
    if count != self._num_records:
      raise OSError(f"the file holds {count} records of {self._num_records}")
    manifest = layout.Manifest(
      format_version=layout.VERSION,
      shard=self.path.name,
      num_records=count,
      num_bytes=self._tmp.stat().st_size,
      sha256=files.sha256(self._tmp),
      episodes=tuple(self._rows),
    )
    files.sync(self._tmp)
    os.replace(self._tmp, self.path)
    files.sync(self.path.parent)
    layout.write_manifest(self.path.parent, manifest)
    _return_memory()

  def discard(self) -> None:
    """Removes the file of a shard that won't be committed."""
    with contextlib.suppress(RuntimeError):
      self._file.close()
    self._tmp.unlink(missing_ok=True)
    self.path.unlink(missing_ok=True)


def _return_memory() -> None:
  """Gives freed memory back to the system.

  The metadata that waited lay between the arrays of short episodes, and glibc keeps what is freed around it.
  """
  with contextlib.suppress(AttributeError, OSError):  # Others than glibc.
    ctypes.CDLL(None).malloc_trim(0)
