# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Agents as a library
#
# An agent of podracer is a tuple of pure functions, `init`, `initial_state`, `act` and `loss`. It holds no
# arrays, devices or threads, so nothing of podracer need drive it. This notebook
#
# * loads a trained policy and plays with it,
# * trains IMPALA in a loop of its own,
# * writes an environment and an agent in one cell each, and trains one in the other,
# * plays MuZero with its search and without.
#
# It needs no accelerator. All cells together take three to four minutes on two CPU cores,
# most of it compilation.

# %% [markdown]
# ## Install
#
# The cell does nothing where podracer is installed already. On Colab, put the git URL of podracer into the
# form field.

# %%
# @title Install podracer
SOURCE = ""  # @param {type:"string"}
EXTRAS = ""
OTHERS = []

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

if importlib.util.find_spec("podracer") is None:
  checkout = ".." if pathlib.Path("../setup.py").is_file() else ""
  source = SOURCE or os.environ.get("PODRACER_SOURCE") or checkout
  assert source, "give SOURCE, podracer's git URL: git+https://..."
  url = source if "://" in source else pathlib.Path(source).resolve().as_uri()
  # The plugin of an accelerator belongs to the jax that is here, and numpy may be loaded: both stay.
  found = [(str(package.name), package.version) for package in importlib.metadata.distributions()]
  kept = [f"{name}=={version}" for name, version in found if name.startswith(("jax", "numpy"))]
  pathlib.Path("constraints.txt").write_text("\n".join(kept))
  wanted = ["-c", "constraints.txt", f"podracer-rl[{EXTRAS}] @ {url}", *OTHERS]
  subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)

# %%
import math
import os
import sysconfig
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython import display

import podracer
from podracer import (
  anakin,
  config,
  distributions,
  host_environment,
  learner,
  plotting,
  testing,
  types,
)
from podracer.agents import impala, muzero
from podracer.anakin import rollout
from podracer.launch import host as host_lib
from podracer.launch import watch

# Where the command `podracer` lies, should this kernel not know.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
# A kernel asks programs for colours, at which the progress bar takes the cell for a terminal.
_ = os.environ.pop("FORCE_COLOR", None)

# %% [markdown]
# ## A trained agent
#
# The command line trains one here, in a process of its own, into a run directory. In Catch a ball falls, and
# the agent moves a paddle below it: a return of 1 is a ball caught, -1 a ball missed.

# %% language="bash"
# podracer train --env=gymnax:Catch-bsuite --num_env_steps=300_000 --workdir=runs/catch

# %% [markdown]
# ## A policy in three lines
#
# First JAX is configured as the command line does: it keeps compiled programs for the next time, and takes
# the accelerator, or where there is none the CPU as one device.
#
# `load_policy` reads the newest valid checkpoint of a run. A policy acts on batches of time steps. Here is a
# batch of one, whose pictures become a video.

# %%
host_lib.start_jax(0)

environment = podracer.make_environment("gymnax:Catch-bsuite")
host = host_environment.JaxHostEnvironment(environment, num_environments=1)
timestep = host.reset()

policy = podracer.load_policy("runs/catch")
state = policy.initial_state(batch_size=1)
frames = [host.render()]
for _ in range(60):
  action, state = policy(timestep, state)
  timestep = host.step(np.asarray(action))
  frames.append(host.render())

watch.write_video("catch.mp4", frames, environment.frames_per_second)
display.Video("catch.mp4", embed=True)

# %% [markdown]
# After the last time step of an episode, the next `step` ignores its action and begins another: that is
# the rule in all of podracer, so the observation in which an episode ended is never lost.
#
# ## A loop of your own
#
# `make_agent` gives the functions of an agent, `make_learner` the update that both machines use. What
# happens between is up to you; here it is one unroll and one update, compiled together.

# %%
learning = impala.ImpalaConfig(learning_rate=2e-3)
agent = impala.make_agent(learning, environment.spec)
learn = learner.make_learner(agent, learning)


@jax.jit
def update(learner_state, actor_state, key):
  """Acts for 16 steps in each environment, and learns from them."""
  act_key, learn_key = jax.random.split(key)
  actor_state, trajectory = rollout.unroll(
    agent, environment, learner_state.params, act_key, actor_state, length=16
  )
  learner_state, metrics = learn.update(learner_state, learn_key, trajectory)
  return learner_state, actor_state, metrics, jnp.mean(trajectory.timesteps.reward)


