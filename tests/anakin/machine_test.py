import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config, environments, multitask, report, testing
from podracer.agents import impala
from podracer.anakin import config as anakin_config
from podracer.anakin import machine as machine_lib

SGD = impala.ImpalaConfig(learning_rate=0.05, optimizer="sgd")
SMALL = anakin_config.AnakinConfig(num_environments=16, unroll_length=5, updates_per_call=3)
ENDS = testing.chain_environment(((3, "terminate"), (5, "truncate"), (1, "terminate")))


def greedy(agent):
  """Acts greedily also where told to explore: what is random then is the environments' keys alone."""
  return agent._replace(
    act=lambda params, key, timestep, state, explore: agent.act(params, key, timestep, state, False)
  )


def make(
  environment=ENDS, num_devices=1, agent_config=SGD, machine_config=SMALL, wrap=None, **keywords
):
  agent = impala.make_agent(agent_config, environment.spec)
  keywords = {"num_env_steps": 1000, **keywords}
  return machine_lib.Anakin(
    wrap(agent) if wrap else agent,
    environment,
    agent_config,
    machine_config,
    devices=jax.devices()[:num_devices],
    **keywords,
  )


def reports(machine, num_env_steps, seed=0, **keywords):
  """Runs to the end; the last report's items are fetched before they are donated."""
  found = []
  for news in machine_lib.run(machine, machine.init(seed), num_env_steps=num_env_steps, **keywords):
    found.append(news._replace(items=None, params=jax.device_get(news.params)))
  return found


def assert_equal(a, b, **tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    if tolerance:
      np.testing.assert_allclose(x, y, **tolerance)
    else:
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  "environment", [ENDS, environments.make("gymnax:CartPole-v1")], ids=lambda e: e.spec.name
)
def test_one_device_equals_four(environment):
  states = []
  for num_devices in (1, 4):
    machine = make(environment, num_devices, wrap=greedy)
    state, totals = machine.advance(machine.init(3), 8)
    states.append((jax.device_get((state.learner, totals)), state.actor))
  (one, one_actor), (four, four_actor) = states
  assert_equal(one, four, rtol=2e-5, atol=1e-6)
  assert_equal(one_actor.environment.key, four_actor.environment.key)
  start = jax.device_get(make(environment).init(3).learner.params)
  moved = [
    np.max(np.abs(a - b))
    for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(one[0].params), strict=True)
  ]
  assert max(moved) > 1e-2, "nothing was learnt, so nothing was compared"


def test_an_environment_with_an_array_without_elements_goes_on():
  # Such as navix has in its state; JAX gives it back sharded otherwise than it was taken.
  empty = ENDS._replace(
    reset=lambda key: ((ENDS.reset(key)[0], jnp.zeros((0,))), ENDS.reset(key)[1]),
    step=lambda key, state, action: _with_empty(ENDS.step(key, state[0], action)),
  )
  machine = make(empty, num_devices=4)
  state, _ = machine.advance(machine.init(0), 2)
  state, _ = machine.advance(state, 2)
  same, _ = (plain := make(num_devices=4)).advance(plain.init(0), 4)
  assert_equal(state.learner.params, same.learner.params)


def test_where_jax_crashes_on_an_array_without_elements_it_is_refused(monkeypatch):
  monkeypatch.setattr(jax, "__version__", "0.11.2")
  empty = ENDS._replace(
    reset=lambda key: ((ENDS.reset(key)[0], jnp.zeros((0,))), ENDS.reset(key)[1])
  )
  with pytest.raises(config.InputError, match=r"without elements.*JAX_NUM_CPU_DEVICES=1"):
    make(empty, num_devices=4)
  make(empty, num_devices=1)
  make(num_devices=4)


def _with_empty(stepped):
  state, outcome = stepped
  return (state, jnp.zeros((0,))), outcome


def test_parameters_are_kept_once_a_device_and_environments_are_shared_out():
  state = make(num_devices=4).init(0)
  for leaf in jax.tree.leaves(state.learner.params):
    assert leaf.sharding.is_fully_replicated
  for leaf in jax.tree.leaves(state.actor):
    assert leaf.shape[0] == 16 and leaf.addressable_shards[0].data.shape[0] == 4
  assert state.key.shape == (4,)


def test_a_seed_twice_is_bit_identical_and_two_seeds_are_not():
  first, second, other = (reports(make(num_devices=2), 400, seed) for seed in (0, 0, 1))
  for a, b in zip(first, second, strict=True):
    assert_equal(a.params, b.params)
    timed = {"steps_per_second"}
    assert {k: v for k, v in a.metrics.items() if k not in timed} == {
      k: v for k, v in b.metrics.items() if k not in timed
    }
  with pytest.raises(AssertionError):
    assert_equal(first[-1].params, other[-1].params)


