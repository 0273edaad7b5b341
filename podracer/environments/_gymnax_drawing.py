"""Pictures of gymnax's tasks, drawn from their states without a window or a display."""

from collections.abc import Callable
from typing import Any

import numpy as np

from podracer.environments import _drawing

_INK = (52, 58, 72)
_STEEL = (120, 126, 140)
_WOOD = (202, 152, 101)
_BLUE = (64, 132, 214)
_RED = (222, 84, 84)
_GREEN = (72, 168, 96)
_YELLOW = (246, 196, 66)
_FREEWAY = (_drawing.GOLD, _drawing.DANGER, *[(110, 74, 74)] * 5)
_SEAQUEST = (
  _drawing.AGENT,  # front of the submarine
  (56, 128, 166),  # its back
  _drawing.PALE,  # own bullets
  (84, 88, 100),  # trails
  _drawing.DANGER,  # enemy bullets
  _drawing.GOAL,  # fish
  (180, 140, 255),  # enemy submarines
  (79, 140, 255),  # oxygen
  _drawing.GOLD,  # divers on board
  (255, 159, 74),  # divers
)
_ALIENS = (
  _drawing.AGENT,
  _drawing.GOAL,
  _drawing.GOAL,
  _drawing.GOAL,
  _drawing.PALE,
  _drawing.DANGER,
)


def minatar(observation: Any, game: str) -> np.ndarray:
  """Draws an observation of a MinAtar game, whose name contains `game`."""
  palettes = {"freeway": _FREEWAY, "seaquest": _SEAQUEST, "invaders": _ALIENS}
  for word, palette in palettes.items():
    if word in game.lower():
      return _drawing.channels(observation, palette)
  return _drawing.channels(observation)


def renderer(made: Any, params: Any) -> tuple[Callable[[Any], np.ndarray] | None, int]:
  """Returns what draws a state of a gymnax environment, or None, and frames per second."""
  name = made.name
  if "MinAtar" in name or name == "Pong-misc":
    import jax

    observe = jax.jit(lambda state: made.observe(jax.random.key(0), state, None, params))
    return lambda state: minatar(observe(state), name), 15
  if name in _GRIDS:
    draw = _GRIDS[name]
    return lambda state: _drawing.grid(draw(made, state)), 8
  if name in _SHAPES:
    draw_shapes = _SHAPES[name]
    return lambda state: draw_shapes(made, params, state), 30
  return None, 30


def _empty(height: int, width: int) -> np.ndarray:
  cells = np.empty((height, width, 3), np.uint8)
  cells[:] = _drawing.CELL
  return cells


def _catch(made: Any, state: Any) -> np.ndarray:
  cells = _empty(made.rows, made.columns)
  cells[int(state.paddle_y), int(state.paddle_x)] = _drawing.AGENT
  cells[int(state.ball_y), int(state.ball_x)] = _drawing.GOLD
  return cells


def _deep_sea(made: Any, state: Any) -> np.ndarray:
  cells = _empty(made.size, made.size)
  cells[np.triu_indices(made.size, 1)] = _drawing.BACKGROUND
  cells[-1, -1] = _drawing.GOLD
  row = min(int(state.row), made.size - 1)
  cells[row, min(int(state.column), made.size - 1)] = _drawing.AGENT
  return cells


def _maze(made: Any, state: Any) -> np.ndarray:
  is_wall = np.asarray(made.occupied_map) > 0
  cells = _empty(*is_wall.shape)
  cells[is_wall] = _drawing.WALL
  cells[int(state.goal[0]), int(state.goal[1])] = _drawing.GOAL
  cells[int(state.pos[0]), int(state.pos[1])] = _drawing.AGENT
  return cells


def _frozen_lake(made: Any, state: Any) -> np.ndarray:
  # Start, frozen, hole, goal, as gymnax numbers them.
  ice = np.array([(198, 219, 235), (170, 203, 228), (30, 60, 92), _drawing.GOAL], np.uint8)
  cells = ice[np.asarray(made.desc)]
  cells[divmod(int(state.position), made.ncol)] = _drawing.DANGER
  return cells


def _cart_pole(made: Any, params: Any, state: Any) -> np.ndarray:
  del made
  limit = float(params.x_threshold)
  canvas = _drawing.Canvas((-limit, limit), (-0.6, 0.55 * 2 * limit - 0.6))
  x, theta = float(state.x), float(state.theta)
  canvas.line([(-limit, 0), (limit, 0)], 0.02, _STEEL)
  canvas.polygon([(x - 0.4, 0), (x + 0.4, 0), (x + 0.4, 0.3), (x - 0.4, 0.3)], _INK)
  for wheel in (-0.22, 0.22):
    canvas.disc((x + wheel, -0.02), 0.09, _STEEL)
  # The parameter is half the pole's length; drawn at twice its size, as Gymnasium does.
  length = 4 * float(params.length) * 0.8
  top = (x + length * np.sin(theta), 0.28 + length * np.cos(theta))
  canvas.line([(x, 0.28), top], 0.13, _WOOD)
  canvas.disc((x, 0.28), 0.06, _BLUE)
  return canvas.picture()


