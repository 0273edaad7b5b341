"""Gives the episodes of a collector their names and metadata, and writes them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from podracer import types

from . import collector, episode, schema


class Sink(Protocol):
  """Where episodes go; `writer.Writer` is one."""

  def write(self, episode: episode.Episode) -> bool:
    """Writes an episode; returns False where it is there already."""
    ...


class Slot(NamedTuple):
  """What is known of an environment before it plays.

  Attributes:
    slot: its number, the same whenever its recording is gone on with.
    seed: of the environment.
    number: of its first episode.
    history_id: of the history that its episodes make, or "".
  """

  slot: int
  seed: int
  number: int = 0
  history_id: str = ""


class Recorder:
  """Writes the whole episodes of some environments as they end."""

  def __init__(
    self,
    sink: Sink,
    metadata: dict[str, Any],
    slots: Sequence[Slot],
    *,
    name: Callable[[Slot, collector.Collected], str],
    quotas: Iterable[int] | None = None,
    frame_stack: int = 1,
    tick: int = 0,
  ):
    """Writes nothing yet.

    Args:
      sink: where episodes go.
      metadata: of all of them; what differs between them is added.
      slots: the environments.
      name: gives an episode its id, the same whenever it is played again.
      quotas: episodes wanted of each environment, or None for all; those past it are left out. Since an
        environment plays its quota to the end, short episodes aren't favoured.
      frame_stack: see `collector.Collector`.
      tick: steps that each environment has taken before.
    """
    self._sink = sink
    self._metadata = metadata
    self._slots = tuple(slots)
    self._name = name
    self._quotas = None if quotas is None else np.asarray(list(quotas))
    self._num_written = np.zeros((len(self._slots),), np.int64)
    self._collector = collector.Collector(len(self._slots), frame_stack=frame_stack, tick=tick)
    self.num_steps = 0
    self.return_sum = 0.0

  @property
  def num_episodes(self) -> int:
    """Episodes taken so far."""
    return int(self._num_written.sum())

  @property
  def is_done(self) -> bool:
    """True once every environment has played its quota."""
    return self._quotas is not None and bool(np.all(self._num_written >= self._quotas))

  def add(
    self, trajectory: types.Trajectory, first_slot: int = 0, *, teacher_step: int | None = None
  ) -> None:
    """Takes in an unroll of NumPy arrays and writes the episodes that end in it.

    Args:
      trajectory: `[T+1, B, ...]`, see `collector.Collector.add`.
      first_slot: of its first environment.
      teacher_step: environment steps that the teacher was trained for; that of the metadata by default.
    """
    metadata = self._metadata
    if teacher_step is not None:
      metadata = {**metadata, "teacher_step": teacher_step}
    for found in self._collector.add(trajectory, first_slot):
      if self._quotas is None or self._num_written[found.slot] < self._quotas[found.slot]:
        self._write(found, metadata)

  def _write(self, found: collector.Collected, metadata: dict[str, Any]) -> None:
    slot, episode_return = self._slots[found.slot], found.episode_return
    self._sink.write(
      episode.Episode(
        found.steps,
        {
          **metadata,
          "episode_id": self._name(slot, found),
          "seed": slot.seed,
          "seed_index": found.number,
          "slot": slot.slot,
          "episode_return": episode_return,
          "episode_length": found.length,
          "history_id": slot.history_id,
          "history_index": slot.number + found.number if slot.history_id else 0,
          "lifetime_step": found.first_tick,
        },
      )
    )
    self._num_written[found.slot] += 1
    self.num_steps += found.length
    self.return_sum += episode_return


def common_metadata(**values: Any) -> dict[str, Any]:
  """Returns the metadata that episodes of one recording share; what isn't given is empty.

  Raises:
    KeyError: for a name that is not one of `episode.METADATA`.
  """
  unknown = set(values) - set(episode.METADATA)
  if unknown:
    raise KeyError(f"no metadata of an episode: {', '.join(sorted(unknown))}")
  empty = {name: kind() for name, kind in episode.METADATA.items()}
  defaults = {
    "control": "teacher",
    "frame_skip": 1,
    "frame_stack": 1,
    "num_segments": 1,
    "format_version": schema.FORMAT_VERSION,
  }
  return {**empty, **defaults, **values}
