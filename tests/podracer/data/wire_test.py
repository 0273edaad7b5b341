"""What is written by hand, against protobuf."""

import sys

import numpy as np
import pytest

from podracer import config
from podracer.data import wire


@pytest.mark.parametrize(
  ("value", "data"),
  [
    (0, b"\x00"),
    (1, b"\x01"),
    (127, b"\x7f"),
    (128, b"\x80\x01"),
    (300, b"\xac\x02"),
    (2**63 - 1, b"\xff" * 8 + b"\x7f"),
    (-1, b"\xff" * 9 + b"\x01"),
    (-(2**63), b"\x80" * 9 + b"\x01"),
  ],
)
def test_varint(value, data):
  assert wire.varint(value) == data
  assert bytes(wire.varints(np.array([value, 5, value], np.int64))) == data + b"\x05" + data


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint32", "int64"])
def test_varints_of_any_dtype_and_shape(dtype):
  values = np.array([[0, 1, 100], [1, 127, -1]]).astype(dtype).T
  assert not values.flags.c_contiguous
  expected = b"".join(wire.varint(int(value)) for value in values.ravel())
  assert bytes(wire.varints(values)) == expected
  assert bytes(wire.varints(values[:0])) == b""


def test_arrays_are_the_strings_of_their_bytes():
  values = np.arange(4 * 70 * 3, dtype=np.int16).reshape(3, 70, 4).T
  for given in (values, values.astype(">i2"), values[:, :, :0], values[:, 0, 0]):
    steps = [np.ascontiguousarray(step, "<i2").tobytes() for step in given]
    assert bytes(wire.arrays(given)) == wire.strings(steps)


def test_floats_are_rounded_to_single_precision():
  values = np.array([[0.1, -0.0], [np.inf, 1e-45]])
  assert bytes(wire.floats(values.T)) == values.T.astype("<f4").tobytes()


# Around the sizes from which a length takes another byte.
@pytest.mark.parametrize("size", [0, 1, 100, 120, 127, 128, 16_380, 16_390])
def test_an_example_is_what_protobuf_writes(size):
  strings = [b"", b"a" * size]
  numbers = np.full((size,), 7, np.int64)
  data = {
    "key": (wire.BYTES_LIST, wire.strings(strings)),
    "long" * 40: (wire.INT64_LIST, bytes(wire.varints(numbers))),
    "wert ü": (wire.FLOAT_LIST, bytes(wire.floats(numbers))),
  }
  parts = [part for key, (kind, v) in data.items() for part in (wire.header(key, kind, len(v)), v)]
  message = wire.message_class()()
  message.features.feature["key"].bytes_list.value.extend(strings)
  message.features.feature["long" * 40].int64_list.value.extend(numbers.tolist())
  message.features.feature["wert ü"].float_list.value.extend(numbers.tolist())
  expected = message.SerializeToString(deterministic=True)
  assert wire.message_class().FromString(wire.example(parts)) == message
  if size:  # protobuf leaves out what begins an empty list of numbers.
    assert wire.example(parts) == expected
  entries = [wire.entry(key, kind, value) for key, (kind, value) in data.items()]
  assert wire.example(entries) == wire.example(parts)


def test_without_protobuf(monkeypatch):
  monkeypatch.setitem(sys.modules, "google.protobuf", None)
  wire.message_class.cache_clear()
  with pytest.raises(config.InputError, match=r"pip install 'podracer-rl\[data\]'"):
    wire.message_class()
