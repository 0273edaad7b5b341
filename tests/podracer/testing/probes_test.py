import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import environment, testing

PROBES = {
  "chain": lambda: testing.chain_environment(((3, "terminate"), (1, "truncate"), (2, "both"))),
  "constant": testing.probe_constant,
  "observation": testing.probe_observation,
  "discount": testing.probe_discount,
  "truncation": testing.probe_truncation,
  "action": testing.probe_action,
  "policy": testing.probe_policy,
  "memory": testing.probe_memory,
  "memory of one step": lambda: testing.probe_memory(1),
  "continuous": testing.probe_continuous,
  "continuous of two": lambda: testing.probe_continuous(size=2),
}


@pytest.mark.parametrize("name", PROBES)
def test_probe_conforms(name):
  assert testing.check_environment(PROBES[name](), num_steps=12) > 0


def _step_once(made, action, num_environments=32):
  """Returns the first two time steps of `[B]` environments that all take `action`."""
  state, first = environment.reset(made, jax.random.split(jax.random.key(0), num_environments))
  if callable(action):
    action = action(first.observation)
  batch = jnp.broadcast_to(jnp.asarray(action), (num_environments, *jnp.shape(action)[1:]))
  return first, environment.step(made, state, batch)[1]


def test_probe_rewards_are_the_known_ones():
  assert np.all(_step_once(testing.probe_constant(), 0)[1].reward == 1.0)
  first, last = _step_once(testing.probe_observation(), 0)
  np.testing.assert_array_equal(last.reward, first.observation[:, 0])
  assert set(np.unique(last.reward)) == {-1.0, 1.0}
  assert np.all(_step_once(testing.probe_action(), 0)[1].reward == -1.0)
  assert np.all(_step_once(testing.probe_action(), 1)[1].reward == 1.0)
  _, last = _step_once(testing.probe_policy(), lambda o: (o[:, 0] > 0).astype(jnp.int32))
  assert np.all(last.reward == 1.0)
  _, last = _step_once(testing.probe_truncation(), 0)
  assert np.all(last.is_last()) and np.all(last.discount == 1.0) and np.all(last.reward == 1.0)
  _, last = _step_once(testing.probe_continuous(0.25), jnp.full((32, 1), -0.25))
  np.testing.assert_allclose(last.reward, -0.25)


def test_probe_discount_rewards_the_second_step_only():
  made = testing.probe_discount()
  state, _ = environment.reset(made, jax.random.split(jax.random.key(0), 1))
  state, second = environment.step(made, state, jnp.zeros(1, jnp.int32))
  _, third = environment.step(made, state, jnp.zeros(1, jnp.int32))
  assert (second.reward[0], second.discount[0]) == (0.0, 1.0)
  assert (third.reward[0], third.discount[0]) == (1.0, 0.0)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_memory_pays_for_the_cue_of_the_first_step(length):
  made = testing.probe_memory(length)
  state, timestep = environment.reset(made, jax.random.split(jax.random.key(0), 16))
  cue = jnp.argmax(timestep.observation[:, :2], axis=-1)
  assert set(np.asarray(cue).tolist()) == {0, 1}
  for index in range(length):
    assert np.all(timestep.observation[:, 2] == (index == length - 1))
    if index > 0:
      assert np.all(timestep.observation[:, :2] == 0.0)
    answer = jnp.where(jnp.arange(16) < 8, cue, 1 - cue).astype(jnp.int32)
    state, timestep = environment.step(made, state, answer)
  assert np.all(timestep.is_last())
  np.testing.assert_array_equal(timestep.reward, np.where(np.arange(16) < 8, 1.0, -1.0))


@pytest.mark.parametrize(
  ("episodes", "rewards", "message"),
  [
    (((0, "terminate"),), None, "an episode is"),
    (((2, "stop"),), None, "an episode is"),
    (((2, "terminate"),), (1.0,), "2 rewards are needed, got 1"),
  ],
)
def test_chain_refuses_wrong_arguments(episodes, rewards, message):
  with pytest.raises(ValueError, match=message):
    testing.chain_environment(episodes, rewards)
