"""The whole machine: its mathematics against Anakin's, its lag, its counts, its faults."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import (
  anakin,
  config,
  environments,
  host_environment,
  multitask,
  report,
  sebulba,
  testing,
)
from podracer.agents import impala
from podracer.anakin import machine as anakin_machine
from podracer.sebulba import machine as machine_lib

SGD = impala.ImpalaConfig(learning_rate=0.05, optimizer="sgd")
LSTM = impala.ImpalaConfig(
  learning_rate=0.05,
  optimizer="sgd",
  network=config.NetworkConfig(lstm_size=8, use_previous_action=True, use_previous_reward=True),
)
ENDS = testing.chain_environment(((3, "terminate"), (5, "truncate"), (1, "terminate")))
CARTPOLE = environments.make("gymnax:CartPole-v1")
TASKS = multitask.make((ENDS, testing.probe_observation()), "tasks")
SMALL = {"num_environments": 8, "unroll_length": 5, "updates_per_report": 4}


def with_keys(made, keys):
  """A factory of one batch, the keys of whose environments are given."""
  return host_environment.HostFactory(
    spec=made.spec,
    make=lambda seeds, options: host_environment.JaxHostEnvironment(made, len(seeds), keys=keys),
  )


def run(environment, agent_config=SGD, num_env_steps=400, seed=0, wrap=None, devices=1, **values):
  """Runs to the end; returns the reports, with arrays on the host."""
  agent = impala.make_agent(agent_config, host_environment.as_factory(environment).spec)
  machine = machine_lib.Sebulba(
    wrap(agent) if wrap else agent,
    environment,
    agent_config,
    sebulba.SebulbaConfig(**{**SMALL, **values}),
    num_env_steps=num_env_steps,
    devices=jax.devices()[:devices],
  )
  reports = machine_lib.run(machine, machine.init(seed), num_env_steps=num_env_steps, seed=seed)
  return [news._replace(params=jax.device_get(news.params), items=None) for news in reports]


def greedy(agent):
  """Acts greedily also where told to explore, so that nothing random depends on the batch."""
  return agent._replace(
    act=lambda params, key, timestep, state, explore: agent.act(params, key, timestep, state, False)
  )


def assert_close(a, b, rtol=2e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ("made", "agent_config"),
  [
    pytest.param(ENDS, SGD, id="chain-mlp"),
    pytest.param(CARTPOLE, LSTM, id="cartpole-lstm"),
    pytest.param(TASKS, SGD, id="tasks-mlp"),
    pytest.param(ENDS, LSTM, id="chain-lstm", marks=pytest.mark.slow),
    pytest.param(CARTPOLE, SGD, id="cartpole-mlp", marks=pytest.mark.slow),
  ],
)
def test_lockstep_equals_anakin(made, agent_config):
  num_env_steps, seed = 400, 3
  agent = impala.make_agent(agent_config, made.spec)
  expected = [
    (news.env_steps, news.metrics, jax.device_get(news.params))
    for news in anakin.train(
      agent,
      made,
      agent_config,
      anakin.AnakinConfig(num_environments=8, unroll_length=5, updates_per_call=4),
      num_env_steps=num_env_steps,
      seed=seed,
      devices=jax.devices()[:1],
    )
  ]
  _, actor_key, _ = jax.random.split(jax.random.key(seed), 3)
  found = run(
    with_keys(made, jax.random.split(actor_key, 8)),
    agent_config,
    num_env_steps,
    seed,
    lag="lockstep",
    threads_per_actor_device=1,
  )
  assert len(found) == len(expected) > 2
  for news, (env_steps, metrics, params) in zip(found, expected, strict=True):
    assert news.env_steps == env_steps
    # One program or three: sums are taken in another order, nothing else differs.
    assert_close(news.params, params)
    for name in ("episodes", "episode_return_mean", "episode_length_mean", "loss/total"):
      np.testing.assert_allclose(news.metrics[name], metrics[name], rtol=1e-4, atol=1e-5)
    assert news.metrics["lag/max"] == 0


@pytest.mark.parametrize(
  "lag", ["lockstep", "fixed:1", pytest.param("fixed:3", marks=pytest.mark.slow)]
)
def test_a_fixed_lag_gives_the_same_numbers_twice(lag):
  made = environments.make("envpool:CartPole-v1")
  first, second = (run(made, num_env_steps=2000, lag=lag) for _ in range(2))
  assert len(first) == len(second) > 10
  for a, b in zip(first, second, strict=True):
    assert a.env_steps == b.env_steps
    assert_equal(a.params, b.params)
    assert a.metrics["loss/total"] == b.metrics["loss/total"]
  k = {"lockstep": 0, "fixed:1": 1, "fixed:3": 3}[lag]
  assert first[0].metrics["lag/min"] == 0, "the first unroll is of the first parameters"
  assert {(a.metrics["lag/min"], a.metrics["lag/max"]) for a in first[1:]} == {(k, k)}


def test_a_fixed_lag_with_some_of_the_unrolls_in_each_update():
  made = environments.make("envpool:CartPole-v1")
  values = {"lag": "fixed:2", "threads_per_actor_device": 4, "unrolls_per_update": 3}
  first, second = (run(made, num_env_steps=1000, **values) for _ in range(2))
  assert_equal(first[-1].params, second[-1].params)
  assert {(a.metrics["lag/min"], a.metrics["lag/max"]) for a in first[1:]} == {(2, 2)}


SPLITS = [
  {"devices": 4, "actor_devices": (0,), "learner_devices": (0, 1, 2, 3)},
  {"devices": 4, "actor_devices": (0, 1), "learner_devices": (2, 3), "threads_per_actor_device": 1},
  {"devices": 2, "actor_devices": (1,), "learner_devices": (0,)},
  {"devices": 2},
]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(
  "agent_config",
  [pytest.param(SGD, id="mlp"), pytest.param(LSTM, id="lstm", marks=pytest.mark.slow)],
)
def test_the_split_changes_nothing_in_the_mathematics(split, agent_config):
  values = {"lag": "lockstep", "wrap": greedy, "agent_config": agent_config}
  alone = run(CARTPOLE, **values)
  spread = run(CARTPOLE, **values, **split)
  assert [news.env_steps for news in alone] == [news.env_steps for news in spread]
  assert_close(alone[-1].params, spread[-1].params)
  np.testing.assert_allclose(
    alone[-1].metrics["loss/total"], spread[-1].metrics["loss/total"], rtol=1e-4
  )


@pytest.mark.parametrize("refresh", ["unroll", "step"])
def test_latest_learns_from_everything_and_states_its_lag(refresh):
  made = environments.make("envpool:CartPole-v1")
  found = run(made, num_env_steps=4000, lag="latest", refresh=refresh)
  for news in found:
    metrics = news.metrics
    assert 0 <= metrics["lag/min"] <= metrics["lag/mean"] <= metrics["lag/max"]
    # No less can be said: a thread that the system does not run falls behind as far as the other gets.
    assert metrics["lag/max"] <= news.updates
    assert metrics["queue/depth"] <= 2
    assert metrics["frames"] == metrics["env_steps"] == news.env_steps


def test_minibatches_and_epochs():
  many = impala.ImpalaConfig(learning_rate=0.05, optimizer="sgd", num_minibatches=2, num_epochs=3)
  found = run(CARTPOLE, many, lag="lockstep")
  once = run(CARTPOLE, lag="lockstep")
  assert found[-1].updates > 0 and np.isfinite(found[-1].metrics["loss/total"])
  moved = jax.tree.leaves(
    jax.tree.map(lambda a, b: np.abs(a - b).max(), found[0].params, once[0].params)
  )
  assert max(moved) > 1e-4, "six gradient steps did what one does"


def test_ends_with_the_first_update_that_reaches_the_budget():
  for num_env_steps in (1, 40, 41, 397):
    found = run(ENDS, num_env_steps=num_env_steps, lag="lockstep")
    # 8 environments x 5 steps an update, at most.
    assert num_env_steps <= found[-1].env_steps < num_env_steps + 40


def test_counts_leave_out_resets():
  found = run(testing.chain_environment(((4, "terminate"),)), num_env_steps=400, lag="lockstep")
  # Of 5 transitions one is a reset: each unroll has 4 steps of each environment, and ends an episode.
  assert [news.env_steps for news in found] == [4 * 32 * (i + 1) for i in range(3)] + [416]
  assert [news.metrics["episodes"] for news in found] == [32 * (i + 1) for i in range(3)] + [104]
  assert {news.metrics["episode_return_mean"] for news in found} == {10.0}
  assert {news.metrics["episode_length_mean"] for news in found} == {4.0}


def test_pauses_and_reports_when_asked():
  made = CARTPOLE
  agent = impala.make_agent(SGD, made.spec)
  machine = machine_lib.Sebulba(
    agent, made, SGD, sebulba.SebulbaConfig(**SMALL), num_env_steps=400, devices=jax.devices()[:1]
  )
  paused = list(machine_lib.run(machine, machine.init(0), num_env_steps=400, pause_every=100))
  for boundary in (100, 200, 300):
    assert any(boundary <= news.env_steps < boundary + 40 for news in paused)
  each = list(
    machine_lib.run(machine, machine.init(0), num_env_steps=400, should_report=lambda: True)
  )
  assert [news.updates for news in each] == list(range(1, len(each) + 1))


def test_a_resumed_run_goes_on_from_the_learner_it_left():
  """Up to where it stopped it is the uninterrupted run; from there its learner goes on exactly."""
  made = environments.make("envpool:CartPole-v1")
  agent = impala.make_agent(SGD, made.spec)

  def machine():
    return machine_lib.Sebulba(
      agent,
      made,
      SGD,
      sebulba.SebulbaConfig(**SMALL, lag="lockstep"),
      num_env_steps=1000,
      devices=jax.devices()[:1],
    )

  first = machine()
  whole = []
  for news in machine_lib.run(first, first.init(0), num_env_steps=1000):
    whole.append((news.updates, news.counters, jax.device_get(news.params)))
  second = machine()
  for news in machine_lib.run(second, second.init(0), num_env_steps=1000):
    saved = jax.tree.map(jnp.copy, news.items)
    counters = news.counters
    if news.updates == 12:
      break
  updates, whole_counters, params = whole[2]
  assert (updates, whole_counters) == (12, counters)
  assert_equal(jax.device_get(saved["params"]), params)
  third = machine()
  state = third.from_checkpoint(saved)
  resumed = list(machine_lib.run(third, state, num_env_steps=1000, counters=counters, seed=0))
  assert resumed[0].updates == 16 and resumed[0].env_steps > counters["env_steps"][0]
  assert resumed[0].metrics["lag/max"] == 0
  assert resumed[-1].env_steps >= 1000


def test_async_learns_from_whole_columns():
  made = environments.make("envpool:CartPole-v1")
  found = run(made, num_env_steps=2000, environment_mode="async", async_batch_size=3)
  assert found[-1].env_steps >= 2000
  assert np.isfinite(found[-1].metrics["loss/total"])
  assert found[-1].metrics["episode_length_mean"] == found[-1].metrics["episode_return_mean"]


def within(seconds, environment, **values):
  """Runs until it raises; returns the error and the seconds that its end took, compiling left out."""
  begin = time.monotonic()
  with pytest.raises(Exception) as caught:
    run(environment, num_env_steps=10**9, **values)
  assert time.monotonic() - begin < seconds
  return caught


def test_a_fault_of_an_environment_is_the_fault_of_the_run(faulty, agent):
  made, fault = faulty
  caught = within(60, made.factory, wrap=lambda _: agent)
  assert {"raises": "own fault", "nan": "not finite", "shape": "its spec says"}[fault] in str(
    caught.value
  )
  # The traceback is that of the thread, down to where it happened.
  assert any(entry.name == "run" and "actor" in str(entry.path) for entry in caught.traceback)
  assert all(environment.closed for environment in made.environments)


def test_an_environment_that_blocks_is_named(blocking, agent):
  caught = within(60, blocking.factory, wrap=lambda _: agent, stall_timeout_seconds=3.0)
  assert isinstance(caught.value, report.TrainingError)
  assert "stalled: actor " in str(caught.value)
  assert "is stepping counter (environments " in str(caught.value)
  assert "the learner is waiting for unrolls of the actors" in str(caught.value)


def test_a_learner_that_raises_ends_the_actors(counter, agent):
  def loss(*args):
    raise ZeroDivisionError("the learner's own fault")

  caught = within(60, counter.factory, wrap=lambda _: agent._replace(loss=loss))
  assert "the learner's own fault" in str(caught.value)
  assert len(counter.environments) == 2
  assert all(environment.closed for environment in counter.environments)


def test_leaving_the_loop_ends_the_actors(counter, agent):
  machine = machine_lib.Sebulba(
    agent,
    counter.factory,
    SGD,
    sebulba.SebulbaConfig(**SMALL),
    num_env_steps=10**9,
    devices=jax.devices()[:1],
  )
  for _ in machine_lib.run(machine, machine.init(0), num_env_steps=10**9):
    break
  assert all(environment.closed for environment in counter.environments)


def test_updates_that_are_not_finite_end_the_run():
  def poisoned(agent):
    def loss(params, target_params, key, trajectory):
      value, info = agent.loss(params, target_params, key, trajectory)
      return value * jnp.nan, info

    return agent._replace(loss=loss)

  caught = within(60, CARTPOLE, wrap=poisoned)
  assert isinstance(caught.value, report.TrainingError)
  assert "not finite: gradient_norm" in str(caught.value)


def test_what_does_not_fit_the_machine():
  host = environments.make("envpool:CartPole-v1")
  agent = impala.make_agent(SGD, host.spec)
  with pytest.raises(
    config.InputError, match="runs on the host, which takes --architecture=sebulba"
  ):
    anakin_machine.make_machine(agent, host, SGD, anakin.AnakinConfig(), num_env_steps=1)
  with pytest.raises(config.InputError, match="one seed at a time"):
    machine_lib.make_machine(
      agent, host, SGD, sebulba.SebulbaConfig(), num_env_steps=1, num_seeds=2
    )
  with pytest.raises(config.InputError, match="cannot be run with environment_mode=async"):
    run(CARTPOLE, environment_mode="async")


@pytest.mark.parametrize(
  "name",
  [
    "envpool:CartPole-v1+envpool:Acrobot-v1",
    "gymnax:Catch-bsuite+envpool:CartPole-v1",
  ],
)
def test_several_tasks_are_learnt_and_reported(name):
  made = environments.make(name)
  popart = impala.ImpalaConfig(popart=True)
  values = {"num_environments": 8, "updates_per_report": 200}
  found = run(made, popart, num_env_steps=6000, lag="fixed:1", **values)
  metrics = found[-1].metrics
  tasks = name.split("+")
  counts = [metrics[f"task/{task}/episodes"] for task in tasks]
  assert metrics["episodes"] == sum(counts)
  assert found[-1].counters["task_episodes"] == counts
  cartpole = "task/envpool:CartPole-v1/"
  assert metrics[f"{cartpole}episodes"] > 10
  assert metrics[f"{cartpole}episode_return_mean"] == metrics[f"{cartpole}episode_length_mean"]
  if tasks[0] == "gymnax:Catch-bsuite":
    assert metrics["task/gymnax:Catch-bsuite/episode_length_mean"] == 9.0
  assert found[-1].params["popart"].mean.shape == (2,)
  assert np.all(found[-1].params["popart"].mean != 0.0)


def test_tasks_of_the_host_give_the_same_numbers_over_more_learners():
  made = host_environment.as_factory(TASKS)
  values = {"lag": "lockstep", "wrap": greedy, "num_env_steps": 200}
  alone = run(made, **values)[-1]
  spread = run(made, **values, devices=2, actor_devices=(0,), learner_devices=(0, 1))[-1]
  assert_close(alone.params, spread.params)
  for name in multitask.task_names(made.spec):
    assert alone.metrics[f"task/{name}/episodes"] == spread.metrics[f"task/{name}/episodes"] > 0
  assert alone.metrics["task/chain/episode_length_mean"] > 1.0
  assert alone.metrics["task/probe_observation/episode_length_mean"] == 1.0


def test_tasks_that_cannot_be_shared_out_run_or_recorded_are_refused():
  with pytest.raises(config.InputError, match="not divisible by the 2 tasks; take a multiple of 4"):
    run(TASKS, num_environments=6)
  with pytest.raises(config.InputError, match="tasks cannot be run with environment_mode=async"):
    run(TASKS, environment_mode="async")
  agent = impala.make_agent(SGD, TASKS.spec)
  with pytest.raises(config.InputError, match="which can't be recorded"):
    machine_lib.Sebulba(
      agent, TASKS, SGD, sebulba.SebulbaConfig(**SMALL), num_env_steps=1, record=0.5
    )