def test_going_on_from_a_report_equals_the_uninterrupted_run():
  machine = make(num_devices=2, environment=environments.make("gymnax:CartPole-v1"))
  whole = reports(machine, 1500)
  half = None
  for news in machine_lib.run(machine, machine.init(0), num_env_steps=1500):
    half = (jax.tree.map(jnp.copy, news.items), news.counters)
    if news.env_steps > 500:
      break
  items, counters = half
  rest = list(
    machine_lib.run(machine, machine.from_checkpoint(items), num_env_steps=1500, counters=counters)
  )
  assert rest[-1].counters == whole[-1].counters
  assert len(rest) < len(whole)
  assert_equal(rest[-1].params, whole[-1].params)
  assert [r.env_steps for r in rest] == [r.env_steps for r in whole[-len(rest) :]]


@pytest.mark.parametrize("num_env_steps", [1, 333, 480, 481, 1000])
def test_stops_with_the_first_update_that_reaches_the_budget(num_env_steps):
  single = dataclasses.replace(SMALL, updates_per_call=1)
  by_one = reports(make(machine_config=single), num_env_steps)
  by_many = reports(
    make(machine_config=dataclasses.replace(SMALL, updates_per_call=50)), num_env_steps
  )
  assert by_one[-1].env_steps >= num_env_steps
  assert len(by_one) == 1 or by_one[-2].env_steps < num_env_steps
  assert by_many[-1].counters == by_one[-1].counters
  assert_equal(by_many[-1].params, by_one[-1].params)


def test_pauses_at_the_first_update_past_each_multiple():
  single = reports(make(machine_config=dataclasses.replace(SMALL, updates_per_call=1)), 1000)
  paused = reports(
    make(machine_config=dataclasses.replace(SMALL, updates_per_call=100)), 1000, pause_every=300
  )
  steps = [news.env_steps for news in single]
  expected = [min(s for s in steps if s >= multiple) for multiple in (300, 600, 900, 1000)]
  assert [news.env_steps for news in paused] == expected
  assert_equal(paused[-1].params, single[-1].params)


def test_environment_steps_leave_out_resets():
  # Episodes of 3 steps and a reset: of 4 transitions 3 are experience.
  machine = make(testing.chain_environment(((3, "terminate"),)))
  news = reports(machine, 16 * 15)[-1]
  assert news.env_steps == news.updates * 16 * 5 * 3 // 4
  assert news.metrics["episode_return_mean"] == 6.0
  assert news.metrics["episode_length_mean"] == 3.0


def test_seeds_side_by_side_equal_seeds_alone():
  together = reports(make(num_seeds=3, num_devices=2), 400, seed=5)[-1]
  assert np.asarray(together.metrics["seeds/env_steps"]).min() == together.env_steps >= 400
  for i in range(3):
    # As many updates as the slowest of the seeds needed.
    machine = make(num_devices=2)
    state, _ = machine.advance(machine.init(5 + i), together.updates)
    alone = jax.device_get(state.learner.params)
    assert_equal(jax.tree.map(lambda x, i=i: x[i], together.params), alone, rtol=1e-4, atol=1e-5)


def test_state_is_donated():
  machine = make()
  state = machine.init(0)
  machine.advance(state, 1)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.learner.params))


def test_abstract_state_is_that_of_a_real_one():
  for keywords in ({}, {"num_seeds": 2}):
    machine = make(num_devices=4, **keywords)
    for abstract, real in zip(
      jax.tree.leaves(machine.abstract_state()), jax.tree.leaves(machine.init(0)), strict=True
    ):
      assert (abstract.shape, abstract.dtype) == (real.shape, real.dtype)
      assert abstract.sharding.is_equivalent_to(real.sharding, real.ndim)


def test_a_reward_that_is_not_a_number_ends_the_run_with_its_name():
  broken = ENDS._replace(
    step=lambda key, state, action: (
      lambda s, o: (s, o._replace(reward=jnp.where(s[1] == 2, jnp.nan, o.reward)))
    )(*ENDS.step(key, state, action))
  )
  agent_config = dataclasses.replace(SGD, max_refused_updates=4)
  machine = make(broken, agent_config=agent_config)
  found = []
  with pytest.raises(report.TrainingError, match=r"not finite: .*loss/value"):
    for news in machine_lib.run(machine, machine.init(0), num_env_steps=10_000):
      found.append(jax.device_get(news.params))
  assert len(found) == 2  # Of three updates each.
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found[-1]))


