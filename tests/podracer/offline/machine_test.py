"""Learning from recorded data: devices, resume, reports and what is refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import config, report
from podracer.agents import impala, muzero
from podracer.offline import config as offline_config
from podracer.offline import machine as machine_lib
from podracer.offline import updates

SGD = impala.ImpalaConfig(learning_rate=0.05, optimizer="sgd")


@pytest.fixture(scope="module")
def root(line, tmp_path_factory):
  episodes = [line.make_episode(k, 3 + 2 * k, terminates=k % 2 == 0) for k in range(5)]
  return line.write(tmp_path_factory.mktemp("line"), episodes)


@pytest.fixture(scope="module")
def make(line, root):
  def make(num_devices=1, **options):
    options = {"num_windows": 8, "unroll_length": 4, "updates_per_report": 5, **options}
    return machine_lib.OfflineMachine(
      impala.make_agent(SGD, line.SPEC),
      line.SPEC,
      SGD,
      offline_config.OfflineConfig(data=str(root), **options),
      num_env_steps=400,
      devices=jax.devices()[:num_devices],
    )

  return make


def run(machine, state=None, num_env_steps=400, **options):
  state = machine.init(3) if state is None else state
  found = []
  for news in machine_lib.run(machine, state, num_env_steps=num_env_steps, seed=3, **options):
    items = jax.tree.map(np.asarray, jax.device_get(news.params))
    found.append((news, items))
  return found


def assert_equal(a, b, **tolerance):
  check = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
  jax.tree.map(lambda x, y: check(x, y, **tolerance), a, b)


def test_one_device_equals_four(make):
  (_, one), (_, four) = (run(make(n), num_env_steps=60)[-1] for n in (1, 4))
  assert_equal(one, four, rtol=2e-5, atol=1e-6)
  start = jax.device_get(make().init(3).learner.params)
  moved = jax.tree.map(lambda x, y: np.max(np.abs(x - y)), start, one)
  assert max(jax.tree.leaves(moved)) > 1e-2, "nothing was learnt, so nothing was compared"


def test_resumes_exactly(make):
  whole = run(make(2))
  machine = make(2)
  for news in machine_lib.run(machine, machine.init(3), num_env_steps=400, seed=3):
    if news.updates == 10:
      items, counters = news.items, news.counters
      break
  again = run(machine, machine.from_checkpoint(items), counters=counters)
  assert [news.updates for news, _ in again] == [
    news.updates for news, _ in whole if news.updates > 10
  ]
  for (a, a_params), (b, b_params) in zip(whole[-len(again) :], again, strict=True):
    assert a.env_steps == b.env_steps and a.counters == b.counters
    assert_equal(a_params, b_params)
    same = [{k: v for k, v in x.metrics.items() if k != "steps_per_second"} for x in (a, b)]
    assert same[0] == same[1]


def test_the_run_ends_with_the_first_update_that_reaches_the_steps(make):
  found = run(make())
  last, before = found[-1][0], found[-2][0]
  assert before.env_steps < 400 <= last.env_steps < 400 + 8 * 4
  assert last.metrics["steps_per_second"] > 0 and last.metrics["env_steps"] == last.env_steps
  assert not run(make(), counters=last.counters)


def test_pauses_and_asked_reports(make):
  steps = [news.env_steps for news, _ in run(make(updates_per_report=1000), pause_every=100)]
  assert len(steps) == 4
  assert all(s // 100 == k + 1 for k, s in enumerate(steps))
  asked = run(make(updates_per_report=1000), should_report=lambda: True)
  assert [news.updates for news, _ in asked] == list(range(1, len(asked) + 1))


def test_updates_that_are_not_finite_end_the_run(line):
  agent = impala.make_agent(SGD, line.SPEC)

  def loss(params, target_params, key, batch):
    del target_params, key, batch
    total = sum(jnp.sum(x) for x in jax.tree.leaves(params))
    return jnp.nan * total, agent_lib.LossInfo(metrics={})

  learner = updates.OfflineLearner(
    agent._replace(loss=loss),
    dataclasses.replace(SGD, max_refused_updates=3),
    num_updates=10,
    devices=jax.devices()[:2],
  )
  stream = updates.learn(
    learner,
    learner.init(0),
    lambda start: itertools.repeat(np.zeros((4, 1), np.float32)),
    num_env_steps=1000,
    count=len,
    updates_per_report=1,
  )
  with pytest.raises(report.TrainingError, match="3 updates in a row were refused"):
    list(stream)


def test_what_is_refused(line, root):
  keywords = {"num_env_steps": 100, "devices": jax.devices()[:1]}
  machine_config = offline_config.OfflineConfig(data=str(root))
  environment = type("Made", (), {"spec": line.SPEC})
  agent = impala.make_agent(SGD, line.SPEC)
  with pytest.raises(config.InputError, match="plays nothing to record"):
    machine_lib.make_machine(agent, environment, SGD, machine_config, record=0.5, **keywords)
  replay = muzero.MuZeroConfig(replay=config.ReplayConfig(capacity=1000))
  planner = muzero.make_agent(replay, line.SPEC)
  with pytest.raises(config.InputError, match="needs no replay"):
    machine_lib.make_machine(planner, environment, replay, machine_config, **keywords)
  searches = muzero.MuZeroConfig()
  with pytest.raises(config.InputError, match="no search_visits"):
    machine_lib.make_machine(planner, environment, searches, machine_config, **keywords)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"data": ""}, "no data given"),
    ({"data": "d", "num_windows": 9}, "num_windows=9 is not divisible by the 2 devices"),
    ({"data": "d", "num_windows": 2}, "num_minibatches=4 does not divide the 1 windows"),
  ],
)
def test_configurations_that_can_not_work(values, message):
  with pytest.raises(config.InputError, match=message):
    offline_config.OfflineConfig(**values).check(2, 4)
