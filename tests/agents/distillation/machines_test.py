"""The student on both machines: on several devices, resumed, with teachers that stay as they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import anakin, checkpoint, config, sebulba, testing
from podracer.agents import distillation, impala
from podracer.anakin import machine as anakin_machine
from podracer.sebulba import machine as sebulba_machine

ENDS = testing.chain_environment(((3, "terminate"), (5, "truncate"), (1, "terminate")))
RECURRENT = config.NetworkConfig(hidden_sizes=(8,), lstm_size=4, use_previous_action=True)
SMALL = distillation.DistillationConfig(
  learning_rate=0.1,
  optimizer="sgd",
  network=config.NetworkConfig(hidden_sizes=(8,)),
  reinforcement_cost=1.0,
  distillation_schedule="until_passed",
  distillation_steps=3,
)
# Everything that a run has to remember: memories of both, who acts, moments, an optimiser.
FULL = dataclasses.replace(
  SMALL,
  optimizer="adam",
  learning_rate=0.01,
  network=RECURRENT,
  control="mixture",
  control_steps=9,
  distillation_schedule="linear",
  popart=True,
)


def make_agent(agent_config, greedy=False):
  teacher_config = impala.ImpalaConfig(network=agent_config.network)
  teacher = impala.make_agent(teacher_config, ENDS.spec)
  params = jax.tree.map(lambda x: x + 0.3, teacher.init(jax.random.key(7)))
  agent = distillation.make_agent(
    agent_config, ENDS.spec, [agent_lib.Teacher(teacher, params, ENDS.spec)]
  )
  if not greedy:
    return agent, params
  # So that nothing random depends on the batch.
  act = lambda params, key, timestep, state, explore: agent.act(  # noqa: E731
    params, key, timestep, state, False
  )
  return agent._replace(act=act), params


def make_anakin(agent_config, num_devices=1, greedy=False, **keywords):
  agent, params = make_agent(agent_config, greedy)
  machine = anakin_machine.Anakin(
    agent,
    ENDS,
    agent_config,
    anakin.AnakinConfig(num_environments=16, unroll_length=5, updates_per_call=2),
    num_env_steps=2000,
    devices=jax.devices()[:num_devices],
    **keywords,
  )
  return machine, params


def make_sebulba(agent_config, num_devices=1, **values):
  agent, params = make_agent(agent_config)
  machine = sebulba_machine.Sebulba(
    agent,
    ENDS,
    agent_config,
    sebulba.SebulbaConfig(
      **{"num_environments": 8, "unroll_length": 5, "updates_per_report": 4, **values}
    ),
    num_env_steps=400,
    devices=jax.devices()[:num_devices],
  )
  return machine, params


def assert_identical(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)


def test_one_device_equals_four():
  learners = []
  for num_devices in (1, 4):
    machine, teacher = make_anakin(SMALL, num_devices, greedy=True)
    start = jax.device_get(machine.init(3).learner.params)
    state, _ = machine.advance(machine.init(3), 6)
    learners.append(jax.device_get(state.learner))
  one, four = learners
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=5e-5, atol=1e-6), one, four)
  assert_identical(one.params["teachers"], (jax.device_get(teacher),))
  moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), start, one.params)
  assert max(jax.tree.leaves(moved["network"])) > 1e-2, "nothing was learnt"
  assert one.params["distillation"].gradient_steps == 6
  assert np.any(one.params["distillation"].advantage != 0)


def test_resume_is_exact(tmp_path):
  """Through a real checkpoint on disk, with teachers of which only the shapes are known."""
  machine, teacher = make_anakin(FULL)
  half, _ = machine.advance(machine.init(1), 4)
  writer = checkpoint.Checkpointer(tmp_path)
  writer.save(4, machine.to_checkpoint(half), {})
  assert writer.wait()
  whole, _ = machine.advance(half, 4)

  teacher_agent = impala.make_agent(impala.ImpalaConfig(network=RECURRENT), ENDS.spec)
  shapes = jax.eval_shape(teacher_agent.init, jax.random.key(0))
  agent = distillation.make_agent(
    FULL, ENDS.spec, [agent_lib.Teacher(teacher_agent, shapes, ENDS.spec)]
  )
  fresh = anakin_machine.Anakin(
    agent, ENDS, FULL, machine.config, num_env_steps=2000, devices=jax.devices()[:1]
  )
  restored = writer.restore(fresh.to_checkpoint(fresh.abstract_state()))
  writer.close()
  resumed, _ = fresh.advance(fresh.from_checkpoint(restored.items), 4)
  assert_identical(jax.device_get(whole), jax.device_get(resumed))
  assert_identical(jax.device_get(resumed.learner.params["teachers"]), (jax.device_get(teacher),))


@pytest.mark.slow
def test_seeds_side_by_side_equal_seeds_alone():
  together, _ = make_anakin(SMALL, num_seeds=2)
  both, _ = together.advance(together.init(5), 3)
  for i in range(2):
    alone, _ = make_anakin(SMALL)
    state, _ = alone.advance(alone.init(5 + i), 3)
    jax.tree.map(
      lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=5e-5, atol=1e-6),
      both.learner.params,
      state.learner.params,
    )


@pytest.mark.parametrize(
  ("agent_config", "split"),
  [
    (SMALL, ((0,), (1,))),
    pytest.param(FULL, ((0,), (0,)), marks=pytest.mark.slow),
  ],
  ids=["learner_side", "actor_side"],
)
def test_sebulba(agent_config, split):
  actors, learners = split
  machine, teacher = make_sebulba(
    agent_config, num_devices=2, actor_devices=actors, learner_devices=learners
  )
  *_, last = sebulba_machine.run(machine, machine.init(0), num_env_steps=400)
  assert np.isfinite(last.metrics["loss/total"])
  assert last.metrics["distillation/kl"] > 0
  params = jax.device_get(last.params)
  assert_identical(params["teachers"], (jax.device_get(teacher),))
  assert params["distillation"].gradient_steps > 0
