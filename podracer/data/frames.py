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
  return merge_channels(frames[np.maximum(index, 0)][None], new_axis)[0]


def merge_channels(stacked: np.ndarray, new_axis: bool) -> np.ndarray:
  """Joins the axis of frames and that of the channels of pictures that have channels.

  Args:
    stacked: `[B, T, N, C, H, W]`, or anything else `[B, T, N, ...]`, which is returned as it is.
    new_axis: see `stack`.
  """
  if stacked.ndim != 6 or new_axis:
    return stacked
  # [B, T, N, C, H, W] -> [B, T, N*C, H, W]
  return stacked.reshape(*stacked.shape[:2], -1, *stacked.shape[4:])
