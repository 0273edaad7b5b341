"""What both HDF5 formats share: a file that a full disk does not crash, and arrays in compressed chunks."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

# What HDF5 keeps of an array in memory, so that rows that come bit by bit are compressed once.
CHUNK_BYTES = 1 << 20
# An array below this is kept whole, for the index of its chunks would be larger.
SMALL_BYTES = 1 << 12


@contextlib.contextmanager
def create(path: str | os.PathLike[str]) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
  """Makes a file, and closes it; gives it and what raises the error of the disk, if there was one.

  Raises:
    OSError: of the disk, where HDF5 by itself ends the process: it writes again what could not be written as
      it cleans up.
  """
  with _Sink(path, "w+") as sink:
    try:
      with h5py.File(sink, "w") as file:
        yield file, sink.check
    except Exception as error:
      # HDF5 may stumble over what is not there.
      raise (sink.error or error) from None
    sink.check()


class _Sink(io.FileIO):
  """A file that never fails: after an error it takes whatever is written to nowhere.

  Attributes:
    error: the first.
  """

  error: OSError | None = None

  def check(self) -> None:
    if self.error is not None:
      raise self.error

  def write(self, data: Any) -> int:
    view = memoryview(data).cast("B")
    done = 0
    with self._noting():
      while done < len(view) and self.error is None:
        done += super().write(view[done:])
    return len(view)

  def truncate(self, size: int | None = None) -> int:
    with self._noting():
      if self.error is None:
        super().truncate(size)
    return self.tell() if size is None else size

  @contextlib.contextmanager
  def _noting(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self.error = error


def write_array(group: h5py.Group, name: str, value: np.ndarray) -> None:
  """Writes an array `[T, ...]`; `name` may lead through groups, which are made."""
  if value.nbytes < SMALL_BYTES:
    group.create_dataset(name, data=value)
  else:
    chunks = chunk_shape(value.shape, value.itemsize)
    group.create_dataset(name, data=value, chunks=chunks, compression="gzip", compression_opts=1)


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
  """Returns a chunk of at most CHUNK_BYTES, or one row, whole along all axes but the first."""
  row_bytes = max(1, itemsize * int(np.prod(shape[1:])))
  rows = max(1, min(shape[0], CHUNK_BYTES // row_bytes))
  return (rows, *(max(1, size) for size in shape[1:]))
