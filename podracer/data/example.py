"""A segment as the bytes of a `tf.train.Example`, laid out as TFDS stores an RLDS episode.

Keys are `steps/<field>` and the names of the metadata. Arrays, and scalars that neither an int64 nor a
float32 holds, are one string of raw little-endian bytes a step; other scalars are one number a step.
The messages are built here from their descriptors: protobuf alone, without TensorFlow, and in a pool of
their own, so that they don't clash with TensorFlow's. The wire format in NumPy, tried, is 1.6 times as
fast for frames and slower for all else, where most of the time goes into compressing anyway.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from podracer import config

from . import episode as episode_lib
from . import schema as schema_lib

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

Encoding = Callable[[schema_lib.Field], str]


def default_encoding(field: schema_lib.Field) -> str:
  """Returns how a field of a recorded segment is stored; an exporter may have another way."""
  return RAW if field.shape or field.dtype in ("float64", "uint64") else NUMBERS


def encode(
  episode: episode_lib.Episode, schema: schema_lib.Schema, encoding: Encoding = default_encoding
) -> bytes:
  """Returns the record of a segment; equal segments have equal records.

  Args:
    episode: a segment, with all fields of the schema and all of `episode.METADATA`.
    schema: of the task.
    encoding: of each field.

  Raises:
    InputError: a field or a piece of metadata is missing, unknown, or of another kind.
  """
  _check(episode, schema)
  message = _message_class()()
  features = message.features.feature
  for field in schema.fields:
    _encode_field(features[f"{STEPS}/{field.name}"], episode.steps[field.name], encoding(field))
  for name, kind in episode_lib.METADATA.items():
    value = episode.metadata[name]
    if kind is str:
      features[name].bytes_list.value.append(value.encode())
    elif kind is float:
      features[name].float_list.value.append(value)
    else:
      features[name].int64_list.value.append(value)
  data: bytes = message.SerializeToString(deterministic=True)
  return data


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
  from google.protobuf import message

  try:
    features = _message_class().FromString(record).features.feature
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
  _check_names("metadata", metadata, episode_lib.METADATA)
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


def _encode_field(feature: Any, value: np.ndarray, encoding: str) -> None:
  if encoding == RAW:
    feature.bytes_list.value.extend(_to_strings(value))
  elif encoding == PNG:
    from . import png

    feature.bytes_list.value.extend(png.encode(frame) for frame in value)
  elif value.dtype.kind == "f":
    feature.float_list.value.extend(value.ravel().tolist())
  else:
    feature.int64_list.value.extend(value.astype(np.int64).ravel().tolist())


def _to_strings(value: np.ndarray) -> list[bytes]:
  """Returns the bytes of each step."""
  value = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
  size = value[0].nbytes
  if not size:
    return [b""] * len(value)
  strings: list[bytes] = value.reshape(len(value), -1).view(f"V{size}").ravel().tolist()
  return strings


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


def _check(episode: episode_lib.Episode, schema: schema_lib.Schema) -> None:
  _check_names("fields", episode.steps, schema.names())
  _check_names("metadata", episode.metadata, episode_lib.METADATA)
  num_steps = episode.num_steps
  config.check(num_steps > 0, "an episode has at least one step")
  for field in schema.fields:
    value = episode.steps[field.name]
    shape = (num_steps, *field.shape)
    # Not by `check`: its message costs more than the comparison.
    if value.shape != shape or value.dtype != np.dtype(field.dtype):
      raise config.InputError(
        f"{field.name} must be {field.dtype}{list(shape)}, got {value.dtype}{list(value.shape)}"
      )


def _check_names(what: str, given: Collection[str], wanted: Collection[str]) -> None:
  if set(given) != set(wanted):
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    raise config.InputError(f"{what} of an episode: {missing} are missing, {unknown} are unknown")


@functools.cache
def _message_class() -> Any:
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
