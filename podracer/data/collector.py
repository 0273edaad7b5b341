"""Cuts the unrolls of a machine into whole episodes, environment by environment."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from podracer import types

from . import schema


class Collected(NamedTuple):
  """An episode as it was played.

  Attributes:
    slot: number of the environment.
    number: episodes of the slot that have ended before, those that were not whole included.
    first_tick: steps of the slot before, its resets included.
    steps: name of a field -> `[T+1, ...]`.
  """

  slot: int
  number: int
  first_tick: int
  steps: dict[str, np.ndarray]

  @property
  def length(self) -> int:
    """T, the transitions."""
    return len(self.steps[schema.REWARD]) - 1

  @property
  def episode_return(self) -> float:
    """The undiscounted sum of raw rewards."""
    return float(np.sum(self.steps[schema.REWARD], dtype=np.float64))


class _Slot:
  """One environment: the parts of the episode under way, where its beginning was seen."""

  def __init__(self, tick: int):
    self.tick = tick
    self.index = 0
    self.first_tick = tick
    self.is_whole = False
    self.parts: list[dict[str, np.ndarray]] = []

  def begin_part(self, is_first: bool) -> None:
    """Takes note of a part that follows, of a new episode where `is_first`."""
    if is_first:
      self.parts, self.is_whole, self.first_tick = [], True, self.tick

  def end_episode(self, number: int) -> Iterator[Collected]:
    """Yields the episode where it is whole; the next one may begin."""
    if self.is_whole:
      yield Collected(number, self.index, self.first_tick, _join(self.parts))
    self.index += 1
    self.parts, self.is_whole = [], False


class Collector:
  """Collects the whole episodes of some environments; one whose beginning was not seen is left out."""

  def __init__(self, num_slots: int, *, frame_stack: int = 1, tick: int = 0):
    """Makes a collector that has seen nothing.

    Args:
      num_slots: environments.
      frame_stack: frames, oldest first, along the first axis of an observation; above 1 only the newest
        is kept, and reading stacks them again.
      tick: steps that each environment has taken before.
    """
    self._slots = [_Slot(tick) for _ in range(num_slots)]
    self._frame_stack = frame_stack

  def add(self, trajectory: types.Trajectory, first_slot: int = 0) -> list[Collected]:
    """Takes in an unroll and returns the episodes that end in it.

    Args:
      trajectory: NumPy arrays `[T+1, B, ...]`; it follows on the one before of the same slots.
      first_slot: the slot of its first environment.
    """
    fields = step_fields(trajectory, self._frame_stack)
    is_first, is_last = fields[schema.IS_FIRST], fields[schema.IS_LAST]
    length, batch = is_last.shape
    collected: list[Collected] = []
    for b, slot in enumerate(self._slots[first_slot : first_slot + batch]):
      ends = np.flatnonzero(is_last[:, b]) + 1
      for start, end in itertools.pairwise((0, *ends.tolist(), length)):
        if start == end:  # The last episode ended with the unroll.
          continue
        slot.begin_part(is_first[start, b])
        if slot.is_whole:
          # Copied, for the arrays of a device may be written again, and an episode under way would
          # keep those of all environments.
          slot.parts.append({name: value[start:end, b].copy() for name, value in fields.items()})
        slot.tick += end - start
        if is_last[end - 1, b]:
          collected += slot.end_episode(first_slot + b)
    return collected


def step_fields(trajectory: types.Trajectory, frame_stack: int = 1) -> dict[str, np.ndarray]:
  """Returns the steps of the first T times of an unroll as stored fields, `[T, B, ...]`.

  Nothing is done in the last observation of an episode: what the agent said of it led nowhere, and is 0.
  """
  timesteps, outputs = trajectory.timesteps, trajectory.actor_outputs
  is_last = np.asarray(timesteps.step_type[:-1] == types.LAST)
  observation = schema.flatten_observation(timesteps.observation)
  acted: dict[str, Any] = {
    **schema.actor_fields(outputs),
    # Of the transition that follows the action.
    schema.REWARD: timesteps.reward[1:],
    schema.DISCOUNT: timesteps.discount[1:],
  }
  fields: dict[str, Any] = {
    **{name: leaf[:-1] for name, leaf in observation.items()},
    **{name: _zero(value, is_last) for name, value in acted.items()},
    schema.IS_FIRST: timesteps.step_type[:-1] == types.FIRST,
    schema.IS_LAST: is_last,
    schema.IS_TERMINAL: is_last & (timesteps.discount[:-1] == 0),
  }
  if frame_stack > 1:
    stacked = fields[schema.OBSERVATION]
    _check_stack(stacked, fields[schema.IS_FIRST])
    fields[schema.OBSERVATION] = stacked[:, :, -1]
  return fields


def _zero(value: np.ndarray, where: np.ndarray) -> np.ndarray:
  """Returns a copy of `[T, B, ...]` that is 0 at some `[T, B]`."""
  value = value.copy()
  value[where] = 0
  return value


def _check_stack(stacked: np.ndarray, is_first: np.ndarray) -> None:
  """Raises ValueError unless each stack `[T, B, n, ...]` is the one before, moved on by a frame."""
  moves_on = np.all(stacked[1:, :, :-1] == stacked[:-1, :, 1:], axis=tuple(range(2, stacked.ndim)))
  if not np.all(moves_on | is_first[1:]):
    raise ValueError("frames of the observations are not those of the time step before, moved on")


def _join(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns the steps of an episode."""
  if len(parts) == 1:
    return parts[0]
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
