import gymnasium
import numpy as np

from podracer import types
from podracer.environments import _spaces


def test_bounds_beyond_float32_are_none():
  # As envpool's VizDoom has them.
  low, high = np.finfo(np.float64).tiny, np.finfo(np.float64).max
  space = gymnasium.spaces.Box(
    np.array([low, -high, -0.1]), np.array([high, high, 0.1]), dtype=float
  )
  assert _spaces.action_spec("some:thing", space) == types.ContinuousActions(
    (low, -np.inf, -0.1), (np.inf, np.inf, 0.1)
  )
