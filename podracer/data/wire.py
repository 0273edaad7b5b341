"""`tf.train.Example` on the wire: written from arrays here, read by protobuf.

https://protobuf.dev/programming-guides/encoding. A message is made of fields, each a tag, a length and as
many bytes; the features of an Example are entries of a map, `key -> list`. They are written here since
protobuf is given each number and string as an object of Python, and makes all entries anew for each record.
The messages that read are built from their descriptors, without TensorFlow, and in a pool of their own, so
that they don't clash with TensorFlow's.
"""

import contextlib
import functools
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from podracer import config

# The lists that a feature may be, by their numbers in the message `Feature`.
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3

Data: TypeAlias = bytes | np.ndarray
"""Bytes, or the same as `[size]` uint8."""


def example(parts: Sequence[Data]) -> bytes:
  """Returns an Example of entries, whose parts are headers, or whole entries, and data in turn."""
  buffers: list[Any] = [_open(1, sum(map(len, parts))), *parts]
  return b"".join(buffers)


def entry(key: str, kind: int, data: bytes) -> bytes:
  """Returns the entry of a feature; `data` is as in `header`."""
  return header(key, kind, len(data)) + data


@functools.lru_cache(maxsize=8192)
def header(key: str, kind: int, size: int) -> bytes:
  """Returns what stands in an entry before its data.

  Args:
    key: of the feature.
    kind: of its list.
    size: bytes of the data: what `strings` returns of a list of bytes, `floats` or `varints` of numbers.
  """
  head = b""
  # From the inside: numbers are packed, one field of their list; around it are the list and the feature.
  for number in (kind, 2) if kind == BYTES_LIST else (1, kind, 2):
    head = _open(number, len(head) + size) + head
  name = key.encode()
  head = _open(1, len(name)) + name + head
  return _open(1, len(head) + size) + head


def varint(value: int) -> bytes:
  """Returns a whole number of at most 64 bits: seven at a time, the lowest first."""
  value &= 2**64 - 1
  data = bytearray()
  while value > 127:
    data.append(value & 127 | 128)
    value >>= 7
  data.append(value)
  return bytes(data)


def varints(values: np.ndarray) -> Data:
  """Returns whole numbers of any shape and dtype, one after another."""
  if values.dtype == bool:
    return values.ravel().view(np.uint8)
  with contextlib.suppress(ValueError):  # Most are small, and then themselves.
    data = bytes(values.ravel().tolist())
    if data.isascii():
      return data
  left = values.astype(np.int64).ravel().view(np.uint64)
  groups = left[:, None] >> np.arange(0, 64, 7, dtype=np.uint64)
  is_used = groups > 0
  is_used[:, 0] = True
  more = np.pad(is_used[:, 1:], ((0, 0), (0, 1)))
  return (groups & np.uint64(127) | np.uint64(128) * more)[is_used].astype(np.uint8)


def floats(values: np.ndarray) -> np.ndarray:
  """Returns numbers of any shape and dtype as float32."""
  return np.ascontiguousarray(values, "<f4").ravel().view(np.uint8)


def arrays(values: np.ndarray) -> np.ndarray:
  """Returns the bytes of N arrays `[N, *shape]`, as `strings` does."""
  values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
  size = values.nbytes // len(values)
  head = _string_head(size)
  data = np.empty((len(values), len(head) + size), np.uint8)
  data[:, : len(head)] = head
  data[:, len(head) :] = values.view(np.uint8).reshape(len(values), size)
  return data.ravel()


def strings(values: Iterable[bytes]) -> bytes:
  """Returns strings, each behind its length."""
  return b"".join(_open(1, len(value)) + value for value in values)


@functools.cache
def message_class() -> Any:
  """Returns the class of messages `tf.train.Example`."""
  try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
  except ImportError as error:
    raise config.InputError(
      "expert data needs protobuf: pip install 'podracer-rl[data]'"
    ) from error
  proto = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name="podracer/data/example.proto", package="podracer", syntax="proto3"
  )

  def add_field(
    message: Any, number: int, name: str, kind: Any, of: str = "", **options: Any
  ) -> None:
    options.setdefault("label", proto.LABEL_OPTIONAL)
    type_name = f".podracer.{of}" if of else None
    message.field.add(name=name, number=number, type=kind, type_name=type_name, **options)

  lists = (
    ("bytes_list", "BytesList", proto.TYPE_BYTES),
    ("float_list", "FloatList", proto.TYPE_FLOAT),
    ("int64_list", "Int64List", proto.TYPE_INT64),
  )
  feature = file.message_type.add(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, (name, of, kind) in enumerate(lists, 1):
    values = file.message_type.add(name=of)
    add_field(values, 1, "value", kind, label=proto.LABEL_REPEATED)
    add_field(feature, number, name, proto.TYPE_MESSAGE, of, oneof_index=0)
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  add_field(entry, 1, "key", proto.TYPE_STRING)
  add_field(entry, 2, "value", proto.TYPE_MESSAGE, "Feature")
  of = "Features.FeatureEntry"
  add_field(features, 1, "feature", proto.TYPE_MESSAGE, of, label=proto.LABEL_REPEATED)
  add_field(file.message_type.add(name="Example"), 1, "features", proto.TYPE_MESSAGE, "Features")
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("podracer.Example"))


def _open(number: int, size: int) -> bytes:
  """Returns the tag of a field of bytes, and how many follow."""
  return varint(number << 3 | 2) + varint(size)


@functools.lru_cache
def _string_head(size: int) -> np.ndarray:
  return np.frombuffer(_open(1, size), np.uint8)
