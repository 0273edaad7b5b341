import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import evaluation, testing, types

# Half of the episodes have one step and return 1, half have five and return 15.
MIXED = testing.chain_environment(((1, "terminate"), (5, "truncate")))


def idle_agent():
  def act(params, key, timestep, state, explore):
    del params, key, explore
    batch = timestep.reward.shape[0]
    zeros = jnp.zeros((batch,))
    return types.ActorOutput(zeros.astype(jnp.int32), jnp.zeros((batch, 2)), zeros, zeros), state

  return agent_lib.Agent(lambda key: (), lambda batch_size: (), act, lambda *_: None)


def evaluate(environment, num_episodes, seed=0, should_stop=lambda: False, **keywords):
  evaluator = evaluation.make_evaluator(
    idle_agent(), environment, num_episodes=num_episodes, **keywords
  )
  return evaluator((), jax.random.key(seed), should_stop)


@pytest.mark.parametrize(("num_episodes", "max_environments"), [(1, 8), (7, 4), (8, 8), (1000, 16)])
def test_plays_as_many_whole_episodes_as_asked(num_episodes, max_environments):
  result = evaluate(MIXED, num_episodes, max_environments=max_environments)
  assert result.returns.shape == result.lengths.shape == (num_episodes,)
  assert set(zip(result.returns.tolist(), result.lengths.tolist(), strict=True)) <= {
    (1.0, 1),
    (15.0, 5),
  }
  assert result.num_cut == 0


def test_short_episodes_are_not_favoured():
  # The first 1,000 to end among many environments would be short ones by far more than half.
  result = evaluate(MIXED, 1000, max_environments=500)
  share = np.mean(result.lengths == 1)
  assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 1000)


def test_summary_by_hand():
  result = evaluation.EvaluationResult(np.asarray([1.0, 3.0]), np.asarray([2, 4]), "greedy")
  assert result.summary() == {
    "episodes": 2,
    "mode": "greedy",
    "return_mean": 2.0,
    "return_std": 1.0,
    "return_min": 1.0,
    "return_max": 3.0,
    "length_mean": 3.0,
  }


def test_an_episode_that_does_not_end_is_cut_and_counted():
  result = evaluate(testing.chain_environment(((50, "terminate"),)), 6, max_episode_steps=10)
  np.testing.assert_array_equal(result.lengths, 10)
  np.testing.assert_array_equal(result.returns, sum(range(1, 11)))
  assert result.num_cut == 6


def test_a_seed_twice_is_the_same_and_it_stops_when_asked():
  first, second = (evaluate(MIXED, 50, seed=1) for _ in range(2))
  np.testing.assert_array_equal(first.returns, second.returns)
  assert evaluate(MIXED, 50, should_stop=lambda: True) is None