init_key, environment_key, update_key = jax.random.split(jax.random.key(0), 3)
learner_state = learn.init(init_key)
actor_state = rollout.initial_state(agent, environment, jax.random.split(environment_key, 64))
rewards = []
for key in jax.random.split(update_key, 300):
  learner_state, actor_state, metrics, reward = update(learner_state, actor_state, key)
  rewards.append(float(reward))

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(plotting.smoothed(np.array(rewards), width=10))
axes.set(xlabel="updates", ylabel="reward a step", title="IMPALA on Catch, in our own loop")
plt.show()

# %% [markdown]
# ## An environment of your own
#
# An `Environment` describes one environment: no batch axis, and no resets of its own. `terminated` says that
# nothing can follow, `truncated` that a time limit cut the episode; a learner must treat the two
# differently. `render` runs on the host in NumPy, and may be left out.


# %%
def make_corridor(size=7, max_steps=20):
  """A corridor with an exit at its right end; each step costs 0.01 and the exit gives 1."""

  def observe(position):
    return jax.nn.one_hot(position, size)

  def reset(key):
    position = jax.random.randint(key, (), 0, size - 1)
    return (position, jnp.zeros((), jnp.int32)), observe(position)

  def step(key, state, action):
    del key  # Nothing here is random.
    position, num_steps = state
    position = jnp.clip(position + 2 * action - 1, 0, size - 1)
    at_exit = position == size - 1
    outcome = podracer.Outcome(
      observation=observe(position),
      reward=jnp.where(at_exit, 1.0, -0.01),
      terminated=at_exit,
      truncated=num_steps + 1 >= max_steps,
    )
    return (position, num_steps + 1), outcome

  spec = podracer.EnvironmentSpec(
    name="corridor",
    observation=types.ArraySpec((size,), jnp.dtype("float32"), minimum=0.0, maximum=1.0),
    action=types.DiscreteActions(2),
  )
  return podracer.Environment(spec=spec, reset=reset, step=step)


corridor = make_corridor()
num_episodes = testing.check_environment(corridor, num_steps=64)
print(f"kept the contract over {num_episodes} random episodes")

# %% [markdown]
# ## An agent of your own
#
# REINFORCE with a linear policy and a linear baseline. Its loss sees a trajectory of T+1 time steps and T
# actor outputs, time first. `reward` and `discount` at t belong to the transition that arrived at t; the one
# that leaves a last time step is a reset and no experience, so it is masked.


# %%
def make_reinforce(spec, gamma=0.99):
  """REINFORCE (Williams 1992) with a baseline, both linear in the observation."""
  policy = distributions.make_distribution(spec.action)
  num_features = math.prod(spec.observation.shape)

  def predict(params, observation):  # [..., F] -> logits [..., A], value [...]
    return observation @ params["policy"], observation @ params["value"]

  def init(key):
    del key  # A uniform policy to begin with.
    shape = (num_features, policy.num_logits)
    return {"policy": jnp.zeros(shape), "value": jnp.zeros(num_features)}

  def act(params, key, timestep, state, explore):
    logits, value = predict(params, timestep.observation)
    action = policy.sample(key, logits) if explore else policy.mode(logits)
    log_prob = policy.log_prob(logits, action)
    return podracer.ActorOutput(action, logits, log_prob, value), state

  def loss(params, target_params, key, trajectory):
    del target_params, key
    timesteps, action = trajectory.timesteps, trajectory.actor_outputs.action
    logits, values = predict(params, timesteps.observation)
    valid = types.is_valid_transition(timesteps.step_type[:-1])

    def step_back(g_t, xs):  # The return from t-1; where an episode was over, the value of its end.
      r_t, discount_t, v_tm1, valid_tm1 = xs
      g_tm1 = jnp.where(valid_tm1, r_t + gamma * discount_t * g_t, v_tm1)
      return g_tm1, g_tm1

    xs = (timesteps.reward[1:], timesteps.discount[1:], values[:-1], valid)
    _, returns = jax.lax.scan(step_back, values[-1], xs, reverse=True)
    advantage = jnp.where(valid, jax.lax.stop_gradient(returns) - values[:-1], 0.0)
    log_pi = policy.log_prob(logits[:-1], action)
    pg_loss = -jnp.mean(log_pi * jax.lax.stop_gradient(advantage))
    value_loss = 0.5 * jnp.mean(jnp.square(advantage))
    metrics = {"loss/policy_gradient": pg_loss, "loss/value": value_loss}
    return pg_loss + value_loss, podracer.LossInfo(metrics)

  return podracer.Agent(init=init, initial_state=lambda batch_size: (), act=act, loss=loss)


# %% [markdown]
# Optimiser, gradients averaged over devices, refused updates and statistics of episodes come from the
# machine, and so do several seeds.

