"""Dark Room: where its rewards are, and when it ends."""

import jax
import pytest

from podracer import config, darkroom, environments, testing


def walk(made, actions):
  """Returns observations, rewards and ends of one episode."""
  step = jax.jit(made.step)
  state, observation = made.reset(jax.random.key(0))
  found = [(int(observation), None, False)]
  for action in actions:
    state, outcome = step(jax.random.key(0), state, action)
    found.append((int(outcome.observation), float(outcome.reward), bool(outcome.terminated)))
  return found


def test_it_keeps_the_contract():
  made = darkroom.dark_room(goal=3, size=3, num_steps=4)
  assert testing.check_environment(made, num_environments=2, num_steps=12) > 0


def test_a_walk_by_hand():
  """From the middle of 3 x 3, cell 4: up to 1, left to 0, against the wall, back to 1, and staying."""
  made = darkroom.dark_room(goal=1, size=3, num_steps=5)
  found = walk(made, [0, 2, 2, 3, 4])
  cells, rewards, ends = zip(*found, strict=True)
  assert cells == (4, 1, 0, 0, 1, 1)
  assert rewards[1:] == (1.0, 0.0, 0.0, 1.0, 1.0)
  assert ends == (False,) * 5 + (True,)


def test_it_is_made_by_name_with_its_goal():
  made = environments.make("podracer.darkroom:dark_room", goal=80)
  assert made.spec.observation.maximum == 80
  # Four steps down and four to the right.
  assert walk(made, [1] * 4 + [3] * 4)[-1][:2] == (80, 1.0)


def test_its_cell_by_row_and_column():
  made = environments.make("podracer.darkroom:dark_room", goal=1, size=3, coordinates=True)
  assert testing.check_environment(made, num_environments=2, num_steps=25) > 0
  assert {name: spec.maximum for name, spec in made.spec.observation.items()} == {
    "row": 2,
    "column": 2,
  }
  state, _ = made.reset(jax.random.key(0))
  # Up from the middle, where the goal is, and to the right.
  for action, place, reward in ((0, (0, 1), 1.0), (3, (0, 2), 0.0)):
    state, outcome = made.step(jax.random.key(0), state, action)
    assert (outcome.observation["row"], outcome.observation["column"]) == place
    assert outcome.reward == reward
  with pytest.raises(config.InputError, match="coordinates must be true or false, got 'yes'"):
    darkroom.dark_room(coordinates="yes")


@pytest.mark.parametrize("goal", [81, -1, 1.5, "x"])
def test_a_goal_outside_of_the_room(goal):
  with pytest.raises(config.InputError, match=r"goal must be a cell in 0 \.\. 80, got"):
    darkroom.dark_room(goal=goal)
