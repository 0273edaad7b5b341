"""Sources for Grain: random access to windows, episodes and learning histories.

They only need what Grain asks of a source (`__len__`, `__getitem__`, `__repr__`); it shuffles, batches,
mixes tasks, and resumes (and takes a source for shuffling up to a length of 2**32):

  grain.MapDataset.source(source).shuffle(seed=0).batch(32).to_iter_dataset()
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from podracer import config

from . import dataset as dataset_lib

MASK = "mask"
"""Field of a window: `[length]`, False where it is filled up with zeros."""


class WindowSource:
  """Windows of a fixed length that lie in one episode; without weights each step is in equally many.

  An episode of N stored steps (T+1) has N + length - 1 windows: those that begin at one of its steps,
  and those that end before there are `length`. Both kinds are shorter where they stick out of the
  episode, and filled up at their end, so that the first and last steps are not seen less often.

  With weights (`sample_weight`) there are as many windows, and each episode has a number of them in
  proportion to its weight times those it would have: a step of weight 2 is in twice as many as one of
  weight 1. They are spread over the episode evenly, and come several times where there are more.
  """

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    length: int,
    names: Sequence[str] | None = None,
    frame_stack: int | None = None,
  ):
    """Makes a source.

    Args:
      dataset: the episodes, and their weights.
      length: steps of a window.
      names: fields wanted; all by default.
      frame_stack: see `Dataset.window`.
    """
    config.check_positive(length=length)
    self._dataset, self._length = dataset, length
    self._names, self._frame_stack = _checked(dataset, names), frame_stack
    self._num_windows_of = num_windows = dataset.stored_steps().astype(np.int64) + length - 1
    self._num_windows = int(num_windows.sum())
    weights = dataset.weights
    self._scale: np.ndarray | None = None
    if weights is not None:
      self._scale = weights * (self._num_windows / (weights @ num_windows))
    self._ends = np.cumsum(num_windows if self._scale is None else num_windows * self._scale)

  def __len__(self) -> int:
    return self._num_windows

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns name of a field -> `[length, *shape]`, and `mask`."""
    _check_index(index, self)
    i, start, length, _ = (int(x[0]) for x in self.places(np.array([index])))
    window = self._dataset.window(i, start, length, self._names, self._frame_stack)
    return pad(window, self._length)

  def places(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns where windows are, `[B]` each.

    Args:
      index: `[B]` numbers of windows.

    Returns:
      The episode of each, its first step, how many steps it may have, and those of the episode.
    """
    if self._scale is None:
      i = np.searchsorted(self._ends, index, side="right")
      number = index - self._ends[i] + self._num_windows_of[i]
    else:
      # The middle of what this index has of the mass of all windows.
      i = np.searchsorted(self._ends, index + 0.5, side="right")
      begin = self._ends[i] - self._num_windows_of[i] * self._scale[i]
      number = ((index + 0.5 - begin) / self._scale[i]).astype(np.int64)
      number = np.minimum(number, self._num_windows_of[i] - 1)
    start = number - self._length + 1
    num_steps = self._num_windows_of[i] - self._length + 1
    return i, np.maximum(start, 0), self._length + np.minimum(start, 0), num_steps

  def __repr__(self) -> str:
    """Grain compares it when it resumes."""
    return (
      f"WindowSource({self._dataset!r}, length={self._length}, names={self._names},"
      f" frame_stack={self._frame_stack})"
    )


class EpisodeSource:
  """Whole episodes, each once, whatever its weight."""

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    names: Sequence[str] | None = None,
    frame_stack: int | None = None,
  ):
    """Makes a source; see `WindowSource`."""
    self._dataset = dataset
    self._names, self._frame_stack = _checked(dataset, names), frame_stack

  def __len__(self) -> int:
    return len(self._dataset)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns name of a field -> `[T+1, *shape]`."""
    _check_index(index, self)
    return self._dataset.episode(int(index), self._names, self._frame_stack).steps

  def __repr__(self) -> str:
    """Grain compares it when it resumes."""
    return f"EpisodeSource({self._dataset!r}, names={self._names}, frame_stack={self._frame_stack})"


class HistorySource:
  """Windows of learning histories, across the borders of episodes; each step is in equally many.

  As `WindowSource`, with a history in place of an episode and without weights. A filtered dataset gives
  the episodes that are left, one after the other. With a stride a history is read as that many, each of
  every stride-th episode: who learns from these learns to get better faster than who made them (Laskin
  et al. 2022).
  """

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    length: int,
    names: Sequence[str] | None = None,
    frame_stack: int | None = None,
    stride: int = 1,
  ):
    """Makes a source; see `WindowSource`. Raises InputError where there is no history."""
    config.check_positive(length=length, stride=stride)
    ids = dataset.histories()
    config.check(bool(ids), f"{dataset.task} has no learning histories")
    self._dataset, self._length, self._stride = dataset, length, stride
    self._names, self._frame_stack = _checked(dataset, names), frame_stack
    self._histories = [part for i in ids for part in dataset.history(i).strided(stride)]
    steps = [int(history.ends[-1]) for history in self._histories]
    self._ends = np.cumsum(np.array(steps) + length - 1)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """Returns name of a field -> `[length, *shape]`, and `mask`."""
    _check_index(index, self)
    i = int(np.searchsorted(self._ends, index, side="right"))
    number = int(index) - (int(self._ends[i - 1]) if i else 0)
    start = number - self._length + 1
    window = self._dataset.history_window(
      self._histories[i],
      max(start, 0),
      self._length + min(start, 0),
      self._names,
      self._frame_stack,
    )
    return pad(window, self._length)

  def __repr__(self) -> str:
    """Grain compares it when it resumes."""
    return (
      f"HistorySource({self._dataset!r}, length={self._length}, names={self._names},"
      f" frame_stack={self._frame_stack}, stride={self._stride})"
    )


def pad(window: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
  """Fills up `[t, *shape]` fields with zeros to `[length, *shape]`, and adds `mask`."""
  num_steps = len(next(iter(window.values())))
  padded: dict[str, np.ndarray] = {MASK: np.arange(length) < num_steps}
  for name, value in window.items():
    if num_steps < length:
      filling = np.zeros((length - num_steps, *value.shape[1:]), value.dtype)
      value = np.concatenate([value, filling])
    padded[name] = value
  return padded


def _checked(dataset: dataset_lib.Dataset, names: Sequence[str] | None) -> tuple[str, ...] | None:
  """Returns the names of fields, all of which there are."""
  if names is None:
    return None
  config.check(bool(names), "no field of a step is wanted")
  dataset.check_names(names)
  return tuple(names)


def _check_index(index: int, source: Any) -> None:
  # IndexError is what ends a loop over a sequence.
  if not 0 <= index < len(source):
    raise IndexError(f"no index {index} in a source of {len(source)}")
