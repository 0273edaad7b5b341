import jax.numpy as jnp
import numpy as np
import pytest

from podracer.agents import distillation
from podracer.agents.distillation import schedules


def make(schedule, **values):
  values = {"distillation_cost": 2.0, "distillation_steps": 4, **values}
  return distillation.DistillationConfig(distillation_schedule=schedule, **values)


def after(config, advantages, num_teachers=1):
  """Returns the progress after batches of the given mean advantages, None where none was seen."""
  progress = schedules.initial_progress(num_teachers)
  for row in advantages:
    weight = jnp.asarray([0.0 if value is None else 0.5 for value in row])
    summed = jnp.asarray([0.0 if value is None else 0.5 * value for value in row])
    batch = schedules.AdvantageStatistics(weight=weight, advantage=summed)
    progress = schedules.update(config, progress, batch)
  return progress


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    ("constant", [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
    ("linear", [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
    ("cosine", [2.0, 1.0 + np.sqrt(0.5), 1.0, 1.0 - np.sqrt(0.5), 0.0, 0.0]),
  ],
)
def test_lambda_by_gradient_steps(schedule, expected):
  config = make(schedule)
  found = [schedules.lambdas(config, after(config, [[1.0]] * n))[0] for n in range(6)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_teacher_ends_once_it_is_passed_and_for_good():
  config = make("until_passed")
  # At the fourth step the average is judged for the first time.
  assert schedules.lambdas(config, after(config, [[5.0]] * 3))[0] == 2.0
  assert schedules.lambdas(config, after(config, [[5.0]] * 4))[0] == 0.0
  assert schedules.lambdas(config, after(config, [[-5.0]] * 9))[0] == 2.0
  assert schedules.lambdas(config, after(config, [[5.0]] * 4 + [[-99.0]] * 9))[0] == 0.0


def test_each_teacher_is_judged_by_itself():
  config = make("until_passed")
  progress = after(config, [[1.0, -1.0, None]] * 5, num_teachers=3)
  np.testing.assert_array_equal(schedules.lambdas(config, progress), [0.0, 2.0, 2.0])
  np.testing.assert_allclose(schedules.mean_advantage(progress), [1.0, -1.0, 0.0], rtol=1e-6)


def test_the_average_moves_and_has_no_bias_at_the_beginning():
  config = make("until_passed")
  progress = after(config, [[8.0], [0.0]])
  # Weights 1/4 and 1/4 * 3/4 of what came: 8 * 3/16 over 7/16.
  np.testing.assert_allclose(schedules.mean_advantage(progress), [8.0 * 3 / 7], rtol=1e-6)


def test_who_controls():
  progress = after(make("constant"), [[0.0]] * 3)
  assert schedules.teacher_control(make("constant"), progress) == 0.0
  assert schedules.teacher_control(make("constant", control="teacher"), progress) == 1.0
  mixture = make("constant", control="mixture", control_steps=4)
  np.testing.assert_allclose(schedules.teacher_control(mixture, progress), 0.25)
  late = after(mixture, [[0.0]] * 9)
  assert schedules.teacher_control(mixture, late) == 0.0
