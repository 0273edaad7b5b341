"""What both HDF5 formats share: arrays in compressed chunks."""

import h5py
import numpy as np

# What HDF5 keeps of an array in memory, so that rows that come bit by bit are compressed once.
CHUNK_BYTES = 1 << 20
# An array below this is kept whole, for the index of its chunks would be larger.
SMALL_BYTES = 1 << 12


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
