"""How the steps of a task become tokens: which tokens a step has, and in which order; free of JAX.

  [reward]  observation tokens, keys in lexicographic order  separator  action tokens

See Reed et al. (2022), section 2.1. The reward, which arrived with the observation, is a token of
algorithm distillation only (Laskin et al. 2022).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from podracer import config as config_lib
from podracer.data import dataset as dataset_lib
from podracer.data import schema

from . import config

NUM_VALUES = 1024
"""Discrete values, and bins of continuous ones."""
_SCANNED_EPISODES = 64
_MASK = f"{schema.OBSERVATION}/action_mask"


class Part(NamedTuple):
  """One entry of the observation.

  Attributes:
    name: of the recorded field.
    kind: `discrete` and `continuous` have a token for each element in row-major order, an `image` one
      for each patch.
    shape: of the entry, frames stacked.
    scale: by which an image is divided.
  """

  name: str
  kind: Literal["discrete", "continuous", "image"]
  shape: tuple[int, ...]
  scale: float = 1.0

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    if len(self.shape) == 2:
      return (*self.shape, 1)  # type: ignore[return-value]
    return (*self.shape[1:], self.shape[0]) if self.is_channel_first else self.shape  # type: ignore[return-value]

  @property
  def is_channel_first(self) -> bool:
    """True for an image `[C, H, W]`: its first axis is shorter than its last."""
    return len(self.shape) == 3 and self.shape[0] < self.shape[-1]


class Layout(NamedTuple):
  """The tokens of a step of one task.

  Attributes:
    parts: of the observation, in the order of their tokens.
    num_actions: of discrete actions, 0 for continuous ones.
    action_size: action tokens: 1, or the dimensions of a continuous action.
    patch_size: sides of a patch.
    has_reward: True where a step begins with the reward that arrived with it.
    frame_stack: frames that the observation stacks.
  """

  parts: tuple[Part, ...]
  num_actions: int
  action_size: int
  patch_size: int
  has_reward: bool = False
  frame_stack: int = 1

  def num_tokens(self, part: Part) -> int:
    """Returns the tokens of an entry of the observation."""
    if part.kind != "image":
      return math.prod(part.shape)
    height, width, _ = part.image_shape
    return math.ceil(height / self.patch_size) * math.ceil(width / self.patch_size)

  @property
  def observation_tokens(self) -> int:
    """Tokens of an observation."""
    return sum(map(self.num_tokens, self.parts))

  @property
  def action_start(self) -> int:
    """Place of the first action token in a step; the separator stands before it."""
    return self.has_reward + self.observation_tokens + 1

  @property
  def step_tokens(self) -> int:
    """Tokens of a step."""
    return self.action_start + self.action_size

  @property
  def num_channels(self) -> int:
    """Channels of the image that has most of them, 0 without images."""
    return max((p.image_shape[2] for p in self.parts if p.kind == "image"), default=0)

  @property
  def fields(self) -> tuple[str, ...]:
    """Recorded fields that are read."""
    more = (schema.REWARD,) if self.has_reward else ()
    return (*(part.name for part in self.parts), schema.ACTION, schema.IS_LAST, *more)

  def steps_per_sequence(self, context: int) -> int:
    """Returns the whole steps that fit in a context."""
    return context // self.step_tokens


class Sizes(NamedTuple):
  """What the parameters must be large enough for: the maxima over all tasks.

  Attributes:
    channels: of an image.
    observation: tokens of an observation.
    action: tokens of an action.
  """

  channels: int
  observation: int
  action: int


def sizes(layouts: Iterable[Layout]) -> Sizes:
  """Returns the maxima over tasks."""
  layouts = tuple(layouts)
  return Sizes(
    channels=max(layout.num_channels for layout in layouts),
    observation=max(layout.observation_tokens for layout in layouts),
    action=max(layout.action_size for layout in layouts),
  )


def from_dataset(dataset: dataset_lib.Dataset, settings: config.GeneralistConfig) -> Layout:
  """Reads from recorded data what a step of a task looks like.

  Arrays of rank 2 and 3 are images. Whole numbers that lie in [0, 1024), as far as a sample of the
  episodes shows, are discrete, everything else is continuous. The mask of legal actions is no token.

  Args:
    dataset: of the task.
    settings: of the generalist.

  Raises:
    InputError: for data without actions, actions that there are too many of, and steps that are longer
      than the context.
  """
  fields = {field.name: field for field in dataset.schema.fields}
  config_lib.check(schema.ACTION in fields, f"{dataset.task} has no field {schema.ACTION}")
  stacks = sorted({int(stack) for stack in dataset.column("frame_stack")})
  config_lib.check(
    len(stacks) == 1, f"{dataset.task} was recorded with several frame stacks: {stacks}"
  )
  prefix = (schema.OBSERVATION, f"{schema.OBSERVATION}/")
  names = [n for n in sorted(fields) if (n == prefix[0] or n.startswith(prefix[1])) and n != _MASK]
  config_lib.check(bool(names), f"{dataset.task} has no observation to read")
  seen = _ranges(dataset, [*names, schema.ACTION], stacks[0])
  num_actions, action_size = _action_sizes(dataset, fields, seen[schema.ACTION].high)
  layout = Layout(
    parts=tuple(_make_part(name, fields[name].dtype, seen[name]) for name in names),
    num_actions=num_actions,
    action_size=action_size,
    patch_size=settings.patch_size,
    has_reward=settings.histories,
    frame_stack=stacks[0],
  )
  config_lib.check(
    layout.step_tokens <= settings.context,
    f"a step of {dataset.task} has {layout.step_tokens} tokens, more than config.context="
    f"{settings.context}",
  )
  return layout


class _Range(NamedTuple):
  """Shape of a field with its frames stacked, and its least and greatest value in a sample."""

  shape: tuple[int, ...]
  low: float
  high: float


def _ranges(dataset: dataset_lib.Dataset, names: list[str], frame_stack: int) -> dict[str, _Range]:
  """Returns the ranges of fields over a sample of the episodes, spread evenly."""
  found: dict[str, _Range] = {}
  chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), _SCANNED_EPISODES)).astype(int)
  for i in chosen:
    steps = dataset.episode(int(i), names, frame_stack if frame_stack > 1 else None).steps
    for name, value in steps.items():
      low, high = float(np.min(value)), float(np.max(value))
      if name in found:
        low, high = min(low, found[name].low), max(high, found[name].high)
      found[name] = _Range(tuple(value.shape[1:]), low, high)
  return found


def _make_part(name: str, dtype: str, seen: _Range) -> Part:
  if len(seen.shape) in (2, 3):
    is_bytes = dtype == "uint8" and seen.high > NUM_VALUES // 8
    scale = 255.0 if is_bytes else max(abs(seen.low), abs(seen.high)) or 1.0
    return Part(name, "image", seen.shape, scale)
  is_whole = np.dtype(dtype).kind in "biu"
  is_discrete = is_whole and seen.low >= 0 and seen.high < NUM_VALUES
  return Part(name, "discrete" if is_discrete else "continuous", seen.shape)


def _action_sizes(
  dataset: dataset_lib.Dataset, fields: Mapping[str, schema.Field], highest: float
) -> tuple[int, int]:
  """Returns how many discrete actions there are, or 0, and the tokens of an action."""
  field = fields[schema.ACTION]
  if np.dtype(field.dtype).kind == "f":
    return 0, math.prod(field.shape)
  # The behaviour policy says how many there are, the actions that were taken only how many at least.
  logits = fields.get(schema.POLICY_LOGITS)
  num_actions = logits.shape[0] if logits is not None else int(highest) + 1
  config_lib.check(
    not field.shape and num_actions <= NUM_VALUES,
    f"{dataset.task} has {num_actions} discrete actions; a token is one of at most {NUM_VALUES}",
  )
  return num_actions, 1


def to_json(layout: Layout) -> dict[str, Any]:
  """Returns a layout as plain JSON values."""
  return {**layout._asdict(), "parts": [part._asdict() for part in layout.parts]}


def from_json(values: Mapping[str, Any]) -> Layout:
  """Returns the layout of which `to_json` made the values."""
  parts = tuple(Part(**{**part, "shape": tuple(part["shape"])}) for part in values["parts"])
  return Layout(**{**values, "parts": parts})
