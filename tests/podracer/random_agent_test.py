"""The random agent: every allowed action alike."""

import jax
import jax.numpy as jnp
import numpy as np

from podracer import random_agent, types

OBSERVATION = types.ArraySpec((2,), np.float32)


def act(spec, observation, batch_size=4000):
  agent = random_agent.make_agent(spec)
  timestep = types.zero_timestep(spec, batch_size)._replace(observation=observation)
  output, state = jax.jit(agent.act, static_argnames="explore")(
    agent.init(jax.random.key(0)),
    jax.random.key(1),
    timestep,
    agent.initial_state(4),
    explore=False,
  )
  assert state == ()
  return output


def test_discrete_actions():
  spec = types.EnvironmentSpec("a", OBSERVATION, types.DiscreteActions(4))
  output = act(spec, jnp.zeros((4000, 2)))
  counts = np.bincount(output.action, minlength=4)
  assert output.action.dtype == jnp.int32 and counts.min() > 850
  np.testing.assert_allclose(output.log_prob, np.log(0.25), rtol=1e-6)


def test_actions_that_are_not_allowed():
  mask = types.ArraySpec((3,), bool)
  spec = types.EnvironmentSpec("a", {types.ACTION_MASK: mask}, types.DiscreteActions(3))
  allowed = jnp.tile(jnp.array([[True, False, True]]), (4000, 1))
  output = act(spec, {types.ACTION_MASK: allowed})
  counts = np.bincount(output.action, minlength=3)
  assert counts[1] == 0 and counts.min(where=[True, False, True], initial=4000) > 1800
  np.testing.assert_allclose(output.log_prob, np.log(0.5), rtol=1e-6)


def test_continuous_actions():
  actions = types.ContinuousActions((-2.0, -np.inf), (1.0, np.inf))
  output = act(types.EnvironmentSpec("a", OBSERVATION, actions), jnp.zeros((4000, 2)))
  np.testing.assert_allclose(np.min(output.action, axis=0), [-2, -1], atol=0.01)
  np.testing.assert_allclose(np.max(output.action, axis=0), [1, 1], atol=0.01)
  np.testing.assert_allclose(np.mean(output.action, axis=0), [-0.5, 0], atol=0.05)