# %%
reports = anakin.train(
  make_reinforce(corridor.spec),
  corridor,
  config.LearnerConfig(learning_rate=1e-2),
  anakin.AnakinConfig(num_environments=32, unroll_length=16, updates_per_call=10),
  num_env_steps=100_000,
  num_seeds=4,
)
curves = plotting.metric_curves([report.metrics for report in reports], "episode_return_mean")
steps, mean, deviation = plotting.mean_and_band(curves)

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.fill_between(steps, mean - deviation, mean + deviation, alpha=0.25, linewidth=0)
axes.plot(steps, mean)
axes.xaxis.set_major_formatter("{x:,.0f}")
axes.set(xlabel="environment steps", ylabel="episode return", title="REINFORCE, four seeds")
plt.show()

# %% [markdown]
# ## MuZero with its search and without
#
# MuZero learns a model of its environment, in latent states, and acts by searching in it. Compiling it takes
# longer than training it here.

# %%
planning = muzero.MuZeroConfig(
  learning_rate=3e-3,
  learning_rate_schedule="linear",
  max_gradient_norm=5.0,
  optimizer_epsilon=1e-8,
  num_minibatches=8,
  num_epochs=2,
  target_update_period=1,
  value_cost=1.0,
  model=muzero.ModelConfig(num_bins=21, max_value=2.0, max_reward=2.0),
  search=muzero.SearchConfig(num_simulations=16),
)
planner = muzero.make_agent(planning, environment.spec)
machine = anakin.AnakinConfig(num_environments=64, unroll_length=16, updates_per_call=10)
reports = list(anakin.train(planner, environment, planning, machine, num_env_steps=300_000))
params = jax.device_get(reports[-1].params)

# %%
(curve,) = plotting.metric_curves([report.metrics for report in reports], "episode_return_mean")
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(*curve)
axes.xaxis.set_major_formatter("{x:,.0f}")
axes.set(xlabel="environment steps", ylabel="episode return", title="MuZero on Catch")
plt.show()

# %% [markdown]
# `act` searches; `act_by_prior` takes the network's policy alone, which has learnt from what the searches
# found. In a game as small as this one they soon play alike, and the search only costs time. (A policy that
# is loaded has the choice too: `load_policy(..., search=False)`.)

# %%
with_search = jax.jit(planner.act, static_argnames="explore")
without_search = jax.jit(planner.act_by_prior, static_argnames="explore")


def play(act, num_steps=100):
  """Plays greedily in 64 environments; returns the mean return, and steps/s of acting."""
  host = host_environment.JaxHostEnvironment(environment, num_environments=64)
  timestep, state, key = host.reset(), planner.initial_state(64), jax.random.key(0)
  jax.block_until_ready(act(params, key, timestep, state, explore=False))  # Compiles.
  returns, seconds = [], 0.0
  for step_key in jax.random.split(key, num_steps):
    begin = time.perf_counter()
    output, state = jax.block_until_ready(act(params, step_key, timestep, state, explore=False))
    seconds += time.perf_counter() - begin
    timestep = host.step(np.asarray(output.action))
    returns.extend(timestep.reward[timestep.is_last()])  # The only reward of an episode.
  return np.mean(returns), 64 * num_steps / seconds


for name, act in (("with search", with_search), ("without", without_search)):
  mean, speed = play(act)
  print(f"{name:12} return {mean:5.2f}   {speed:11,.0f} steps/s")

# %% [markdown]
# What a search found is in the actor's output: `search_visits`, its improved policy, and `search_value`, the
# value of its root. Here is the value over one episode, from the ball at the top to the ball caught or
# missed.

# %%
host = host_environment.JaxHostEnvironment(environment, num_environments=64)
timestep, values = host.reset(), []
for key in jax.random.split(jax.random.key(0), 9):
  output, _ = with_search(params, key, timestep, (), explore=False)
  values.append(output.search_value)
  timestep = host.step(np.asarray(output.action))

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for reward, colour in ((1, "tab:blue"), (-1, "tab:orange")):
  axes.plot(np.array(values)[:, timestep.reward == reward], color=colour, alpha=0.3)
axes.set(xlabel="step", ylabel="root value", title="a line an episode; orange: missed")
plt.show()

# %% [markdown]
# ## Next
#
# * `docs/custom_environment.md` and `docs/custom_agent.md` tell more of each, and how the command line takes
#   `--env=my_package.my_module:make_env`.
# * The probe environments of `podracer.testing` have known answers: they tell whether a sign, a discount or
#   a bootstrap of a new agent is wrong.