def test_what_cannot_be_shared_out_is_refused():
  with pytest.raises(config.InputError, match="16 is not divisible by the 3 devices"):
    make(num_devices=3)
  with pytest.raises(config.InputError, match="num_minibatches=8 does not divide the 4"):
    make(num_devices=4, agent_config=dataclasses.replace(SGD, num_minibatches=8))


def chain(name, *episodes):
  made = testing.chain_environment(episodes)
  return made._replace(spec=made.spec._replace(name=name))


TASKS = multitask.make(
  (chain("mixed", (3, "terminate"), (5, "truncate")), chain("short", (1, "terminate"))), "tasks"
)
POPART = dataclasses.replace(SGD, popart=True)


def test_one_device_equals_four_with_several_tasks():
  learners, keys = [], []
  for num_devices in (1, 4):
    machine = make(TASKS, num_devices, agent_config=POPART, wrap=greedy)
    state, totals = machine.advance(machine.init(3), 8)
    learners.append(jax.device_get((state.learner, totals)))
    # [devices, tasks, share] -> [tasks, devices, share]
    shape = (num_devices, 2, -1)
    own_keys = np.asarray(jax.random.key_data(state.actor.environment.key))
    keys.append(own_keys.reshape((*shape, own_keys.shape[-1])).swapaxes(0, 1))
    tasks = np.asarray(state.actor.timestep.observation["task_id"]).reshape(shape)
    assert np.all(tasks == np.asarray([0, 1])[None, :, None])
  assert_equal(*learners, rtol=2e-5, atol=1e-6)
  np.testing.assert_array_equal(keys[0].reshape(2, -1), keys[1].reshape(2, -1))
  assert learners[0][1].episodes.num_episodes.shape == (2,)


def test_episodes_of_each_task_by_hand():
  # In 15 steps episodes of 3 steps and a reset end 4 times, those of 1 step and a reset 8 times.
  whole = multitask.make((chain("a", (3, "terminate")), chain("b", (1, "truncate"))), "tasks")
  metrics = reports(make(whole), 150)[0].metrics
  expected = {"episode_return_mean": 6.0, "episode_length_mean": 3.0, "episodes": 8 * 4}
  assert {name: metrics[f"task/a/{name}"] for name in expected} == expected
  expected = {"episode_return_mean": 1.0, "episode_length_mean": 1.0, "episodes": 8 * 8}
  assert {name: metrics[f"task/b/{name}"] for name in expected} == expected
  assert metrics["episodes"] == 8 * 12
  np.testing.assert_allclose(metrics["episode_return_mean"], (6 * 4 + 8) / 12)


def test_several_tasks_go_on_bit_for_bit():
  machine = make(TASKS, num_devices=2, agent_config=POPART)
  whole = reports(machine, 1500)
  for news in machine_lib.run(machine, machine.init(0), num_env_steps=1500):
    items, counters = jax.tree.map(jnp.copy, news.items), news.counters
    if news.env_steps > 500:
      break
  state = machine.from_checkpoint(items)
  rest = list(machine_lib.run(machine, state, num_env_steps=1500, counters=counters))
  assert 0 < len(rest) < len(whole)
  assert_equal(rest[-1].params, whole[-1].params)
  assert rest[-1].counters == whole[-1].counters
  assert len(rest[-1].counters["task_episodes"]) == 2
  assert rest[-1].params["popart"].mean.shape == (2,)


def test_seeds_side_by_side_report_each_task():
  news = reports(make(TASKS, num_seeds=2, num_devices=2), 400)[-1]
  assert news.metrics["seeds/task/short/episode_return_mean"] == [1.0, 1.0]
  assert news.metrics["task/short/episodes"] > news.metrics["task/mixed/episodes"] > 0
  both = news.metrics["task/short/episodes"] + news.metrics["task/mixed/episodes"]
  assert news.metrics["episodes"] == both


def test_tasks_that_cannot_be_shared_out_or_recorded_are_refused():
  with pytest.raises(config.InputError, match="not divisible by the 2 tasks; take a multiple of 4"):
    make(TASKS, 2, machine_config=dataclasses.replace(SMALL, num_environments=6))
  with pytest.raises(config.InputError, match="tasks has several tasks, which can't be recorded"):
    make(TASKS, record=0.5)
  machine = dataclasses.replace(SMALL, num_environments=12)
  assert machine.preferred_devices(4, num_tasks=3) == 4
  assert machine.preferred_devices(4, num_tasks=6) == 2
  assert machine.preferred_devices(4, num_tasks=5) == 1
