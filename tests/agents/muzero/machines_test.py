"""MuZero on both machines: with and without a replay, on several devices, resumed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import anakin, checkpoint, config, environments, host_environment, sebulba, testing
from podracer.agents import impala, muzero
from podracer.anakin import machine as anakin_machine
from podracer.sebulba import machine as sebulba_machine

ENDS = testing.chain_environment(((3, "terminate"), (5, "truncate"), (1, "terminate")))
SMALL = muzero.MuZeroConfig(
  learning_rate=0.02,
  optimizer="sgd",
  unroll_steps=3,
  network=config.NetworkConfig(hidden_sizes=(8,)),
  model=muzero.ModelConfig(latent_size=8, hidden_sizes=(8,), num_bins=11, max_value=5.0),
  search=muzero.SearchConfig(num_simulations=4),
)
REPLAY = config.ReplayConfig(
  capacity=400,
  min_size=80,
  batch_size=8,
  gradient_steps=2,
  kind="prioritised",
  reanalyse_fraction=0.5,
)
WITH_REPLAY = dataclasses.replace(SMALL, replay=REPLAY)


def greedy(agent):
  """Acts greedily also where told to explore, so that nothing random depends on the batch."""
  return agent._replace(
    act=lambda params, key, timestep, state, explore: agent.act(params, key, timestep, state, False)
  )


def make_anakin(
  agent_config, num_devices=1, wrap=lambda agent: agent, environment=ENDS, **keywords
):
  return anakin_machine.Anakin(
    wrap(muzero.make_agent(agent_config, environment.spec)),
    environment,
    agent_config,
    anakin.AnakinConfig(num_environments=16, unroll_length=5, updates_per_call=2),
    num_env_steps=2000,
    devices=jax.devices()[:num_devices],
    **keywords,
  )


def make_sebulba(agent_config, environment=ENDS, num_devices=1, **values):
  values = {"num_environments": 8, "unroll_length": 5, "updates_per_report": 4, **values}
  spec = host_environment.as_factory(environment).spec
  return sebulba_machine.Sebulba(
    greedy(muzero.make_agent(agent_config, spec)),
    environment,
    agent_config,
    sebulba.SebulbaConfig(**values),
    num_env_steps=400,
    devices=jax.devices()[:num_devices],
  )


def assert_close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-5, atol=1e-6), a, b)


def assert_identical(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)


def test_one_device_equals_four():
  learners = []
  for num_devices in (1, 4):
    machine = make_anakin(SMALL, num_devices, greedy)
    state, _ = machine.advance(machine.init(3), 6)
    learners.append(jax.device_get(state.learner))
  one, four = learners
  assert_close(one, four)
  start = jax.device_get(make_anakin(SMALL).init(3).learner.params)
  moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), start, one.params)
  assert max(jax.tree.leaves(moved)) > 1e-2, "nothing was learnt, so nothing was compared"


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_resume_is_exact_with_what_the_replay_holds(tmp_path, num_devices):
  """Through a real checkpoint on disk: parameters, replay, priorities, environments."""
  machine = make_anakin(WITH_REPLAY, num_devices)
  half, _ = machine.advance(machine.init(1), 4)
  writer = checkpoint.Checkpointer(tmp_path)
  writer.save(4, machine.to_checkpoint(half), {})
  assert writer.wait()
  whole, _ = machine.advance(half, 4)

  fresh = make_anakin(WITH_REPLAY, num_devices)
  restored = writer.restore(fresh.to_checkpoint(fresh.abstract_state()))
  writer.close()
  resumed, _ = fresh.advance(fresh.from_checkpoint(restored.items), 4)
  assert_identical(jax.device_get(whole), jax.device_get(resumed))
  stored = jax.tree.leaves(whole.learner.replay)
  assert stored and all(leaf.shape[0] == num_devices for leaf in stored)
  assert any(np.any(np.asarray(leaf) != 0) for leaf in stored)


@pytest.mark.slow
def test_learning_waits_for_the_replay_to_fill():
  machine = make_anakin(
    dataclasses.replace(WITH_REPLAY, replay=dataclasses.replace(REPLAY, min_size=160))
  )
  start = machine.init(0)
  before = jax.device_get(start.learner.params)
  state, totals = machine.advance(start, 1)
  assert_identical(before, jax.device_get(state.learner.params))
  assert totals.learner["gradient_steps"] == 0
  state, totals = machine.advance(state, 1)
  assert totals.learner["gradient_steps"] == REPLAY.gradient_steps
  with pytest.raises(AssertionError):
    assert_identical(before, jax.device_get(state.learner.params))


@pytest.mark.slow
def test_seeds_side_by_side_equal_seeds_alone_with_a_replay():
  together = make_anakin(WITH_REPLAY, num_seeds=2)
  both, _ = together.advance(together.init(5), 3)
  for i in range(2):
    alone = make_anakin(WITH_REPLAY)
    state, _ = alone.advance(alone.init(5 + i), 3)
    assert_close(jax.tree.map(lambda x, i=i: x[i], both.learner.params), state.learner.params)


@pytest.mark.slow
def test_lockstep_on_sebulba_equals_anakin():
  agent = greedy(muzero.make_agent(SMALL, ENDS.spec))
  expected = [
    (news.env_steps, jax.device_get(news.params))
    for news in anakin.train(
      agent,
      ENDS,
      SMALL,
      anakin.AnakinConfig(num_environments=8, unroll_length=5, updates_per_call=4),
      num_env_steps=400,
      seed=3,
      devices=jax.devices()[:1],
    )
  ]
  _, actor_key, _ = jax.random.split(jax.random.key(3), 3)
  factory = host_environment.HostFactory(
    spec=ENDS.spec,
    make=lambda seeds, options: host_environment.JaxHostEnvironment(
      ENDS, len(seeds), keys=jax.random.split(actor_key, 8)
    ),
  )
  machine = make_sebulba(SMALL, factory, lag="lockstep", threads_per_actor_device=1)
  found = [
    (news.env_steps, jax.device_get(news.params))
    for news in sebulba_machine.run(machine, machine.init(3), num_env_steps=400, seed=3)
  ]
  assert len(found) == len(expected) > 2
  for (steps, params), (expected_steps, expected_params) in zip(found, expected, strict=True):
    assert steps == expected_steps
    assert_close(params, expected_params)


@pytest.mark.slow
@pytest.mark.parametrize("split", [((0,), (0,)), ((0,), (1, 2))], ids=str)
def test_sebulba_keeps_a_replay_and_restores_it(split, tmp_path):
  actors, learners = split
  options = {"actor_devices": actors, "learner_devices": learners, "num_devices": 3}
  agent_config = dataclasses.replace(WITH_REPLAY, replay=dataclasses.replace(REPLAY, min_size=0))
  machine = make_sebulba(agent_config, **options)
  for news in sebulba_machine.run(machine, machine.init(0), num_env_steps=200):
    saved = jax.tree.map(jnp.copy, news.items)
    counters = news.counters
  assert np.isfinite(news.metrics["loss/total"])
  writer = checkpoint.Checkpointer(tmp_path)
  writer.save(1, saved, {})
  assert writer.wait()
  other = make_sebulba(agent_config, **options)
  restored = writer.restore(other.to_checkpoint(other.abstract_state()))
  writer.close()
  assert_identical(jax.device_get(saved), jax.device_get(restored.items))
  assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(saved["state"].learner.replay))
  state = other.from_checkpoint(restored.items)
  *_, last = sebulba_machine.run(other, state, num_env_steps=400, counters=counters)
  assert last.env_steps >= 400 and np.isfinite(last.metrics["loss/total"])


def test_impala_takes_no_game_of_two_players():
  game = environments.make("pgx:tic_tac_toe")
  with pytest.raises(config.InputError, match="--agent=muzero plays both"):
    impala.make_agent(impala.ImpalaConfig(), game.spec)


@pytest.mark.parametrize(
  ("replay", "message"),
  [
    ({"capacity": 10**15}, "more than its memory"),
    ({"capacity": 50}, "replay.capacity=50 is below the 80 environment steps of one update"),
    ({"capacity": 400, "batch_size": 7}, "not divisible by the 2 learner devices"),
  ],
)
def test_a_replay_that_does_not_fit(replay, message):
  agent_config = dataclasses.replace(SMALL, replay=config.ReplayConfig(**replay))
  with pytest.raises(config.InputError, match=message):
    make_anakin(agent_config, num_devices=2)


def test_a_model_unrolled_for_longer_than_the_trajectory():
  with pytest.raises(
    config.InputError, match="unroll_steps=6 of the model is more than the 5 steps"
  ):
    make_anakin(dataclasses.replace(SMALL, unroll_steps=6))
