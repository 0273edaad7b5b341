"""Recordings of an environment in which all that is seen says where it was seen."""

import numpy as np
import pytest

from podracer import data, types
from podracer.data import episode, schema

SPEC = types.EnvironmentSpec(
  name="suite:Line",
  observation={"b": types.ArraySpec((2,), np.float32), "a": types.ArraySpec((), np.int32)},
  action=types.DiscreteActions(3),
)


def make_episode(number, length, terminates=True, **extra):
  time = np.arange(length + 1)
  is_last = time == length
  steps = {
    "observation/a": (100 * number + time).astype(np.int32),
    "observation/b": np.stack([time, -time], axis=1).astype(np.float32),
    "action": np.where(is_last, 0, time % 3).astype(np.int32),
    "policy_logits": np.full((length + 1, 3), 0.5 * number, np.float16),
    "behaviour_log_prob": np.full(length + 1, -1.5, np.float32),
    "value": np.full(length + 1, 7.0, np.float32),
    "reward": np.where(is_last, 0, time + 1).astype(np.float32),
    "discount": np.where(is_last | (terminates & (time == length - 1)), 0, 1).astype(np.float32),
    "is_first": time == 0,
    "is_last": is_last,
    "is_terminal": is_last & terminates,
    **{name: np.full((length + 1, *np.shape(x)), x) for name, x in extra.items()},
  }
  values = {name: kind() for name, kind in episode.METADATA.items()}
  values |= {"episode_id": f"e{number}", "task": "suite_line", "phase": "eval"}
  values |= {"policy_mode": "sample", "control": "teacher", "frame_skip": 1, "frame_stack": 1}
  values |= {"num_segments": 1, "episode_length": length, "episode_return": float(number)}
  return data.Episode(steps, values)


def write(root, episodes):
  fields = [schema.Field(n, x.shape[1:], x.dtype.name) for n, x in episodes[0].steps.items()]
  writer = data.Writer(root, "suite_line", data.Schema(tuple(sorted(fields))))
  for one in episodes:
    writer.write(one)
  writer.close()
  data.finalise(root)
  return root


class Line:
  """Makes episodes and collections of them."""

  SPEC = SPEC
  make_episode = staticmethod(make_episode)
  write = staticmethod(write)


@pytest.fixture(scope="session")
def line():
  return Line
