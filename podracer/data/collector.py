"""Cuts the unrolls of a machine into whole episodes, environment by environment."""

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
  """One environment: the parts of the episode under way."""

  def __init__(self, tick: int):
    self.tick = tick
    self.index = 0
    self.first_tick = tick
    self.is_whole = False
    self.parts: list[dict[str, np.ndarray]] = []


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
    is_last = fields[schema.IS_LAST]
    collected = []
    for b, slot in enumerate(self._slots[first_slot : first_slot + len(is_last)]):
      start = 0
      for end in (*np.flatnonzero(is_last[b]) + 1, is_last.shape[1]):
        if end > start:
          self._take(slot, {name: value[b, start:end] for name, value in fields.items()})
        if end > start and is_last[b, end - 1]:
          if slot.is_whole:
            collected.append(_finish(first_slot + b, slot))
          slot.index += 1
          slot.parts, slot.is_whole = [], False
        start = end
    return collected

  def _take(self, slot: _Slot, part: dict[str, np.ndarray]) -> None:
    if part[schema.IS_FIRST][0]:
      slot.parts, slot.is_whole, slot.first_tick = [], True, slot.tick
    slot.tick += len(part[schema.IS_FIRST])
    if slot.is_whole:
      slot.parts.append(part)


def step_fields(trajectory: types.Trajectory, frame_stack: int = 1) -> dict[str, np.ndarray]:
  """Returns the steps of the first T times of an unroll as stored fields, `[B, T, ...]`, copied."""
  timesteps, outputs = trajectory.timesteps, trajectory.actor_outputs
  is_last = timesteps.step_type[:-1] == types.LAST
  time_major: dict[str, Any] = {
    **{name: leaf[:-1] for name, leaf in schema.flatten_observation(timesteps.observation).items()},
    **schema.actor_fields(outputs),
    # Of the transition that follows the action.
    schema.REWARD: timesteps.reward[1:],
    schema.DISCOUNT: timesteps.discount[1:],
    schema.IS_FIRST: timesteps.step_type[:-1] == types.FIRST,
    schema.IS_LAST: is_last,
    schema.IS_TERMINAL: is_last & (timesteps.discount[:-1] == 0),
  }
  if frame_stack > 1:
    stacked = time_major[schema.OBSERVATION]
    _check_stack(stacked, time_major[schema.IS_FIRST])
    time_major[schema.OBSERVATION] = stacked[:, :, -1]
  # [T, B, ...] -> [B, T, ...]; a copy, for the arrays of a device may be written again.
  return {name: np.array(np.swapaxes(value, 0, 1), order="C") for name, value in time_major.items()}


def _check_stack(stacked: np.ndarray, is_first: np.ndarray) -> None:
  """Raises ValueError unless each stack `[T, B, n, ...]` is the one before, moved on by a frame."""
  moves_on = np.all(stacked[1:, :, :-1] == stacked[:-1, :, 1:], axis=tuple(range(2, stacked.ndim)))
  if not np.all(moves_on | is_first[1:]):
    raise ValueError("frames of the observations are not those of the time step before, moved on")


def _finish(index: int, slot: _Slot) -> Collected:
  """Returns the episode of a slot whose parts are complete."""
  steps = {
    name: np.concatenate([part[name] for part in slot.parts])
    if len(slot.parts) > 1
    else slot.parts[0][name]
    for name in slot.parts[0]
  }
  # Nothing is done in the last observation: what the agent said of it led nowhere.
  for name in (*schema.ACTOR_FIELDS, schema.REWARD, schema.DISCOUNT):
    if name in steps:
      steps[name][-1] = 0
  return Collected(index, slot.index, slot.first_tick, steps)
