"""Dark Room: a grid whose goal is never seen, the family of tasks of algorithm distillation.

Laskin et al. (2022), section 4. The goal is an option, so that each is a task of its own, and whoever acts
well in one that it has not seen has found the goal out by its rewards:

  podracer train --env=podracer.darkroom:dark_room --env_options goal=17
"""

import jax.numpy as jnp

from podracer import config, types
from podracer import environment as environment_lib

# Up, down, left, right, and staying.
_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))


def dark_room(
  goal: int = 0, size: int = 9, num_steps: int = 20, coordinates: bool = False
) -> environment_lib.Environment:
  """Makes a room.

  Args:
    goal: cell of the goal, row * size + column.
    size: sides of the room.
    num_steps: of an episode, which then ends; it begins in the middle of the room.
    coordinates: True observes `{"row": ..., "column": ...}`, so that what is learnt for some cells carries
      over to others, and False the number of the cell.

  Returns:
    An environment that observes the cell it is in, with a reward of 1 for each step that ends at the goal.

  Raises:
    config.InputError: for a goal outside of the room, and `coordinates` that are neither True nor False.
  """
  config.check_positive(size=size, num_steps=num_steps)
  config.check(
    isinstance(coordinates, bool),
    f"dark_room: coordinates must be true or false, got {coordinates!r}",
  )
  config.check(
    isinstance(goal, int) and 0 <= goal < size**2,
    f"dark_room: goal must be a cell in 0 .. {size**2 - 1}, got {goal!r}",
  )
  moves = jnp.asarray(_MOVES, jnp.int32)
  middle = jnp.full((2,), size // 2, jnp.int32)

  def cell(place: types.Array) -> types.Array:
    return place[0] * size + place[1]

  def observe(place: types.Array) -> types.Observation:
    return {"row": place[0], "column": place[1]} if coordinates else cell(place)

  def reset(key: types.Key) -> tuple[environment_lib.EnvironmentState, types.Observation]:
    del key
    return (middle, jnp.zeros((), jnp.int32)), observe(middle)

  def step(
    key: types.Key, state: environment_lib.EnvironmentState, action: types.Array
  ) -> tuple[environment_lib.EnvironmentState, environment_lib.Outcome]:
    del key
    place, count = state
    place = jnp.clip(place + moves[action], 0, size - 1)
    outcome = environment_lib.Outcome(
      observation=observe(place),
      reward=(cell(place) == goal).astype(jnp.float32),
      terminated=count + 1 >= num_steps,
      truncated=jnp.zeros((), bool),
    )
    return (place, count + 1), outcome

  def entry(number: int) -> types.ArraySpec:
    return types.ArraySpec((), jnp.dtype("int32"), 0, number - 1)

  return environment_lib.Environment(
    spec=types.EnvironmentSpec(
      name="dark_room",
      observation={"row": entry(size), "column": entry(size)} if coordinates else entry(size**2),
      action=types.DiscreteActions(len(_MOVES)),
    ),
    reset=reset,
    step=step,
  )
