"""From gymnasium's spaces, which envpool speaks too, to our specs."""

from typing import Any

import numpy as np

from podracer import config, types
from podracer.environments import _adapt

# 64-bit numbers are read as 32-bit ones: JAX has no others by default.
_NARROWED = {"float64": "float32", "float16": "float32", "int64": "int32", "uint64": "int32"}


def observation_spec(name: str, space: Any) -> Any:
  """Returns the spec of an observation space: an ArraySpec, or a dict of them.

  Args:
    name: of the environment, for the message.
    space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them.

  Raises:
    InputError: for any other space.
  """
  kind = type(space).__name__
  if kind == "Dict":
    return {key: observation_spec(name, part) for key, part in space.spaces.items()}
  if kind == "Tuple":
    return {str(i): observation_spec(name, part) for i, part in enumerate(space.spaces)}
  if kind == "Discrete":
    return types.ArraySpec(
      (), np.dtype("int32"), float(space.start), float(space.start + space.n - 1)
    )
  if kind == "MultiBinary":
    return types.ArraySpec(tuple(space.shape), np.dtype("float32"), 0.0, 1.0)
  config.check(
    kind in ("Box", "MultiDiscrete"),
    f"environment {name} has an observation space that is not supported: {space}; supported: Box, "
    "Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them",
  )
  dtype = np.dtype(_NARROWED.get(str(space.dtype), str(space.dtype)))
  if dtype.kind == "f" or kind == "MultiDiscrete":
    # Bounds of floats are as often wrong as right, and nothing is scaled by them.
    return types.ArraySpec(tuple(space.shape), np.dtype("float32"))
  low, high = (None, None) if dtype.kind == "b" else (space.low, space.high)
  return _adapt.array_spec(space.shape, dtype, low, high)


def action_spec(name: str, space: Any) -> types.ActionSpec:
  """Returns the spec of an action space: Discrete, or a Box, taken flat.

  Raises:
    InputError: for any other space.
  """
  kind = type(space).__name__
  if kind == "Discrete":
    return types.DiscreteActions(int(space.n))
  config.check(
    kind == "Box" and np.issubdtype(space.dtype, np.floating),
    f"environment {name} has an action space that is not supported: {space}; supported: Discrete and "
    "a Box of floats",
  )
  return _adapt.box_actions(space.low, space.high, space.shape)


def to_observation(spec: Any, value: Any) -> types.Observation:
  """Returns a batch of observations in the structure and the dtypes of their spec, copying to cast."""
  if isinstance(spec, dict):
    items = value.values() if isinstance(value, dict) else value
    by_name = value if isinstance(value, dict) else dict(zip(spec, items, strict=True))
    return {name: to_observation(part, by_name[name]) for name, part in spec.items()}
  return np.asarray(value, dtype=spec.dtype)


def to_action(spec: types.ActionSpec, space: Any, action: np.ndarray) -> np.ndarray:
  """Returns a batch of our actions as the space wants them: its shape, its dtype, inside its bounds."""
  if isinstance(spec, types.DiscreteActions):
    start = getattr(space, "start", 0)
    return (action + start if start else action).astype(space.dtype, copy=False)
  # [B, k] -> [B, *shape]
  clipped = np.clip(action, np.asarray(spec.minimum), np.asarray(spec.maximum))
  return clipped.reshape(len(action), *space.shape).astype(space.dtype, copy=False)
