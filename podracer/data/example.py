"""A segment as the bytes of a `tf.train.Example`, laid out as TFDS stores an RLDS episode.

Keys are `steps/<field>` and the names of the metadata. Arrays, and scalars that neither an int64 nor a
float32 holds, are one string of raw little-endian bytes a step; other scalars are one number a step.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Set
from typing import Any

import numpy as np

from podracer import config

from . import episode as episode_lib
from . import schema as schema_lib
from . import wire

STEPS = "steps"
# How a field is stored: a step is a string of bytes, or the file of a picture, or one or more numbers.
RAW = "raw"
PNG = "png"
NUMBERS = "numbers"
# dtypes that TFDS reads back as they were.
DTYPES = (
  *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
  *("float16", "float32", "float64"),
)

_METADATA = tuple(episode_lib.METADATA.items())
_FLOATS = tuple(name for name, kind in _METADATA if kind is float)
_OTHERS = tuple(name for name, kind in _METADATA if kind is not float)

Encoding = Callable[[schema_lib.Field], str]


def default_encoding(field: schema_lib.Field) -> str:
  """Returns how a field of a recorded segment is stored; an exporter may have another way."""
  return RAW if field.shape or field.dtype in ("float64", "uint64") else NUMBERS


class Encoder:
  """Makes records of the segments of one task; equal segments have equal records."""

  def __init__(self, schema: schema_lib.Schema, encoding: Encoding = default_encoding):
    """Prepares what all records share.

    Args:
      schema: of the task.
      encoding: of each field.
    """
    self._names = frozenset(schema.names())
    self._kinds = [(field.name, field.shape, np.dtype(field.dtype)) for field in schema.fields]
    self._features = [
      (field.name, f"{STEPS}/{field.name}", *_make_list(np.dtype(field.dtype), encoding(field)))
      for field in sorted(schema.fields)
    ]

  def check(self, episode: episode_lib.Episode) -> None:
    """Raises InputError where a field or a piece of metadata is missing, unknown, or of another kind."""
    _check_names("fields", episode.steps, self._names)
    _check_names("metadata", episode.metadata, episode_lib.METADATA.keys())
    num_steps = episode.num_steps
    config.check(num_steps > 0, "an episode has at least one step")
    for name, shape, dtype in self._kinds:
      value = episode.steps[name]
      # Not by `check`: its message costs more than the comparison.
      if value.shape != (num_steps, *shape) or value.dtype != dtype:
        raise config.InputError(
          f"{name} must be {dtype}{[num_steps, *shape]}, got {value.dtype}{list(value.shape)}"
        )

  def encode(self, episode: episode_lib.Episode) -> bytes:
    """Returns the record of a segment of an episode that was checked."""
    steps, metadata = episode
    parts: list[wire.Data] = [*map(_encode_metadata, _OTHERS, map(metadata.__getitem__, _OTHERS))]
    # Not with the others: zeros of both signs are equal.
    parts += [
      wire.entry(name, wire.FLOAT_LIST, np.array(metadata[name], "<f4").tobytes())
      for name in _FLOATS
    ]
    for name, key, kind, to_data in self._features:
      data = to_data(steps[name])
      parts += (wire.header(key, kind, len(data)), data)
    return wire.example(parts)


def encode(
  episode: episode_lib.Episode, schema: schema_lib.Schema, encoding: Encoding = default_encoding
) -> bytes:
  """Checks and encodes one segment; see `Encoder`."""
  encoder = Encoder(schema, encoding)
  encoder.check(episode)
  return encoder.encode(episode)


def decode(
  record: bytes,
  schema: schema_lib.Schema,
  names: Collection[str] | None = None,
  encoding: Encoding = default_encoding,
) -> episode_lib.Episode:
  """Returns the segment of a record; its arrays are read-only.

  Args:
    record: what `encode` returned.
    schema: of the task.
    names: fields to decode, all where None. The others cost little.
    encoding: of each field, that of `encode`.

  Raises:
    InputError: the record is not one of this schema.
  """
  message_class = wire.message_class()  # Says what to install.
  from google.protobuf import message

  try:
    features = message_class.FromString(record).features.feature
    return episode_lib.Episode(
      {
        field.name: _decode_field(_get(features, f"{STEPS}/{field.name}"), field, encoding(field))
        for field in schema.fields
        if names is None or field.name in names
      },
      {name: _decode_metadata(_get(features, name), kind) for name, kind in _METADATA},
    )
  except (message.DecodeError, ValueError, IndexError) as error:
    raise config.InputError(f"a record is not a tf.train.Example of its task: {error}") from error


def check_schema(schema: schema_lib.Schema) -> None:
  """Raises InputError unless all fields are of dtypes that TFDS reads back as they were."""
  for field in schema.fields:
    config.check(
      field.dtype in DTYPES,
      f"{field.name} is {field.dtype}, which can't be recorded; valid are {', '.join(DTYPES)}",
    )


def plain_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
  """Returns metadata as Python's own strings and numbers; raises InputError where it is not all there."""
  _check_names("metadata", metadata, episode_lib.METADATA.keys())
  plain: dict[str, Any] = {}
  for name, kind in episode_lib.METADATA.items():
    value = metadata[name]
    if type(value) is kind and (not isinstance(value, int) or -(2**63) <= value < 2**63):
      plain[name] = value
      continue
    value = value.item() if isinstance(value, np.generic) else value
    valid = (int, float) if kind is float else kind
    is_valid = isinstance(value, valid) and not isinstance(value, bool)
    if kind is int:
      is_valid = is_valid and -(2**63) <= value < 2**63
    config.check(is_valid, f"metadata {name} must be {kind.__name__}, got {value!r}")
    plain[name] = kind(value)
  return plain