def _acrobot(made: Any, params: Any, state: Any) -> np.ndarray:
  del made
  first, second = float(params.link_length_1), float(params.link_length_2)
  reach = 1.1 * (first + second)
  canvas = _drawing.Canvas((-reach, reach), (-reach, reach))
  canvas.line([(-reach, first), (reach, first)], 0.02, _GREEN)
  angle = float(state.joint_angle1)
  elbow = np.array([first * np.sin(angle), -first * np.cos(angle)])
  angle += float(state.joint_angle2)
  tip = elbow + np.array([second * np.sin(angle), -second * np.cos(angle)])
  canvas.line([(0, 0), elbow], 0.18, _BLUE)
  canvas.line([elbow, tip], 0.18, (104, 178, 232))
  canvas.disc((0, 0), 0.1, _YELLOW)
  canvas.disc(elbow, 0.1, _YELLOW)
  return canvas.picture()


def _pendulum(made: Any, params: Any, state: Any) -> np.ndarray:
  del made
  length = float(params.l)
  canvas = _drawing.Canvas((-1.3 * length, 1.3 * length), (-1.3 * length, 1.3 * length))
  angle = float(state.theta)  # 0 is upright
  tip = (-length * np.sin(angle), length * np.cos(angle))
  canvas.line([(0, 0), tip], 0.2 * length, _RED)
  canvas.disc((0, 0), 0.05 * length, _INK)
  return canvas.picture()


def _mountain_car(made: Any, params: Any, state: Any) -> np.ndarray:
  del made

  def height(x: Any) -> Any:
    return 0.45 * np.sin(3 * np.asarray(x)) + 0.55

  low, high = float(params.min_position), float(params.max_position)
  canvas = _drawing.Canvas((low, high), (0.0, 1.25), background=(214, 232, 246))
  xs = np.linspace(low, high, 96)
  hill = np.stack([xs, height(xs)], axis=1)
  canvas.polygon([(low, -1.0), *hill.tolist(), (high, -1.0)], (134, 178, 116))
  canvas.line(hill, 0.012, (84, 128, 72))
  goal = float(params.goal_position)
  foot = float(height(goal))
  canvas.line([(goal, foot), (goal, foot + 0.18)], 0.008, _INK)
  canvas.polygon([(goal, foot + 0.18), (goal + 0.08, foot + 0.15), (goal, foot + 0.12)], _RED)
  x = float(state.position)
  slope = np.arctan(1.35 * np.cos(3 * x))
  along = np.array([np.cos(slope), np.sin(slope)])
  across = np.array([-along[1], along[0]])
  base = np.array([x, float(height(x))])
  body = [(-0.075, 0.028), (0.075, 0.028), (0.07, 0.07), (0.035, 0.1), (-0.03, 0.1), (-0.07, 0.07)]
  canvas.polygon([base + a * along + b * across for a, b in body], _BLUE)
  for wheel in (-0.045, 0.045):
    canvas.disc(base + wheel * along + 0.024 * across, 0.024, _INK)
  return canvas.picture()


def _point_robot(made: Any, params: Any, state: Any) -> np.ndarray:
  del made
  radius, goal_radius = float(params.circle_radius), float(params.goal_radius)
  edge = 1.35 * radius
  canvas = _drawing.Canvas((-edge, edge), (-0.4 * radius, edge))
  angles = np.linspace(0, np.pi, 64)
  arc = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  canvas.line(arc, 0.012 * radius, _STEEL)
  canvas.disc(state.goal, goal_radius, (168, 218, 180))
  canvas.disc(state.pos, 0.05 * radius, _RED)
  return canvas.picture()


def _reacher(made: Any, params: Any, state: Any) -> np.ndarray:
  del params
  edge = 1.15 * made.num_joints
  canvas = _drawing.Canvas((-edge, edge), (-edge, edge))
  angles = np.asarray(state.angles)
  links = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  joints = np.concatenate([np.zeros((1, 2)), np.cumsum(links, axis=0)])
  canvas.disc(state.goal_xy, 0.14, _GREEN)
  canvas.line(joints, 0.12, _BLUE)
  for joint in joints:
    canvas.disc(joint, 0.09, _YELLOW)
  return canvas.picture()


def _swimmer(made: Any, params: Any, state: Any) -> np.ndarray:
  del made, params
  canvas = _drawing.Canvas((-1.5, 1.5), (-1.5, 1.5), background=(206, 230, 244))
  canvas.disc(state.goal_xy, 0.1, _GREEN)
  for urchin in np.asarray(state.urchin_xys):
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
      spike = urchin + 0.14 * np.array([np.cos(angle), np.sin(angle)])
      canvas.line([urchin, spike], 0.012, _INK)
    canvas.disc(urchin, 0.08, _INK)
  canvas.disc(state.xy, 0.07, _RED)
  return canvas.picture()


_GRIDS: dict[str, Callable[[Any, Any], np.ndarray]] = {
  "Catch-bsuite": _catch,
  "DeepSea-bsuite": _deep_sea,
  "FourRooms-misc": _maze,
  "FrozenLake-misc": _frozen_lake,
  "MetaMaze-misc": _maze,
}
_SHAPES: dict[str, Callable[[Any, Any, Any], np.ndarray]] = {
  "Acrobot-v1": _acrobot,
  "CartPole-v1": _cart_pole,
  "MountainCar-v0": _mountain_car,
  "MountainCarContinuous-v0": _mountain_car,
  "Pendulum-v1": _pendulum,
  "PointRobot-misc": _point_robot,
  "Reacher-misc": _reacher,
  "Swimmer-misc": _swimmer,
}
