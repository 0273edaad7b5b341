"""TFRecord files without TensorFlow: each record between checksums, masked CRC-32C.

The format is that of tensorflow/core/lib/io/record_writer.h: length, CRC of the length, data, CRC of
the data, all little-endian.
"""

import pathlib
import struct
from collections.abc import Iterator

import google_crc32c

from podracer import config

_MASK_DELTA = 0xA282EAD8
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
  """Returns the CRC-32C of `data`, rotated and shifted: the CRC of a text that holds CRCs is weak."""
  crc = google_crc32c.value(data)
  return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
  """Returns a record as it stands in a file."""
  length = struct.pack("<Q", len(record))
  return b"".join(
    [length, _FOOTER.pack(masked_crc(length)), record, _FOOTER.pack(masked_crc(record))]
  )


def read(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a file; raises InputError where a checksum is wrong or data is missing."""
  with path.open("rb") as file:
    while header := file.read(_HEADER.size):
      config.check(len(header) == _HEADER.size, f"{path} ends within a record")
      length, length_crc = _HEADER.unpack(header)
      config.check(length_crc == masked_crc(header[:8]), f"{path} is damaged: a length is wrong")
      record, footer = file.read(length), file.read(_FOOTER.size)
      config.check(len(footer) == _FOOTER.size, f"{path} ends within a record")
      config.check(
        _FOOTER.unpack(footer)[0] == masked_crc(record), f"{path} is damaged: a checksum is wrong"
      )
      yield record