def _make_list(dtype: np.dtype, encoding: str) -> tuple[int, Callable[[np.ndarray], wire.Data]]:
  """Returns of which kind the list of a field is, and what gives its data."""
  if encoding == RAW:
    return wire.BYTES_LIST, wire.arrays
  if encoding == PNG:
    from . import png

    return wire.BYTES_LIST, lambda value: wire.strings(map(png.encode, value))
  if dtype.kind == "f":
    return wire.FLOAT_LIST, wire.floats
  return wire.INT64_LIST, wire.varints


@functools.lru_cache(maxsize=4096)
def _encode_metadata(name: str, value: str | int) -> bytes:
  """Returns the entry of a piece of metadata, which most often is that of the record before."""
  if isinstance(value, str):
    return wire.entry(name, wire.BYTES_LIST, wire.strings([value.encode()]))
  return wire.entry(name, wire.INT64_LIST, wire.varint(value))


def _get(features: Any, key: str) -> Any:
  if key not in features:  # Asking for it would make it.
    raise ValueError(f"it has no {key}")
  return features[key]


def _decode_field(feature: Any, field: schema_lib.Field, encoding: str) -> np.ndarray:
  dtype = np.dtype(field.dtype)
  strings = feature.bytes_list.value
  if encoding == RAW:
    data = np.frombuffer(b"".join(strings), dtype.newbyteorder("<"))
    return data.reshape(len(strings), *field.shape)
  if encoding == PNG:
    from . import png

    value = np.stack([png.decode(file, field.shape) for file in strings])
  else:
    numbers = feature.float_list if dtype.kind == "f" else feature.int64_list
    value = np.array(numbers.value, dtype).reshape(-1, *field.shape)
  value.flags.writeable = False
  return value


def _decode_metadata(feature: Any, kind: type) -> Any:
  if kind is str:
    return feature.bytes_list.value[0].decode()
  return (feature.float_list if kind is float else feature.int64_list).value[0]


def _check_names(what: str, given: Mapping[str, Any], wanted: Set[str]) -> None:
  if given.keys() != wanted:
    missing, unknown = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
    raise config.InputError(f"{what} of an episode: {missing} are missing, {unknown} are unknown")
