"""Stacking of frames that are stored one by one."""

import numpy as np


def stack(frames: np.ndarray, num_frames: int, new_axis: bool = False) -> np.ndarray:
  """Stacks each frame on those before it, oldest first; before the first, that one is repeated.

  So does envpool's Atari at a reset. With its `episodic_life`, which is off by default, it goes on with
  the frames of the life before, which are not in the episode.

  Args:
    frames: `[T, H, W]`, `[T, C, H, W]` or others, from the beginning of an episode or from
      `num_frames - 1` before the first that is wanted.
    num_frames: frames in a stack, at least 1.
    new_axis: whether pictures with channels get an axis of frames before that of the channels.

  Returns:
    `[T, num_frames * C, H, W]` for pictures with channels, else `[T, num_frames, ...]`.
  """
  index = np.arange(len(frames))[:, None] + np.arange(1 - num_frames, 1)
  stacked = frames[np.maximum(index, 0)]
  if frames.ndim == 4 and not new_axis:
    # [T, N, C, H, W] -> [T, N*C, H, W]
    stacked = stacked.reshape(len(frames), -1, *frames.shape[2:])
  return stacked
