"""Windows of episodes that are held in memory: a batch is one lookup a field.

To read a window from its files takes some half a millisecond; a small agent learns from it in a hundredth of
that. So what fits in memory is read once.
"""

from collections.abc import Sequence

import numpy as np

from . import dataset as dataset_lib
from . import frames, schema, sources


def num_bytes(dataset: dataset_lib.Dataset, names: Sequence[str] | None = None) -> int:
  """Returns the bytes that the steps of a dataset take in memory."""
  wanted = [field for field in dataset.schema.fields if names is None or field.name in names]
  size = sum(int(np.prod(f.shape)) * np.dtype(f.dtype).itemsize for f in wanted)
  return size * int(dataset.stored_steps().sum())


class LoadedWindows:
  """The windows of a `sources.WindowSource`, of which all steps are in memory."""

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    length: int,
    names: Sequence[str] | None = None,
    frame_stack: int | None = None,
  ):
    """Reads all episodes; the arguments are those of `WindowSource`."""
    self._source = sources.WindowSource(dataset, length, names, frame_stack)
    self._length, self._frame_stack = length, frame_stack
    num_steps = dataset.stored_steps()
    self._first = np.cumsum(num_steps) - num_steps
    self._fields: dict[str, np.ndarray] = {}
    for first, episode in zip(self._first, dataset.episodes(names), strict=True):
      for name, value in episode.steps.items():
        if name not in self._fields:
          self._fields[name] = np.empty((int(num_steps.sum()), *value.shape[1:]), value.dtype)
        self._fields[name][first : first + len(value)] = value
    # What the recorder took apart had an axis of frames by itself.
    self._new_axis = bool(np.all(dataset.column("frame_stack") > 1))

  def __len__(self) -> int:
    return len(self._source)

  def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
    """Returns windows as one batch, filled up with zeros.

    Args:
      index: `[B]` numbers of windows, each in [0, len(self)).

    Returns:
      name of a field -> `[B, length, *shape]`, and `mask`; as `WindowSource` gives them one by one.
    """
    episodes, starts, lengths, num_steps = self._source.places(index)
    time = np.arange(self._length)
    mask = time < np.minimum(lengths, num_steps - starts)[:, None]  # [B, length]
    first = self._first[episodes][:, None]
    steps = np.where(mask, first + starts[:, None] + time, first)
    batch: dict[str, np.ndarray] = {sources.MASK: mask}
    for name, values in self._fields.items():
      if name == schema.OBSERVATION and self._frame_stack is not None:
        taken = self._stacked(values, steps, first, self._frame_stack)
      else:
        taken = values[steps]
      taken[~mask] = 0
      batch[name] = taken
    return batch

  def _stacked(
    self, values: np.ndarray, steps: np.ndarray, first: np.ndarray, num_frames: int
  ) -> np.ndarray:
    """Returns each frame with those before it, none from before its episode; see `frames.stack`."""
    index = steps[..., None] + np.arange(1 - num_frames, 1)
    stacked = values[np.maximum(index, first[..., None])]  # [B, length, N, ...]
    return frames.merge_channels(stacked, self._new_axis)
