"""What is read from recorded data of the tokens of a step, and what is refused."""

import json

import numpy as np
import pytest

from podracer import config, data
from podracer.agents.generalist import layout as layout_lib


def test_layouts_of_recorded_tasks(mixed, small):
  collection = data.open(mixed)
  found = {d.task: layout_lib.from_dataset(d, small(patch_size=16)) for d in collection}
  vector, frames, torque = found["vector"], found["frames"], found["torque"]
  assert vector.parts == (layout_lib.Part("observation", "continuous", (4,)),)
  assert (vector.num_actions, vector.action_size, vector.step_tokens) == (3, 1, 6)
  assert frames.parts == (layout_lib.Part("observation", "image", (2, 20, 20), 255.0),)
  # Two patches a side of 20 x 20.
  assert (frames.observation_tokens, frames.num_channels, frames.step_tokens) == (4, 2, 6)
  assert (torque.num_actions, torque.action_size, torque.step_tokens) == (0, 2, 6)
  assert layout_lib.sizes(found.values()) == layout_lib.Sizes(channels=2, observation=4, action=2)
  assert vector.fields == ("observation", "action", "is_last")
  assert vector.steps_per_sequence(48) == 8
  for layout in found.values():
    assert layout_lib.from_json(json.loads(json.dumps(layout_lib.to_json(layout)))) == layout


def test_histories_have_a_reward_token(mixed, small):
  layout = layout_lib.from_dataset(data.open(mixed)["vector"], small(histories=True))
  assert (layout.step_tokens, layout.action_start) == (7, 6)
  assert layout.fields[-1] == "reward"


def test_a_step_longer_than_the_context(mixed, small):
  with pytest.raises(
    config.InputError, match=r"a step of vector has 6 tokens, more than config\.context=5"
  ):
    layout_lib.from_dataset(data.open(mixed)["vector"], small(context=5))


def test_more_actions_than_tokens(tmp_path, write, small):
  root = write(tmp_path, "many", (3,), num_actions=1025)
  data.finalise(root)
  with pytest.raises(config.InputError, match=r"many has 1025 discrete actions; .* at most 1024"):
    layout_lib.from_dataset(data.open(root)["many"], small())


@pytest.mark.parametrize(
  ("values", "dtype", "kind", "scale"),
  [
    (np.array([0, 1023]), "int32", "discrete", 1.0),
    (np.array([0, 1024]), "int32", "continuous", 1.0),
    (np.array([-1, 5]), "int32", "continuous", 1.0),
    (np.array([0.0, 1.0]), "float32", "continuous", 1.0),
    (np.array([True, False]), "bool", "discrete", 1.0),
    (np.array([[0, 10], [3, 2]]), "uint8", "image", 10.0),
    (np.array([[0, 200], [3, 2]]), "uint8", "image", 255.0),
    (np.zeros((2, 2)), "float32", "image", 1.0),
  ],
)
def test_kinds_of_entries(values, dtype, kind, scale):
  seen = layout_lib._Range(values.shape, float(values.min()), float(values.max()))
  part = layout_lib._make_part("observation", dtype, seen)
  assert (part.kind, part.scale) == (kind, scale)
