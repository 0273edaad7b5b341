"""What every agent of the table must do, in every kind of environment it takes."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import testing, types
from podracer.agents import impala, muzero
from podracer.anakin import rollout
from podracer.launch import experiment

LENGTH, BATCH = 6, 4
CHAIN = testing.chain_environment(((3, "terminate"), (2, "truncate")))


def masked_environment():
  """The chain with a dict observation, of whose three actions the first is never legal."""
  legal = jnp.asarray([False, True, True])
  observe = lambda x: {"position": x, types.ACTION_MASK: legal}  # noqa: E731

  def reset(key):
    state, observation = CHAIN.reset(key)
    return state, observe(observation)

  def step(key, state, action):
    state, outcome = CHAIN.step(key, state, action)
    return state, outcome._replace(observation=observe(outcome.observation))

  observation_spec = {
    "position": CHAIN.spec.observation,
    types.ACTION_MASK: types.ArraySpec((3,), jnp.dtype(bool)),
  }
  spec = CHAIN.spec._replace(observation=observation_spec, action=types.DiscreteActions(3))
  return CHAIN._replace(spec=spec, reset=reset, step=step)


ENVIRONMENTS = {
  "discrete": CHAIN,
  "masked": masked_environment(),
  "continuous": testing.probe_continuous(size=2),
}
NETWORKS = {
  "feed_forward": {"hidden_sizes": (8,)},
  "recurrent": {
    "hidden_sizes": (8,),
    "lstm_size": 8,
    "use_previous_action": True,
    "use_previous_reward": True,
  },
}
# Options of an agent that change what its functions compute.
VARIANTS = {
  "impala": ({}, {"popart": True, "entropy": "adaptive"}, {"action_distribution": "tanh_gaussian"}),
  "muzero": (
    {},
    {"search": muzero.SearchConfig(policy="muzero", temperature_steps=100)},
    {"search": muzero.SearchConfig(policy="stochastic", num_simulations=8)},
  ),
}
VARIANTS["distillation"] = (
  {},
  {"popart": True, "teacher_inference": "actor", "reinforcement_cost": 1.0},
  {"control": "mixture", "action_distribution": "tanh_gaussian", "policy_loss": "reverse_kl"},
)
# What an agent takes, where it doesn't take everything.
TAKES = {"muzero": (("feed_forward",), ("discrete", "masked"))}
CASES = [
  (agent, variant, network, environment)
  for agent in experiment.AGENTS
  for variant in range(len(VARIANTS[agent]))
  for network in TAKES.get(agent, (NETWORKS, ENVIRONMENTS))[0]
  for environment in TAKES.get(agent, (NETWORKS, ENVIRONMENTS))[1]
]


def make_teachers(config, network, spec):
  """Returns what `make_agent` of a student takes beside what every agent does."""
  if not isinstance(config, config_lib.StudentConfig):
    return ()
  teacher_config = impala.ImpalaConfig(
    network=config_lib.NetworkConfig(**NETWORKS[network]),
    action_distribution=config.action_distribution,
  )
  teacher = impala.make_agent(teacher_config, spec)
  # Another policy than the student's also where the observation is 0.
  params = jax.tree.map(lambda x: x + 0.1, teacher.init(jax.random.key(9)))
  kind = config.action_distribution
  return ((agent_lib.Teacher(teacher, params, spec, action_distribution=kind),),)


@functools.cache
def make(name, variant, network, environment):
  """Returns an agent, its parameters, and an unroll of it."""
  module_name, config_name = experiment.AGENTS[name]
  module = importlib.import_module(module_name)
  config = getattr(module, config_name)(
    network=config_lib.NetworkConfig(**NETWORKS[network]), **VARIANTS[name][variant]
  )
  env = ENVIRONMENTS[environment]
  agent = module.make_agent(config, env.spec, *make_teachers(config, network, env.spec))
  params = jax.jit(agent.init)(jax.random.key(0))
  state = rollout.initial_state(agent, env, jax.random.split(jax.random.key(1), BATCH))
  unroll = jax.jit(lambda p, k, s: rollout.unroll(agent, env, p, k, s, LENGTH))
  return agent, params, unroll, state


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_agent(case):
  agent, params, unroll, state = make(*case)
  spec = ENVIRONMENTS[case[3]].spec
  end, trajectory = unroll(params, jax.random.key(2), state)
  check_actor_outputs(trajectory.actor_outputs, spec)
  assert jax.tree.structure(end.agent) == jax.tree.structure(state.agent)
  # The same key gives the same course, another key another.
  _, again = unroll(params, jax.random.key(2), state)
  jax.tree.map(np.testing.assert_array_equal, trajectory, again)
  _, other = unroll(params, jax.random.key(3), state)
  assert not np.array_equal(trajectory.actor_outputs.action, other.actor_outputs.action)
  check_loss(agent, params, trajectory)


def check_actor_outputs(outputs, spec):
  if isinstance(spec.action, types.DiscreteActions):
    assert outputs.action.shape == (LENGTH, BATCH) and outputs.action.dtype == jnp.int32
    assert np.all((outputs.action >= 0) & (outputs.action < spec.action.num_actions))
    assert outputs.logits.shape == (LENGTH, BATCH, spec.action.num_actions)
    if isinstance(spec.observation, dict):
      assert np.all(outputs.action != 0), "an illegal action was taken"
      assert np.all(jax.nn.softmax(outputs.logits)[..., 0] == 0)
  else:
    assert outputs.action.shape == (LENGTH, BATCH, spec.action.size)
    assert outputs.logits.shape == (LENGTH, BATCH, 2 * spec.action.size)
  for leaf in (outputs.log_prob, outputs.value):
    assert leaf.shape == (LENGTH, BATCH) and leaf.dtype == jnp.float32
    assert np.all(np.isfinite(leaf))


def split(agent, params):
  return agent_lib.split_frozen(agent, params)


def of_trained(agent):
  """Returns the loss as a function of what gradients reach, and of what they don't."""

  def loss(trained, frozen, key, trajectory):
    params = agent_lib.merge_frozen(trained, frozen)
    return agent.loss(params, params, key, trajectory)

  return loss


