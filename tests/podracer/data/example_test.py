import sys

import numpy as np
import pytest

from podracer import config
from podracer.data import episode, example, schema, wire

SCHEMA = schema.Schema(
  (
    schema.Field("action", (), "int32"),
    schema.Field("observation/frame", (4, 3), "uint8"),
    schema.Field("observation/hand/force", (2,), "float32"),
    schema.Field("policy_logits", (5,), "float16"),
    schema.Field("reward", (), "float32"),
  )
)
METADATA = {
  name: {str: f"{name} ü", int: -3, float: 0.25}[kind] for name, kind in episode.METADATA.items()
}


def extremes(shape, dtype):
  """Numbers at the ends of what a dtype holds, and some between."""
  dtype = np.dtype(dtype)
  if dtype.kind == "f":
    info = np.finfo(dtype)
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, info.min, info.smallest_subnormal, 0.1]
  elif dtype.kind == "b":
    values = [False, True]
  else:
    info = np.iinfo(dtype)
    values = [info.min, info.max, 0, 1]
  return np.resize(np.array(values, dtype), shape)


def make_episode(fields, num_steps=7):
  steps = {field.name: extremes((num_steps, *field.shape), field.dtype) for field in fields}
  return episode.Episode(steps, dict(METADATA))


def assert_same_bits(found, expected):
  assert found.dtype == expected.dtype
  assert found.shape == expected.shape
  assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 2), (0,), (3, 0)])
@pytest.mark.parametrize("dtype", example.DTYPES)
@pytest.mark.parametrize("num_steps", [1, 19])
def test_all_dtypes_come_back_to_the_bit(dtype, shape, num_steps):
  one = schema.Schema((schema.Field("observation", shape, dtype),))
  made = make_episode(one.fields, num_steps)
  found = example.decode(example.encode(made, one), one)
  assert_same_bits(found.steps["observation"], made.steps["observation"])


def test_metadata_and_nested_observations_come_back():
  made = make_episode(SCHEMA.fields)
  found = example.decode(example.encode(made, SCHEMA), SCHEMA)
  assert found.metadata == METADATA
  assert [type(value) for value in found.metadata.values()] == list(episode.METADATA.values())
  assert list(found.steps) == list(SCHEMA.names())
  for name, value in made.steps.items():
    assert_same_bits(found.steps[name], value)


def test_only_the_fields_named_are_decoded():
  record = example.encode(make_episode(SCHEMA.fields), SCHEMA)
  found = example.decode(record, SCHEMA, ("reward", "observation/frame"))
  assert sorted(found.steps) == ["observation/frame", "reward"]
  assert found.metadata == METADATA


def test_what_is_decoded_is_read_only():
  found = example.decode(example.encode(make_episode(SCHEMA.fields), SCHEMA), SCHEMA)
  for value in found.steps.values():
    assert not value.flags.writeable


def test_equal_segments_have_equal_records():
  made = make_episode(SCHEMA.fields)
  turned = episode.Episode(
    dict(reversed(made.steps.items())), dict(reversed(made.metadata.items()))
  )
  assert example.encode(made, SCHEMA) == example.encode(turned, SCHEMA)


def test_records_do_not_depend_on_those_before():
  encoder = example.Encoder(SCHEMA)
  for change in (
    {"seed": 1},
    {"episode_return": -0.0},
    {"episode_return": 0.0},
    {"task": "ü" * 200},
  ):
    made = make_episode(SCHEMA.fields)._replace(metadata={**METADATA, **change})
    encoder.check(made)
    found = example.decode(encoder.encode(made), SCHEMA).metadata
    assert found == {**METADATA, **change}
    assert np.signbit(found["episode_return"]) == np.signbit(made.metadata["episode_return"])


def test_a_record_has_the_bytes_of_protobuf():
  record = example.encode(make_episode(SCHEMA.fields), SCHEMA)
  message = wire.message_class().FromString(record)
  # The order of the features is free; but for it they are the same.
  written = message.SerializeToString(deterministic=True)
  assert len(written) == len(record)
  for name, feature in message.features.feature.items():
    assert name.encode() in record
    assert feature.SerializeToString(deterministic=True) in record


