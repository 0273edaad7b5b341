"""Small recordings of made-up tasks, and a small generalist."""

import numpy as np
import pytest

from podracer import data
from podracer.agents import generalist
from podracer.data import recorder, schema


def make_steps(rng, length, *, vector=4, image=None, continuous=0, num_actions=3, stacked=False):
  """Returns the steps of an episode of `length` transitions, of random contents."""
  last = np.arange(length + 1) == length
  steps = {
    "reward": np.where(last, 0.0, rng.normal(size=length + 1)).astype(np.float32),
    "discount": np.where(last, 0, 1).astype(np.float32),
    "is_first": np.arange(length + 1) == 0,
    "is_last": last,
    "is_terminal": last,
  }
  if image is None:
    steps["observation"] = rng.normal(size=(length + 1, vector)).astype(np.float32)
  else:
    steps["observation"] = rng.integers(0, 256, (length + 1, *image)).astype(np.uint8)
  if continuous:
    action = rng.uniform(-1, 1, (length + 1, continuous)).astype(np.float32)
    steps["action"] = np.where(last[:, None], 0, action).astype(np.float32)
  else:
    action = rng.integers(0, num_actions, length + 1)
    steps["action"] = np.where(last, 0, action).astype(np.int32)
    steps["policy_logits"] = np.zeros((length + 1, num_actions), np.float16)
  return steps


def write_task(root, task, lengths, *, histories=0, teachers=1, seed=0, **shape):
  """Writes a task of episodes of these lengths; returns the root, to be finalised."""
  rng = np.random.default_rng(seed)
  episodes = [make_steps(rng, length, **shape) for length in lengths]
  fields = [
    schema.Field(name, tuple(value.shape[1:]), value.dtype.name)
    for name, value in episodes[0].items()
  ]
  writer = data.Writer(root, task, data.Schema(tuple(sorted(fields))))
  for i, steps in enumerate(episodes):
    about = recorder.common_metadata(
      episode_id=f"{task}-{i}",
      task=task,
      env_id=f"podracer.testing:{task}",
      env_backend="podracer.testing",
      teacher_id=f"teacher{i % teachers}",
      phase="eval",
      episode_return=float(i),
      episode_length=len(steps["action"]) - 1,
      frame_stack=1,
      env_kwargs="{}",
      history_id=f"h{i % histories}" if histories else "",
      history_index=i // histories if histories else 0,
      lifetime_step=100 * i,
    )
    writer.write(data.Episode(steps, about))
  writer.close()
  return root


@pytest.fixture(scope="session")
def write():
  return write_task


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
  """A collection of a vector task, an image task and a continuous one."""
  root = tmp_path_factory.mktemp("mixed")
  write_task(root, "vector", (5, 9, 1, 30), teachers=2)
  write_task(root, "frames", (6, 7, 8), image=(2, 20, 20), num_actions=5, seed=1)
  write_task(root, "torque", (6, 12), continuous=2, vector=3, seed=2)
  data.finalise(root)
  return root


@pytest.fixture(scope="session")
def small():
  """Makes a small configuration."""

  def make(**options):
    defaults = {
      "width": 16,
      "num_layers": 2,
      "num_heads": 2,
      "context": 48,
      "sequences_per_task": 4,
    }
    return generalist.GeneralistConfig(**{**defaults, **options})

  return make
