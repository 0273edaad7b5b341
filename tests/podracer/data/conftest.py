"""Small recordings, real files."""

import numpy as np
import pytest

from podracer.data import episode, schema, store, writer


def make_schema(observation=(3, 4)):
  """The fields of a task with pictures and two actions."""
  fields = [
    schema.Field("observation", tuple(observation), "uint8"),
    schema.Field("action", (), "int32"),
    schema.Field("policy_logits", (2,), "float16"),
    schema.Field("reward", (), "float32"),
    schema.Field("discount", (), "float32"),
    *(schema.Field(name, (), "bool") for name in ("is_first", "is_last", "is_terminal")),
  ]
  return schema.Schema(tuple(sorted(fields)))


def make_episode(number, length, observation=(3, 4), **metadata):
  """An episode of `length` transitions, of random contents that depend on its number only."""
  rng = np.random.default_rng(number)
  last = np.arange(length + 1) == length
  steps = {
    "observation": rng.integers(0, 256, (length + 1, *observation)).astype(np.uint8),
    "action": np.where(last, 0, rng.integers(0, 2, length + 1)).astype(np.int32),
    "policy_logits": rng.normal(size=(length + 1, 2)).astype(np.float16),
    "reward": rng.normal(size=length + 1).astype(np.float32),
    "discount": np.where(last, 0, 1).astype(np.float32),
    "is_first": np.arange(length + 1) == 0,
    "is_last": last,
    "is_terminal": last,
  }
  values = {name: kind() for name, kind in episode.METADATA.items()}
  values |= {
    "episode_id": f"e{number}",
    "task": "pong",
    "teacher_id": "teacher",
    "teacher_checkpoint": "c0",
    "phase": "eval",
    "policy_mode": "sample",
    "control": "teacher",
    "episode_return": float(number),
    "episode_length": length,
    "frame_skip": 1,
    "frame_stack": 1,
    "num_segments": 1,
  }
  return episode.Episode(steps, {**values, **metadata})


class Recordings:
  """Makes episodes and collections of them."""

  make_schema = staticmethod(make_schema)
  make_episode = staticmethod(make_episode)

  @staticmethod
  def write(root, episodes, task="pong", finalise=True, **options):
    """Writes episodes, all alike, and returns the root of the collection."""
    shape = episodes[0].steps["observation"].shape[1:]
    made = writer.Writer(root, task, make_schema(shape), **options)
    for one in episodes:
      made.write(one._replace(metadata={**one.metadata, "task": task}))
    made.close()
    if finalise:
      store.finalise(root)
    return root


@pytest.fixture(scope="session")
def recordings():
  return Recordings
