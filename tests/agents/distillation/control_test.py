import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import distributions, types
from podracer.agents.distillation import control
from podracer.agents.distillation import teacher as teacher_lib

POLICY = distributions.make_distribution(types.DiscreteActions(2))
GAUSSIAN = distributions.make_distribution(types.ContinuousActions((-1.0,), (1.0,)))
BATCH = 20_000


def outputs(policy, student, teachers, key):
  """Returns what a student and its teachers say, the same in every row."""
  logits = jnp.tile(jnp.asarray(student, jnp.float32), (BATCH, 1))
  action = policy.sample(key, logits)
  output = types.ActorOutput(action, logits, policy.log_prob(logits, action), jnp.zeros(BATCH))
  theirs = jnp.tile(jnp.asarray(teachers, jnp.float32), (BATCH, 1, 1))
  said = teacher_lib.TeacherOutput(theirs, jnp.zeros(theirs.shape[:2]), policy.mode(theirs))
  return output, said


def mix(policy, student, teachers, share, is_there=None, explore=True):
  output, said = outputs(policy, student, teachers, jax.random.key(0))
  if is_there is None:
    is_there = [True] * len(teachers)
  there = jnp.tile(jnp.asarray(is_there), (BATCH, 1))
  key = jax.random.key(1)
  return output, control.mix(policy, jnp.asarray(share), there, key, output, said, explore)


STUDENT, TEACHER = np.log([0.9, 0.1]), np.log([0.2, 0.8])


@pytest.mark.parametrize(
  ("teachers", "share", "is_there", "expected"),
  [
    ([TEACHER], 0.0, None, 0.1),
    ([TEACHER], 1.0, None, 0.8),
    ([TEACHER], 0.5, None, 0.45),
    # Of two teachers each has the same chance; one that is not there has none.
    ([TEACHER, STUDENT], 1.0, None, 0.45),
    ([TEACHER, STUDENT], 1.0, [True, False], 0.8),
    ([TEACHER, STUDENT], 1.0, [False, False], 0.1),
  ],
)
def test_the_behaviour_policy_is_the_mixture(teachers, share, is_there, expected):
  _, mixed = mix(POLICY, STUDENT, teachers, share, is_there)
  probability = jnp.where(mixed.action == 1, expected, 1 - expected)
  np.testing.assert_allclose(jnp.exp(mixed.log_prob), probability, rtol=1e-5)
  np.testing.assert_allclose(jax.nn.softmax(mixed.logits)[:, 1], expected, rtol=1e-5)
  # Three standard errors of the frequency are 0.011.
  assert abs(np.mean(mixed.action) - expected) < 0.015


def test_a_student_alone_acts_as_without_teachers():
  output, mixed = mix(POLICY, STUDENT, [TEACHER], 0.0)
  np.testing.assert_array_equal(output.action, mixed.action)
  np.testing.assert_allclose(output.log_prob, mixed.log_prob, rtol=1e-6)


def test_greedily_the_best_actions_are_taken():
  _, mixed = mix(POLICY, STUDENT, [TEACHER], 1.0, explore=False)
  np.testing.assert_array_equal(mixed.action, 1)


def test_gaussians():
  student, teacher = [0.0, np.log(0.5)], [3.0, np.log(0.1)]
  _, mixed = mix(GAUSSIAN, student, [teacher], 0.25)
  action = mixed.action
  densities = [
    np.exp(GAUSSIAN.log_prob(jnp.tile(jnp.asarray(x, jnp.float32), (BATCH, 1)), action))
    for x in (student, teacher)
  ]
  np.testing.assert_allclose(
    np.exp(mixed.log_prob), 0.75 * densities[0] + 0.25 * densities[1], rtol=1e-3
  )
  # The two hardly overlap, so who acted shows; the logits are theirs.
  is_teacher = action[:, 0] > 2.0
  assert abs(np.mean(is_teacher) - 0.25) < 0.015
  np.testing.assert_allclose(mixed.logits[:, 0], jnp.where(is_teacher, 3.0, 0.0))
