"""Pictures as PNG: bit-exact, and what other libraries take for a picture."""

import io

import numpy as np
from PIL import Image

from podracer.data import schema as schema_lib

CHANNELS = (1, 3, 4)


def is_picture(field: schema_lib.Field) -> bool:
  """Returns whether a PNG can hold a field: bytes `[H, W]`, or `[H, W, C]` of 1, 3 or 4 channels."""
  rank = len(field.shape)
  has_channels = rank == 3 and field.shape[2] in CHANNELS
  return field.dtype == "uint8" and (rank == 2 or has_channels) and 0 not in field.shape


def encode(frame: np.ndarray) -> bytes:
  """Returns the file of a picture `[H, W]` or `[H, W, C]`; a single channel has no axis in it."""
  file = io.BytesIO()
  picture = frame[..., 0] if frame.ndim == 3 and frame.shape[2] == 1 else frame
  Image.fromarray(picture).save(file, format="PNG")
  return file.getvalue()


def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the picture of a file, `shape` uint8."""
  with Image.open(io.BytesIO(data)) as picture:
    return np.asarray(picture, np.uint8).reshape(shape)
