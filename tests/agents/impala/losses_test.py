import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.agents.impala import losses

GAMMA = 0.5


def reference(values, r_t, discount_t, rho, valid, clip_rho, clip_pg_rho):
  """Equation (1) of the paper as it stands: sums of products, not a recursion."""
  length = len(r_t)
  rho = np.where(valid, rho, 0.0)
  rho_bar, c = np.minimum(clip_rho, rho), np.minimum(1.0, rho)
  targets = []
  for s in range(length):
    target = values[s]
    for t in range(s, length):
      delta = rho_bar[t] * (r_t[t] + discount_t[t] * values[t + 1] - values[t])
      target += np.prod(discount_t[s:t]) * np.prod(c[s:t]) * delta
    targets.append(target)
  following = np.append(targets[1:], values[-1])
  advantages = np.minimum(clip_pg_rho, rho) * (r_t + discount_t * following - values[:-1])
  return np.asarray(targets) - values[:-1], advantages


def call(values, r_t, discount_t, log_rho, valid, **clips):
  arrays = [jnp.asarray(x, jnp.float32) for x in (values, r_t, discount_t, log_rho)]
  return losses.vtrace(*arrays, jnp.asarray(valid), **clips)


# On-policy; V = 10, 20, 30, 40; gamma 0.5. Hand-computed n-step returns.
V = [10.0, 20.0, 30.0, 40.0]
R = [1.0, 2.0, 3.0]
ON_POLICY = {
  # 3 + 20 = 23; 2 + 11.5 = 13.5; 1 + 6.75 = 7.75
  "inside": ([0.5, 0.5, 0.5], [True] * 3, [7.75, 13.5, 23.0]),
  # The episode ends on arrival at time 2: 2; 1 + 1 = 2. The transition out of it is a reset.
  "ends_inside": ([0.5, 0.0, 0.5], [True, True, False], [2.0, 2.0, 30.0]),
  # It is cut there: the target before ends with the value of the last observation, 30.
  "truncated_inside": ([0.5, 0.5, 0.5], [True, True, False], [9.5, 17.0, 30.0]),
  # The unroll begins with the LAST time step of an episode.
  "reset_first": ([0.5, 0.5, 0.5], [False, True, True], [10.0, 13.5, 23.0]),
  "ends_at_the_first": ([0.0, 0.5, 0.5], [True, False, True], [1.0, 20.0, 23.0]),
  "truncated_at_the_first": ([0.5, 0.5, 0.5], [True, False, True], [11.0, 20.0, 23.0]),
  # On arrival at the last time step of the unroll.
  "ends_at_the_last": ([0.5, 0.5, 0.0], [True] * 3, [2.75, 3.5, 3.0]),
  "truncated_at_the_last": ([0.5, 0.5, 0.5], [True] * 3, [7.75, 13.5, 23.0]),
}


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("jit", [False, True])
def test_targets_by_hand(name, jit):
  discount_t, valid, expected = ON_POLICY[name]
  function = jax.jit(call) if jit else call
  trace = function(V, R, discount_t, [0.0] * 3, valid)
  np.testing.assert_allclose(trace.errors, np.asarray(expected) - V[:3], rtol=1e-6)
  np.testing.assert_allclose(trace.advantages, trace.errors, rtol=1e-6)


def test_a_reset_teaches_nothing():
  # Whatever the reset transition holds, no target and no advantage changes.
  valid = [True, False, True]
  plain = call(V, R, [0.5, 0.5, 0.5], [0.0] * 3, valid)
  odd = call(V, [1.0, 1e6, 3.0], [0.5, 0.9, 0.5], [0.0, 7.0, 0.0], valid)
  np.testing.assert_array_equal(plain.errors, odd.errors)
  np.testing.assert_array_equal(plain.advantages, odd.advantages)
  assert plain.errors[1] == 0 and plain.advantages[1] == 0


@pytest.mark.parametrize("clip_rho", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("clip_pg_rho", [0.9, 1.5])
def test_off_policy_against_the_paper(clip_rho, clip_pg_rho):
  rng = np.random.default_rng(0)
  batch, length = 16, 12
  values = rng.normal(size=(batch, length + 1))
  r_t = rng.normal(size=(batch, length))
  discount_t = 0.9 * (rng.uniform(size=(batch, length)) > 0.2)
  log_rho = rng.normal(size=(batch, length))
  valid = rng.uniform(size=(batch, length)) > 0.2
  function = jax.vmap(lambda *x: losses.vtrace(*x, clip_rho=clip_rho, clip_pg_rho=clip_pg_rho))
  floats = [jnp.asarray(x, jnp.float32) for x in (values, r_t, discount_t, log_rho)]
  trace = function(*floats, jnp.asarray(valid))
  for i in range(batch):
    errors, advantages = reference(
      values[i], r_t[i], discount_t[i], np.exp(log_rho[i]), valid[i], clip_rho, clip_pg_rho
    )
    np.testing.assert_allclose(trace.errors[i], errors, atol=2e-5)
    np.testing.assert_allclose(trace.advantages[i], advantages, atol=2e-5)


def test_no_gradient_flows_through_targets():
  gradient = jax.grad(
    lambda v: jnp.sum(losses.vtrace(v, *(jnp.ones(3),) * 3, jnp.ones(3, bool)).errors)
  )(jnp.asarray(V))
  np.testing.assert_array_equal(gradient, 0.0)


def test_losses_by_hand():
  valid = jnp.asarray([True, False])
  ones = jnp.asarray([1.0, 5.0])
  assert losses.policy_gradient_loss(jnp.asarray([-2.0, 9.0]), ones, valid) == 1.0
  assert losses.value_loss(jnp.asarray([1.0, 9.0]), jnp.asarray([3.0, 0.0]), valid) == 1.0
  assert losses.masked_mean(ones, valid) == 0.5
  # A masked NaN must not reach the gradient.
  gradient = jax.grad(lambda x: losses.masked_mean(x, valid))(jnp.asarray([1.0, jnp.nan]))
  np.testing.assert_array_equal(gradient, [0.5, 0.0])


def test_reward_clipping():
  reward = jnp.asarray([-3.0, 0.5, 3.0])
  np.testing.assert_array_equal(losses.clip_reward(reward, "none"), reward)
  np.testing.assert_array_equal(losses.clip_reward(reward, "unit"), [-1.0, 0.5, 1.0])
  np.testing.assert_allclose(
    losses.clip_reward(reward, "asymmetric"),
    [0.3 * np.tanh(-3.0), 5 * np.tanh(0.5), 5 * np.tanh(3.0)],
    rtol=1e-6,
  )