def check_loss(agent, params, trajectory):
  """Finite, of a gradient for every trained leaf, and the mean of the losses of the streams."""
  gradient_of = jax.jit(jax.value_and_grad(of_trained(agent), has_aux=True))
  key = jax.random.key(4)
  (loss, info), gradient = gradient_of(*split(agent, params), key, trajectory)
  assert loss.shape == () and np.isfinite(loss)
  assert all(np.isfinite(value) and value.shape == () for value in info.metrics.values())
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
  assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
  halves = [
    types.Trajectory(
      timesteps=jax.tree.map(lambda x, i=i: x[:, i : i + 2], trajectory.timesteps),
      actor_outputs=jax.tree.map(lambda x, i=i: x[:, i : i + 2], trajectory.actor_outputs),
      initial_state=jax.tree.map(lambda x, i=i: x[i : i + 2], trajectory.initial_state),
    )
    for i in (0, 2)
  ]
  parts = [gradient_of(*split(agent, params), key, half) for half in halves]
  np.testing.assert_allclose(loss, np.mean([part[0][0] for part in parts]), rtol=1e-4, atol=1e-6)
  jax.tree.map(
    lambda whole, a, b: np.testing.assert_allclose(whole, (a + b) / 2, rtol=1e-3, atol=1e-5),
    gradient,
    parts[0][1],
    parts[1][1],
  )


@pytest.mark.parametrize("name", experiment.AGENTS)
def test_what_happens_in_a_reset_is_not_learnt_from(name):
  """Rewards and actions of the transition out of a LAST time step change no gradient."""
  agent, params, unroll, state = make(name, 0, "feed_forward", "discrete")
  _, trajectory = unroll(params, jax.random.key(2), state)
  is_reset = ~types.is_valid_transition(trajectory.timesteps.step_type[:-1])
  assert np.any(is_reset) and not np.all(is_reset)
  reward = trajectory.timesteps.reward
  outputs = trajectory.actor_outputs
  odd = trajectory._replace(
    timesteps=trajectory.timesteps._replace(
      reward=reward.at[1:].set(jnp.where(is_reset, 1e3, reward[1:]))
    ),
    actor_outputs=outputs._replace(
      action=jnp.where(is_reset, 1 - outputs.action, outputs.action),
      log_prob=jnp.where(is_reset, -50.0, outputs.log_prob),
    ),
  )
  gradient_of = jax.jit(jax.grad(of_trained(agent), has_aux=True))
  key = jax.random.key(0)
  plain, changed = (gradient_of(*split(agent, params), key, t)[0] for t in (trajectory, odd))
  jax.tree.map(np.testing.assert_array_equal, plain, changed)


@pytest.mark.parametrize("name", [name for name in experiment.AGENTS if name not in TAKES])
def test_recurrent_state_forgets_the_episode_before(name):
  agent, params, _, state = make(name, 0, "recurrent", "discrete")
  timestep = state.timestep._replace(step_type=jnp.full((BATCH,), types.FIRST, jnp.int8))
  key = jax.random.key(0)
  noise = jax.tree.map(lambda x: jnp.ones_like(x), state.agent)
  fresh, _ = agent.act(params, key, timestep, state.agent, False)
  stale, _ = agent.act(params, key, timestep, noise, False)
  np.testing.assert_array_equal(fresh.logits, stale.logits)
  middle = timestep._replace(step_type=jnp.full((BATCH,), types.MID, jnp.int8))
  carried, _ = agent.act(params, key, middle, noise, False)
  assert not np.array_equal(fresh.logits, carried.logits)


def test_every_agent_has_presets_for_every_environment():
  from podracer import environments

  for name in experiment.AGENTS:
    for env in environments.names():
      made = experiment.default_experiment(name, "anakin", env)
      made.machine.check(1, made.config.num_minibatches)
      assert dataclasses.is_dataclass(made.config)