def test_arrays_of_any_layout_are_taken():
  made = make_episode(SCHEMA.fields, 14)
  frame = made.steps["observation/frame"]
  turned = np.asfortranarray(frame)
  strided = {name: value[::2] for name, value in made.steps.items()}
  whole = example.encode(made, SCHEMA)
  assert whole == example.encode(
    made._replace(steps={**made.steps, "observation/frame": turned}), SCHEMA
  )
  found = example.decode(example.encode(made._replace(steps=strided), SCHEMA), SCHEMA)
  for name, value in strided.items():
    assert_same_bits(found.steps[name], value)


def test_it_is_a_stock_tf_example():
  from tensorflow_datasets.proto import tf_example_pb2

  made = make_episode(SCHEMA.fields)
  features = tf_example_pb2.Example.FromString(example.encode(made, SCHEMA)).features.feature
  assert sorted(features) == sorted([*(f"steps/{name}" for name in SCHEMA.names()), *METADATA])
  strings = features["steps/policy_logits"].bytes_list.value
  assert list(strings) == [step.tobytes() for step in made.steps["policy_logits"]]
  assert list(features["steps/action"].int64_list.value) == made.steps["action"].tolist()
  assert list(features["episode_id"].bytes_list.value) == [METADATA["episode_id"].encode()]
  assert list(features["episode_return"].float_list.value) == [0.25]


def replaced(made, name, value):
  return made._replace(steps={**made.steps, name: value})


def without(values, name):
  return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda e: e._replace(steps=without(e.steps, "reward")), "fields .*reward.* are missing"),
    (lambda e: replaced(e, "speed", np.zeros(7)), "fields .*speed.* are unknown"),
    (lambda e: replaced(e, "reward", np.zeros(6, np.float32)), r"reward .*\[7\], got .*\[6\]"),
    (lambda e: replaced(e, "reward", np.zeros(7)), "reward must be float32.*, got float64"),
    (lambda e: replaced(e, "reward", np.zeros(7, ">f4")), "reward must be float32.*, got >f4"),
    (lambda e: e._replace(steps={n: v[:0] for n, v in e.steps.items()}), "at least one step"),
    (lambda e: e._replace(metadata=without(e.metadata, "seed")), "metadata .*seed.* are missing"),
    (lambda e: e._replace(metadata={**e.metadata, "sed": 1}), "metadata .*sed.* are unknown"),
  ],
)
def test_what_is_not_of_the_schema_is_refused(change, message):
  with pytest.raises(config.InputError, match=message) as caught:
    example.encode(change(make_episode(SCHEMA.fields)), SCHEMA)
  assert "\n" not in str(caught.value)


def test_metadata_of_numpy_becomes_plain():
  found = example.plain_metadata(
    {**METADATA, "seed": np.int32(5), "episode_return": np.float32(2), "sticky_actions": 1}
  )
  assert found == {**METADATA, "seed": 5, "episode_return": 2.0, "sticky_actions": 1.0}
  assert [type(value) for value in found.values()] == list(episode.METADATA.values())


@pytest.mark.parametrize(
  ("name", "value"),
  [("seed", True), ("seed", 1.0), ("seed", 2**63), ("task", None), ("episode_return", "3")],
)
def test_metadata_of_another_kind_is_refused(name, value):
  with pytest.raises(config.InputError, match=f"metadata {name} must be"):
    example.plain_metadata({**METADATA, name: value})


def test_records_of_another_schema_are_refused():
  other = schema.Schema((schema.Field("speed", (), "float32"),))
  with pytest.raises(config.InputError, match="it has no steps/speed"):
    example.decode(example.encode(make_episode(SCHEMA.fields), SCHEMA), other)
  record = example.encode(make_episode(SCHEMA.fields), SCHEMA)
  for end in (0, 1, 7, 300, len(record) - 1):
    with pytest.raises(config.InputError, match=r"not a tf\.train\.Example"):
      example.decode(record[:end], SCHEMA)


def test_dtypes_that_tfds_does_not_know_are_refused():
  with pytest.raises(config.InputError, match="value is bfloat16, which can't be recorded; valid"):
    example.check_schema(schema.Schema((schema.Field("value", (), "bfloat16"),)))


def test_reading_without_protobuf(monkeypatch):
  record = example.encode(make_episode(SCHEMA.fields), SCHEMA)
  monkeypatch.setitem(sys.modules, "google.protobuf", None)
  wire.message_class.cache_clear()
  with pytest.raises(config.InputError, match=r"pip install 'podracer-rl\[data\]'"):
    example.decode(record, SCHEMA)
