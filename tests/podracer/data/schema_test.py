import numpy as np

from podracer import types
from podracer.data import schema


def test_what_a_teacher_would_do_is_stored_where_it_is_said():
  spec = types.EnvironmentSpec(
    "probe", types.ArraySpec((1,), np.dtype("float32")), types.DiscreteActions(3)
  )
  plain = types.ActorOutput(
    action=np.zeros(2, np.int32),
    logits=np.zeros((2, 3), np.float32),
    log_prob=np.zeros(2, np.float32),
    value=np.zeros(2, np.float32),
  )
  taught = plain._replace(
    teacher_logits=np.asarray([[0.5, -1e9, 1.0], [0.0, 0.0, 0.0]], np.float32),
    teacher_value=np.asarray([1.5, 2.5], np.float32),
    teacher_action=np.asarray([2, 0], np.int32),
  )
  fields = {field.name: field for field in schema.make_schema(spec, taught).fields}
  found = schema.actor_fields(taught)
  for name, shape, dtype in (
    ("teacher_logits", (3,), "float16"),
    ("teacher_value", (), "float32"),
    ("teacher_action", (), "int32"),
  ):
    assert (fields[name].shape, fields[name].dtype) == (shape, dtype)
    assert (found[name].shape[1:], found[name].dtype) == (shape, dtype)
  # The logit of an action that is not allowed is the least that half precision holds.
  np.testing.assert_allclose(found["teacher_logits"][0], [0.5, -65504.0, 1.0])
  np.testing.assert_array_equal(found["teacher_value"], [1.5, 2.5])
  np.testing.assert_array_equal(found["teacher_action"], [2, 0])
  assert not any("teacher" in name for name in schema.make_schema(spec, plain).names())
  assert not any("teacher" in name for name in schema.actor_fields(plain))
