import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import distributions, types
from podracer.agents.distillation import losses

CATEGORICAL = distributions.make_distribution(types.DiscreteActions(3))
GAUSSIAN = distributions.make_distribution(types.ContinuousActions((-1.0, -1.0), (1.0, 1.0)))
KINDS = ("kl", "reverse_kl", "reverse_cross_entropy", "nll", "mse")
TEACHER = np.asarray([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
STUDENT = np.asarray([[0.0, 1.0, 0.0], [-2.0, 0.1, 1.0]])
ACTION = np.asarray([0, 2])
MASKED = -1e9


def softmax(x):
  weights = np.exp(x - x.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True)


def reference(kind, student, teacher, action):
  """Sums over the actions of one step, as the papers write them."""
  p, q = softmax(teacher), softmax(student)
  found = []
  for t in range(len(p)):
    if kind == "kl":
      found.append(sum(p[t, a] * (np.log(p[t, a]) - np.log(q[t, a])) for a in range(3)))
    elif kind == "reverse_kl":
      found.append(sum(q[t, a] * (np.log(q[t, a]) - np.log(p[t, a])) for a in range(3)))
    elif kind == "reverse_cross_entropy":
      found.append(sum(-q[t, a] * np.log(p[t, a]) for a in range(3)))
    elif kind == "nll":
      found.append(-np.log(q[t, action[t]]))
    else:
      error = (student[t] - student[t].mean()) - (teacher[t] - teacher[t].mean())
      found.append(np.mean(error**2))
  return found


def call(kind, student, teacher, action, policy=CATEGORICAL):
  return losses.policy_loss(
    kind, policy, jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32), action
  )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jit", [False, True])
def test_against_a_reference(kind, jit):
  function = jax.jit(call, static_argnums=0) if jit else call
  found = function(kind, STUDENT, TEACHER, ACTION)
  np.testing.assert_allclose(found, reference(kind, STUDENT, TEACHER, ACTION), rtol=1e-5)


def test_by_hand():
  """Teacher (3/4, 1/4), student (1/2, 1/2)."""
  policy = distributions.make_distribution(types.DiscreteActions(2))
  teacher, student = np.log([[0.75, 0.25]]), np.log([[0.5, 0.5]])
  expected = {
    "kl": 0.75 * np.log(1.5) + 0.25 * np.log(0.5),
    "reverse_kl": 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25),
    "reverse_cross_entropy": -0.5 * np.log(0.75) - 0.5 * np.log(0.25),
    "nll": np.log(2.0),
    # Logits less their means are +-log(3)/2 and 0.
    "mse": (np.log(3.0) / 2) ** 2,
  }
  for kind, value in expected.items():
    found = call(kind, student, teacher, np.asarray([0]), policy)
    np.testing.assert_allclose(found, [value], rtol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "mse"])
