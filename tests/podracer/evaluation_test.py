import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import environments, evaluation, host_environment, multitask, testing, types
from podracer.agents import impala

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


CHAIN = testing.chain_environment(((1, "terminate"), (5, "truncate"), (3, "terminate")))
# By length: 1, 1+2+3, 1+2+3+4+5.
RETURNS = {1: 1.0, 3: 6.0, 5: 15.0}


class Recorded:
  """A factory of host environments that remembers those it made."""

  def __init__(self, made, fails_at=None):
    self.environments, self._made, self._fails_at = [], made, fails_at
    self.factory = host_environment.from_jax(made)._replace(make=self.make)

  def make(self, seeds, options):
    assert options.whole_episodes
    host = host_environment.JaxHostEnvironment(self._made, len(seeds), seed=seeds[0])
    host.is_closed, host.num_steps, step = False, 0, host.step

    def counted(action):
      host.num_steps += 1
      if host.num_steps == self._fails_at:
        raise ZeroDivisionError("the environment's own fault")
      return step(action)

    host.step = counted
    host.close = lambda: setattr(host, "is_closed", True)
    self.environments.append(host)
    return host


def evaluate_host(recorded, num_episodes=24, **keywords):
  agent = impala.make_agent(impala.ImpalaConfig(), recorded.factory.spec)
  run = evaluation.make_evaluator(
    agent, recorded.factory, num_episodes=num_episodes, max_environments=8, **keywords
  )
  return lambda *args: run(agent.init(jax.random.key(0)), jax.random.key(1), *args)


def test_host_episodes_are_whole_and_returns_those_by_hand():
  recorded = Recorded(CHAIN)
  result = evaluate_host(recorded)()
  assert len(result.returns) == len(result.lengths) == 24
  np.testing.assert_array_equal(result.returns, [RETURNS[int(n)] for n in result.lengths])
  assert set(result.lengths.tolist()) == {1, 3, 5}
  assert result.num_cut == 0
  assert all(host.is_closed for host in recorded.environments)


def test_host_quotas_favour_no_short_episodes():
  # Each environment plays its quota: the law of the lengths is that of resets, a third each.
  result = evaluate_host(Recorded(CHAIN), num_episodes=600)()
  shares = [np.mean(result.lengths == n) for n in (1, 3, 5)]
  # Six standard errors of a third among 600.
  np.testing.assert_allclose(shares, 1 / 3, atol=0.12)


def test_host_episodes_that_do_not_end_are_cut_and_counted():
  endless = testing.chain_environment(((1000, "terminate"),), rewards=[1.0] * 1000)
  result = evaluate_host(Recorded(endless), num_episodes=8, max_episode_steps=7)()
  assert result.num_cut == 8
  np.testing.assert_array_equal(result.lengths, 7)
  np.testing.assert_array_equal(result.returns, 7.0)


def test_a_host_evaluation_that_is_stopped_or_fails_closes_its_environments():
  recorded = Recorded(CHAIN)
  assert evaluate_host(recorded)(lambda: True) is None
  assert recorded.environments[0].is_closed
  recorded = Recorded(CHAIN, fails_at=3)
  with pytest.raises(ZeroDivisionError, match="own fault"):
    evaluate_host(recorded)()
  assert recorded.environments[0].is_closed


def test_a_second_host_evaluation_with_the_same_key_is_the_same():
  evaluate = evaluate_host(Recorded(environments.make("gymnax:CartPole-v1")), num_episodes=8)
  first, second = evaluate(), evaluate()
  np.testing.assert_array_equal(first.returns, second.returns)
  np.testing.assert_array_equal(first.lengths, second.lengths)
  np.testing.assert_array_equal(first.returns, first.lengths)


def tasks():
  """A chain whose episodes return 6 after 3 steps, and one with episodes of three kinds."""
  return multitask.make((testing.chain_environment(((3, "truncate"),)), CHAIN), "tasks")


@pytest.mark.parametrize("is_host", [False, True])
@pytest.mark.parametrize(("num_episodes", "max_environments"), [(9, 1), (64, 128)])
def test_every_task_plays_equally_many_episodes(num_episodes, max_environments, is_host):
  made = host_environment.as_factory(tasks()) if is_host else tasks()
  run = evaluation.make_evaluator(
    idle_agent(), made, num_episodes=num_episodes, max_environments=max_environments
  )
  result = run((), jax.random.key(1))
  num_each = -(-num_episodes // 2)
  assert result.task_names == ("chain#1", "chain#2")
  assert len(result.returns) == 2 * num_each
  np.testing.assert_array_equal(result.lengths[:num_each], 3)
  np.testing.assert_array_equal(result.returns[:num_each], 6.0)
  assert 1 < len(set(result.lengths[num_each:].tolist())) <= 3
  expected = [RETURNS[int(n)] for n in result.lengths[num_each:]]
  np.testing.assert_array_equal(result.returns[num_each:], expected)
  by_task = result.summary()["tasks"]
  assert [by_task[name]["episodes"] for name in result.task_names] == [num_each] * 2
  assert by_task["chain#1"]["return_mean"] == 6.0


def test_summaries_of_tasks_and_of_several_agents_by_hand():
  def result(returns):
    lengths = np.arange(1, 5)
    return evaluation.EvaluationResult(np.asarray(returns), lengths, "greedy", 1, ("a", "b"))

  one = result([1.0, 3.0, 10.0, 10.0])
  assert one.summary()["tasks"]["a"] == {
    "return_mean": 2.0,
    "return_std": 1.0,
    "return_min": 1.0,
    "return_max": 3.0,
    "length_mean": 1.5,
    "episodes": 2,
  }
  assert one.summary()["tasks"]["b"]["length_mean"] == 3.5
  assert one.summary()["return_mean"] == 6.0
  both = evaluation.together([one, result([5.0, 7.0, 20.0, 30.0])])
  assert both.returns.tolist() == [1.0, 3.0, 5.0, 7.0, 10.0, 10.0, 20.0, 30.0]
  assert both.lengths.tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
  assert both.num_cut == 2
  assert both.summary()["tasks"]["b"]["return_mean"] == 17.5
