"""The real rollout over a chain MDP, and the targets learnt from it, against computation by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import testing, types
from podracer.agents.impala import losses
from podracer.anakin import rollout

GAMMA = 0.5
# V(s) of states 0 .. 3 of the chain, whose rewards on arriving at 1, 2, 3 are 1, 2, 3.
VALUES = (10.0, 20.0, 30.0, 40.0)
LENGTH = 4

# By the offset of the unroll in the cycle s0 s1 s2 s3(LAST) s0 ...: targets of its 4 transitions, where
# None is the reset. Bootstrapped with V at the last time step of the unroll.
BY_HAND = {
  # s2: 3. s1: 2 + 3/2. s0: 1 + 3.5/2. Reset.
  ("terminate", 0): (2.75, 3.5, 3.0, None),
  # s1, s2, reset, s0 -> s1: 1 + 20/2.
  ("terminate", 1): (3.5, 3.0, None, 11.0),
  # s2, reset, s0 -> s1 -> s2: s1: 2 + 30/2; s0: 1 + 17/2. It ends at the first transition.
  ("terminate", 2): (3.0, None, 9.5, 17.0),
  # Reset, s0, s1, s2, which ends at the last transition.
  ("terminate", 3): (None, 2.75, 3.5, 3.0),
  # s2: 3 + 40/2. s1: 2 + 23/2. s0: 1 + 13.5/2. Reset.
  ("truncate", 0): (7.75, 13.5, 23.0, None),
  ("truncate", 1): (13.5, 23.0, None, 11.0),
  ("truncate", 2): (23.0, None, 9.5, 17.0),
  ("truncate", 3): (None, 7.75, 13.5, 23.0),
}


def counting_agent():
  """Its state counts steps since the episode began, so that a missing reset shows."""

  def act(params, key, timestep, state, explore):
    del params, key, explore
    state = jnp.where(timestep.is_first(), 0, state) + 1
    batch = timestep.reward.shape[0]
    zeros = jnp.zeros((batch,))
    action = jnp.zeros((batch,), jnp.int32)
    value = timestep.observation @ jnp.asarray(VALUES)
    return types.ActorOutput(action, jnp.zeros((batch, 2)), zeros, value), state

  return agent_lib.Agent(
    init=lambda key: (),
    initial_state=lambda batch_size: jnp.zeros((batch_size,), jnp.int32),
    act=act,
    loss=lambda *_: None,
  )


def unrolls(end, offset, num=2):
  """Yields `num` unrolls of 3 environments after `offset` steps, with the states before and after."""
  environment, agent = testing.chain_environment(((3, end),)), counting_agent()
  state = rollout.initial_state(agent, environment, jax.random.split(jax.random.key(0), 3))
  run = jax.jit(
    lambda s, n: rollout.unroll(agent, environment, (), jax.random.key(0), s, n),
    static_argnums=1,
  )
  if offset:
    state, _ = run(state, offset)
  for _ in range(num):
    before = state
    state, trajectory = run(state, LENGTH)
    yield before, trajectory, state


@pytest.mark.parametrize(("end", "offset"), BY_HAND)
def test_targets_by_hand(end, offset):
  expected = BY_HAND[end, offset]
  for _, trajectory, _ in unrolls(end, offset):
    timesteps = trajectory.timesteps
    values = timesteps.observation @ jnp.asarray(VALUES)
    valid = types.is_valid_transition(timesteps.step_type[:-1])
    trace = jax.vmap(losses.vtrace, in_axes=1, out_axes=1)(
      values,
      timesteps.reward[1:],
      GAMMA * timesteps.discount[1:],
      jnp.zeros((LENGTH, 3)),
      valid,
    )
    targets = np.asarray(trace.errors + values[:-1])
    np.testing.assert_array_equal(valid, [[x is not None] * 3 for x in expected])
    for t, target in enumerate(expected):
      if target is not None:
        np.testing.assert_allclose(targets[t], target, rtol=1e-6)
      else:
        np.testing.assert_array_equal(trace.errors[t], 0.0)
        np.testing.assert_array_equal(trace.advantages[t], 0.0)


@pytest.mark.parametrize("offset", range(4))
def test_the_true_last_observation_is_in_the_data(offset):
  for _, trajectory, _ in unrolls("truncate", offset):
    is_last = np.asarray(trajectory.timesteps.is_last())
    position = np.argmax(trajectory.timesteps.observation, axis=-1)
    np.testing.assert_array_equal(position[is_last], 3)
    np.testing.assert_array_equal(position[np.asarray(trajectory.timesteps.is_first())], 0)


def test_consecutive_unrolls_share_a_time_step():
  (_, first, _), (_, second, _) = unrolls("terminate", 1)
  for a, b in zip(jax.tree.leaves(first.timesteps), jax.tree.leaves(second.timesteps), strict=True):
    np.testing.assert_array_equal(a[-1], b[0])


def test_recurrent_state_is_carried_and_belongs_to_the_first_time_step():
  for before, trajectory, after in unrolls("terminate", 2):
    np.testing.assert_array_equal(trajectory.initial_state, before.agent)
    # Acting counts from the FIRST time step of an episode: s3, the LAST, is the fourth.
    position = np.argmax(trajectory.timesteps.observation[-2], axis=-1)
    np.testing.assert_array_equal(after.agent, position + 1)


@pytest.mark.parametrize("offset", range(4))
def test_steps_and_episodes_are_counted_without_resets(offset):
  runs = list(unrolls("terminate", offset))
  for _, trajectory, _ in runs:
    assert rollout.count_valid(trajectory) == 3 * 3
  _, _, end = runs[-1]
  # Of each environment: 1 + 2 + 3.
  assert np.all(np.asarray(end.episodes.return_sum) == 6.0 * end.episodes.num_episodes)
  assert np.all(np.asarray(end.episodes.length_sum) == 3 * end.episodes.num_episodes)
  assert np.all(np.asarray(end.episodes.num_episodes) == (offset + 2 * LENGTH + 1) // 4)
