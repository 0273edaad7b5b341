"""Reading of records at random: open shards, kept by process, and the segments in them."""

import collections
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from podracer import config

from . import layout, shards

MAX_OPEN = 64
"""Shards a process keeps open."""
# Nothing is read ahead of what is asked for, and no threads are started, which a fork would lose.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Readers:
  """The shards that one process has open; the one not used for longest is closed for a new one."""

  def __init__(self, max_open: int = MAX_OPEN):
    self._max_open = max_open
    self._clear()

  def _clear(self) -> None:
    self._lock = threading.Lock()
    self._open: collections.OrderedDict[pathlib.Path, Any] = collections.OrderedDict()
    # Last, for another thread goes by it.
    self._pid = os.getpid()

  def read(self, shard: pathlib.Path, records: Sequence[int]) -> list[bytes]:
    """Returns records of a shard; threads may call it at once.

    Raises:
      InputError: the shard is missing, or does not hold what its manifest says.
    """
    reader = self._reader(shard)
    try:
      return list(reader.read(list(records)))
    except RuntimeError as error:
      raise config.InputError(
        f"{shard} is damaged: {str(error).splitlines()[0]}; see `podracer data verify`"
      ) from error

  def _reader(self, shard: pathlib.Path) -> Any:
    if self._pid != os.getpid():
      # A forked worker: the lock may be held for ever, and the files are those of the parent.
      self._clear()
    with self._lock:
      reader = self._open.pop(shard, None)
      if reader is None:
        reader = open_shard(shard)
        if len(self._open) >= self._max_open:
          # It closes with its last reference, which another thread that reads may have.
          self._open.popitem(last=False)
      self._open[shard] = reader
    return reader


def open_shard(shard: pathlib.Path) -> Any:
  """Opens a shard whose number of records is that of its manifest.

  A torn ArrayRecord opens without error, and says that it has none.
  """
  module = shards.array_record()
  config.check(shard.is_file(), f"{shard} is missing; `podracer data verify` lists what is wrong")
  expected = layout.read_manifest(layout.manifest_path(shard)).num_records
  reader = module.ArrayRecordReader(os.fspath(shard), _OPTIONS)
  found = reader.num_records() if reader.ok() else 0
  config.check(
    found == expected,
    f"{shard} is damaged: it has {found} records of {expected}; see `podracer data verify`",
  )
  return reader


READERS = Readers()
"""Those of this process."""
