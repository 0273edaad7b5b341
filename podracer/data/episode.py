"""An episode in memory, and the segments that are its records on disk."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SEGMENT_STEPS = 256
"""Transitions in a segment, at most: a window of a long episode is then read without the rest of it."""


class Episode(NamedTuple):
  """One episode of T transitions, or a part of one.

  Attributes:
    steps: name of a field -> `[T+1, *shape]`; a segment that is not the last of its episode has no
      final step, and so `[T, *shape]`.
    metadata: name -> string or number, see `METADATA`.
  """

  steps: dict[str, np.ndarray]
  metadata: dict[str, Any]

  @property
  def num_steps(self) -> int:
    """Steps stored, the final one included."""
    return len(next(iter(self.steps.values())))


# name -> type, all of them in every record. Units: steps are environment steps, times seconds.
METADATA: dict[str, type] = {
  "episode_id": str,  # The same whenever the same episode is recorded again.
  "task": str,
  "env_id": str,
  "env_backend": str,
  "env_version": str,
  "env_kwargs": str,  # JSON
  "seed": int,  # Of the environment of the host, or key of the JAX-native one.
  "seed_index": int,  # Episodes that this environment had played before since it was made with `seed`.
  "slot": int,
  "teacher_id": str,
  "teacher_algo": str,
  "teacher_checkpoint": str,  # sha256 of the parameters, or "" while training.
  "teacher_step": int,  # Environment steps that the teacher was trained for.
  "phase": str,  # train or eval
  "policy_mode": str,  # sample, greedy or search:<simulations>
  "control": str,  # teacher, student or mixture
  "episode_return": float,
  "episode_length": int,
  "frame_skip": int,
  "frame_stack": int,
  "sticky_actions": float,
  "history_id": str,  # "" of an episode that belongs to none
  "history_index": int,
  "lifetime_step": int,  # Environment steps of the slot before this episode.
  "segment_index": int,
  "num_segments": int,
  "start_step": int,
  "writer_id": str,
  "format_version": str,
}


def split(episode: Episode, segment_steps: int = SEGMENT_STEPS) -> Iterator[Episode]:
  """Yields the segments of an episode; only the last has the final step."""
  length = episode.num_steps - 1
  num_segments = max(1, -(-length // segment_steps))
  if num_segments == 1:
    segment = {"segment_index": 0, "num_segments": 1, "start_step": 0}
    yield Episode(episode.steps, {**episode.metadata, **segment})
    return
  for i in range(num_segments):
    start, end = i * segment_steps, (i + 1) * segment_steps
    stop = episode.num_steps if i == num_segments - 1 else end
    yield Episode(
      {name: value[start:stop] for name, value in episode.steps.items()},
      {**episode.metadata, "segment_index": i, "num_segments": num_segments, "start_step": start},
    )


def join(segments: Sequence[Episode]) -> Episode:
  """Returns the episode of which these are all segments, in order."""
  first = segments[0]
  if len(segments) == 1:
    return first
  steps = {name: np.concatenate([s.steps[name] for s in segments]) for name in first.steps}
  return Episode(steps, {**first.metadata, "segment_index": 0, "num_segments": 1})