def test_nothing_is_lost_where_both_are_the_same(kind):
  np.testing.assert_allclose(call(kind, TEACHER + 7.0, TEACHER, ACTION), 0.0, atol=1e-6)
  gradient = jax.grad(lambda x: jnp.sum(call(kind, x, TEACHER, ACTION)))(jnp.asarray(TEACHER))
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_the_gradient_of_kl_is_that_of_the_cross_entropy():
  gradient = jax.grad(lambda x: jnp.sum(call("kl", x, TEACHER, ACTION)))(jnp.asarray(STUDENT))
  np.testing.assert_allclose(gradient, softmax(STUDENT) - softmax(TEACHER), rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
  for kind in ("kl", "reverse_kl", "reverse_cross_entropy", "mse"):
    gradient = jax.grad(lambda x, k=kind: jnp.sum(call(k, STUDENT, x, ACTION)))(
      jnp.asarray(TEACHER)
    )
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_cold_teacher_is_its_best_action():
  cold = losses.temper(jnp.asarray(TEACHER), 1e-3, is_discrete=True)
  np.testing.assert_allclose(
    call("kl", STUDENT, cold, ACTION), call("nll", STUDENT, TEACHER, ACTION), rtol=1e-5
  )


def test_a_hot_teacher_is_uniform_over_the_actions_allowed():
  masked = TEACHER.copy()
  masked[:, 1] = MASKED
  hot = losses.temper(jnp.asarray(masked), 1e6, is_discrete=True)
  np.testing.assert_allclose(softmax(np.asarray(hot)), [[0.5, 0.0, 0.5]] * 2, atol=1e-5)
  # What recorded data holds, in half precision, is masked as well.
  recorded = jnp.asarray(np.maximum(masked, np.finfo(np.float16).min), jnp.float32)
  hot = losses.temper(recorded, 1e6, is_discrete=True)
  np.testing.assert_allclose(softmax(np.asarray(hot)), [[0.5, 0.0, 0.5]] * 2, atol=1e-5)


def test_the_temperature_of_a_gaussian_is_that_of_its_density():
  """N(m, s^2) to the power of 1/4 is, up to a constant, N(m, 4 s^2)."""
  logits = jnp.asarray([[0.3, -0.2, jnp.log(0.5), jnp.log(2.0)]])
  tempered = losses.temper(logits, 4.0, is_discrete=False)
  np.testing.assert_allclose(tempered, [[0.3, -0.2, 0.0, np.log(4.0)]], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_actions_cost_nothing(kind):
  """With an action that both can't take, the loss is that of the two others."""
  policy = distributions.make_distribution(types.DiscreteActions(2))
  pick = [0, 2]
  action = np.asarray([0, 2])
  expected = call(kind, STUDENT[:, pick], TEACHER[:, pick], np.asarray([0, 1]), policy)
  student, teacher = STUDENT.copy(), TEACHER.copy()
  student[:, 1] = teacher[:, 1] = MASKED
  np.testing.assert_allclose(call(kind, student, teacher, action), expected, rtol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(call(kind, x, teacher, action)))(
    jnp.asarray(student, jnp.float32)
  )
  assert np.all(np.isfinite(gradient))
  np.testing.assert_array_equal(gradient[:, 1], 0.0)


def test_an_action_the_teacher_never_takes_has_a_bounded_cost():
  teacher = TEACHER.copy()
  teacher[:, 1] = MASKED
  found = call("reverse_cross_entropy", np.asarray([[0.0, 30.0, 0.0]] * 2), teacher, ACTION)
  np.testing.assert_allclose(found, [20.0, 20.0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["kl", "reverse_kl", "reverse_cross_entropy"])
def test_gaussians_by_quadrature(kind):
  teacher = np.asarray([[0.2, -0.3, np.log(0.4), np.log(0.8)]])
  student = np.asarray([[-0.1, 0.5, np.log(0.7), np.log(0.5)]])
  nodes, weights = np.polynomial.hermite_e.hermegauss(20)
  first = student if kind.startswith("reverse") else teacher
  expected = 0.0
  for (i, x), (j, y) in itertools.product(enumerate(nodes), repeat=2):
    action = first[0, :2] + np.exp(first[0, 2:]) * np.asarray([x, y])
    weight = weights[i] * weights[j] / weights.sum() ** 2
    log_p, log_q = (log_density(logits[0], action) for logits in (teacher, student))
    value = {
      "kl": log_p - log_q,
      "reverse_kl": log_q - log_p,
      "reverse_cross_entropy": -log_p,
    }[kind]
    expected += weight * value
  found = call(kind, student, teacher, np.zeros((1, 2)), GAUSSIAN)
  np.testing.assert_allclose(found, [expected], rtol=1e-4)


def log_density(logits, action):
  mean, log_scale = logits[:2], logits[2:]
  z = (action - mean) / np.exp(log_scale)
  return np.sum(-0.5 * z**2 - log_scale - 0.5 * np.log(2 * np.pi))


def test_the_mean_counts_resets_as_nothing():
  valid = jnp.asarray([True, False, True, True])
  found = losses.weighted_mean(
    jnp.asarray([1.0, 1e9, 2.0, 3.0]), jnp.asarray([1.0, 1.0, 0.5, 0.0]), valid
  )
  np.testing.assert_allclose(found, (1.0 + 1.0) / 4)


def test_values():
  values, theirs = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([3.0, 2.0, 1.0])
  np.testing.assert_allclose(losses.value_error(values, theirs), [2.0, 0.0, 2.0])
  np.testing.assert_array_equal(losses.is_better(theirs, values), [1.0, 0.0, 0.0])
  gradient = jax.grad(lambda x: jnp.sum(losses.value_error(values, x)))(theirs)
  np.testing.assert_array_equal(gradient, 0.0)


# Costs 1, 2, 4, 8 at times 0 .. 3; gamma 0.5.
FUTURE = {
  "inside": ([0.5, 0.5, 0.5], [-1.0, -2.0, -4.0]),
  # The state at time 2 ended the episode: nothing is done, and nothing costs, there.
  "ends_inside": ([0.5, 0.0, 0.5], [-1.0, 0.0, -4.0]),
  "ends_at_the_first": ([0.0, 0.5, 0.5], [0.0, -2.0, -4.0]),
  "ends_at_the_last": ([0.5, 0.5, 0.0], [-1.0, -2.0, 0.0]),
}


@pytest.mark.parametrize("name", FUTURE)
def test_future_cost_by_hand(name):
  discount_t, expected = (jnp.asarray(x) for x in FUTURE[name])
  costs = jnp.asarray([1.0, 2.0, 4.0, 8.0])
  np.testing.assert_allclose(losses.future_cost(costs, discount_t), expected)
  # Of a last state of which the teacher has not spoken nothing is known.
  found = losses.future_cost(costs[:3], discount_t)
  np.testing.assert_allclose(found, expected.at[-1].set(0.0))


def test_advantage_over_the_teacher_by_hand():
  values, r_t = jnp.asarray([1.0, 2.0, 4.0]), jnp.asarray([3.0, 1.0])
  # 3 + 0.5 * 2 - 1 = 3; the episode ends: 1 + 0 - 2 = -1.
  found = losses.advantage_over_teacher(values, r_t, jnp.asarray([0.5, 0.0]))
  np.testing.assert_allclose(found, [3.0, -1.0])
  # It is cut: 1 + 0.5 * 4 - 2 = 1.
  found = losses.advantage_over_teacher(values, r_t, jnp.asarray([0.5, 0.5]))
  np.testing.assert_allclose(found, [3.0, 1.0])
  found = losses.advantage_over_teacher(values[:2], r_t, jnp.asarray([0.5, 0.5]))
  np.testing.assert_allclose(found, [3.0])
