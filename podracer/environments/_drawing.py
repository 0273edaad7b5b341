"""Pictures of environments on the host: crisp grids, and shapes with smooth edges.

Sizes are multiples of 16, which video encoders want.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BACKGROUND: Colour = (22, 24, 31)
CELL: Colour = (32, 35, 44)
WALL: Colour = (96, 101, 115)
AGENT: Colour = (94, 200, 248)
GOAL: Colour = (98, 210, 111)
DANGER: Colour = (240, 92, 92)
GOLD: Colour = (255, 201, 77)
PALE: Colour = (236, 238, 242)
PALETTE: tuple[Colour, ...] = (
  AGENT,
  DANGER,
  (122, 127, 140),
  GOLD,
  (180, 140, 255),
  GOAL,
  (255, 159, 74),
  (79, 140, 255),
  PALE,
  (232, 111, 197),
)
"""Colours of the channels of a grid observation, in their order."""

_SIZE = 384


def grid(cells: np.ndarray, gap: int = 1) -> np.ndarray:
  """Draws cells as squares.

  Args:
    cells: `[H, W, 3]` colours.
    gap: pixels of background between neighbours.

  Returns:
    A picture of about 384 pixels a side, `[16 n, 16 m, 3]` uint8.
  """
  height, width = cells.shape[:2]
  side = max(1, _SIZE // max(height, width))
  picture = np.repeat(np.repeat(cells.astype(np.uint8), side, axis=0), side, axis=1)
  if gap and side >= 6:
    for start in range(gap):
      picture[start::side] = BACKGROUND
      picture[:, start::side] = BACKGROUND
  return pad(picture)


def channels(observation: Any, colours: Sequence[Colour] = PALETTE) -> np.ndarray:
  """Draws a `[H, W, C]` observation of one channel a kind of thing; the first channel is on top."""
  planes = np.asarray(observation) > 0
  cells = np.empty((*planes.shape[:2], 3), np.uint8)
  cells[:] = CELL
  for channel in reversed(range(planes.shape[2])):
    cells[planes[..., channel]] = colours[channel % len(colours)]
  return grid(cells)


def pad(picture: np.ndarray, colour: Colour = BACKGROUND) -> np.ndarray:
  """Returns a picture centred on a canvas whose sizes are multiples of 16."""
  height, width = picture.shape[:2]
  rows, columns = -height % 16, -width % 16
  if not rows and not columns:
    return np.ascontiguousarray(picture)
  padded = np.empty((height + rows, width + columns, 3), np.uint8)
  padded[:] = colour
  padded[rows // 2 : rows // 2 + height, columns // 2 : columns // 2 + width] = picture
  return padded


def enlarge(picture: np.ndarray) -> np.ndarray:
  """Returns a small picture enlarged by a whole number to about 384 pixels a side."""
  times = max(1, _SIZE // max(picture.shape[:2]))
  return pad(np.repeat(np.repeat(picture, times, axis=0), times, axis=1))


def shrink(picture: np.ndarray, most: int = 512) -> np.ndarray:
  """Returns a picture scaled down to at most `most` pixels a side."""
  scale = min(1.0, most / max(picture.shape[:2]))
  height, width = (round(size * scale) for size in picture.shape[:2])
  image = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
  return pad(np.asarray(image), (255, 255, 255))


def tiles(values: np.ndarray, colours: Sequence[Colour], labels: np.ndarray) -> np.ndarray:
  """Draws a board of rounded tiles with text: `values` `[H, W]` index colours, `labels` are shown."""
  height, width = values.shape
  side = _SIZE // max(height, width)
  image = Image.new("RGB", (width * side, height * side), BACKGROUND)
  draw = ImageDraw.Draw(image)
  for row in range(height):
    for column in range(width):
      x, y = column * side, row * side
      colour = colours[min(int(values[row, column]), len(colours) - 1)]
      draw.rounded_rectangle((x + 4, y + 4, x + side - 4, y + side - 4), side // 10, fill=colour)
      text = str(labels[row, column])
      font = ImageFont.load_default(size=side / max(2.4, 0.75 * len(text)))
      ink = (40, 40, 48) if sum(colour) > 380 else PALE
      draw.text((x + side / 2, y + side / 2), text, fill=ink, font=font, anchor="mm")
  return pad(np.asarray(image))


class Canvas:
  """A picture in the coordinates of a task, y upwards; drawn thrice as large and then scaled down."""

  _SCALE = 3

  def __init__(
    self,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    background: Colour = (248, 249, 251),
  ):
    """Makes an empty canvas whose longer side has 384 pixels.

    Args:
      x_range: least and greatest x shown.
      y_range: least and greatest y shown.
      background: its colour.
    """
    extent = (x_range[1] - x_range[0], y_range[1] - y_range[0])
    per_unit = _SIZE / max(extent)
    width, height = (max(16, round(length * per_unit / 16) * 16) for length in extent)
    self._size = (width, height)
    self._per_unit = self._SCALE * per_unit
    self._corner = (x_range[0], y_range[1])
    self._image = Image.new("RGB", (self._SCALE * width, self._SCALE * height), background)
    self._draw = ImageDraw.Draw(self._image)

  def _pixels(self, points: Any) -> list[tuple[float, float]]:
    return [
      ((x - self._corner[0]) * self._per_unit, (self._corner[1] - y) * self._per_unit)
      for x, y in np.asarray(points, np.float64).reshape(-1, 2)
    ]

  def line(self, points: Any, width: float, colour: Colour) -> None:
    """Draws a line with round ends through `[n, 2]` points; `width` in units of the task."""
    pixels = self._pixels(points)
    thickness = max(self._SCALE, round(width * self._per_unit))
    self._draw.line(pixels, fill=colour, width=thickness, joint="curve")
    for x, y in (pixels[0], pixels[-1]):
      r = thickness / 2
      self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

  def disc(self, centre: Any, radius: float, colour: Colour) -> None:
    """Draws a disc."""
    ((x, y),) = self._pixels(centre)
    r = radius * self._per_unit
    self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

  def polygon(self, points: Any, colour: Colour) -> None:
    """Draws a filled polygon through `[n, 2]` points."""
    self._draw.polygon(self._pixels(points), fill=colour)

  def picture(self) -> np.ndarray:
    """Returns the picture, `[H, W, 3]` uint8."""
    return np.asarray(self._image.resize(self._size, Image.Resampling.LANCZOS))
