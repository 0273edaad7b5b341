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
# # Anakin: environment, agent and update in one program
#
# Anakin is the first of the two machines of *Podracer architectures for scalable Reinforcement
# Learning* (Hessel et al. 2021, [arXiv 2104.06272](https://arxiv.org/abs/2104.06272)). Where the
# environment itself is written in JAX, acting, stepping and learning can be compiled together: XLA
# runs thousands of updates on the device, and Python only sees a report now and then.
#
# This notebook trains IMPALA (Espeholt et al. 2018) on Catch and on CartPole, shows its learning curve
# while it learns, and plays a video of what it has learnt. It needs no accelerator. All cells
# together take about two minutes on two CPU cores.

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
import types

import jax
import matplotlib.pyplot as plt
from IPython import display

import podracer
from podracer import anakin, config, evaluation, host_environment, plotting
from podracer.agents import impala
from podracer.launch import host, watch

# %% [markdown]
# ## Devices
#
# Anakin shares its environments out over all devices, and averages gradients over them. An accelerator
# is taken as it is. Without one, `start_jax` makes a virtual device of each CPU core, which must be
# done before JAX computes anything.

# %%
machine = anakin.AnakinConfig(num_environments=64, unroll_length=16, updates_per_call=20)
devices = host.start_jax(0, machine.preferred_devices)
print(devices)

# %% [markdown]
# ## An environment, an agent
#
# An environment is two pure functions, `reset` and `step`, and a `spec`. An agent is a tuple of pure
# functions as well: `init`, `initial_state`, `act` and `loss`. Neither knows of devices or of the other.

# %%
environment = podracer.make_environment("gymnax:Catch-bsuite")
learning = impala.ImpalaConfig(learning_rate=2e-3)
agent = impala.make_agent(learning, environment.spec)
environment.spec

# %% [markdown]
# ## Train
#
# `anakin.train` is a generator of reports. Between two of them the device makes
# `updates_per_call` updates, each from `num_environments` unrolls of `unroll_length` steps. What is done
# with a report is up to you; here its return is drawn.


# %%
def follow(reports, title):
  """Draws the mean return of each report as it comes; returns the last report."""
  handle = display.display(display.HTML("compiling ..."), display_id=True)
  rows = []
  for report in reports:
    rows.append(report.metrics)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    curves = plotting.metric_curves(rows, "episode_return_mean")
    if curves:
      steps, mean, deviation = plotting.mean_and_band(curves)
      axes.fill_between(steps, mean - deviation, mean + deviation, alpha=0.25, linewidth=0)
      axes.plot(steps, mean)
    speed = report.metrics["steps_per_second"]
    axes.set(xlabel="environment steps", ylabel="episode return")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{title}: {speed:,.0f} steps/s", loc="left")
    handle.update(figure)
    plt.close(figure)
  return report


# %% [markdown]
# In Catch a ball falls, and the agent moves a paddle below it: a return of 1 is a ball caught, -1 a ball
# missed.

# %%
reports = anakin.train(agent, environment, learning, machine, num_env_steps=400_000)
report = follow(reports, "Catch")

# %% [markdown]
# The numbers of the last report carry the names that `metrics.jsonl` has in a run of the command line.

# %%
report.metrics

# %% [markdown]
# ## Several seeds
#
# One seed says little. A whole run is a function of its key, so that it can be vectorised over seeds, and
# `num_seeds=3` trains three agents side by side in the same program. The line is their mean, the band one
# standard deviation.
#
# In CartPole a pole is balanced; the return is the number of steps it stays up, 500 at most.

# %%
environment = podracer.make_environment("gymnax:CartPole-v1")
learning = impala.ImpalaConfig(
  learning_rate=3e-3,
  learning_rate_schedule="linear",
  max_gradient_norm=1.0,
  vtrace_lambda=0.95,
  value_cost=2.5,
  network=config.NetworkConfig(activation="tanh"),
)
agent = impala.make_agent(learning, environment.spec)
machine = anakin.AnakinConfig(num_environments=64, unroll_length=16, updates_per_call=80)
reports = anakin.train(agent, environment, learning, machine, num_env_steps=2_500_000, num_seeds=3)
report = follow(reports, "CartPole, mean and deviation of three seeds")

# %% [markdown]
# While it trains, the agent samples its policy, and is paid for keeping some randomness
# (`entropy_cost`). An evaluation plays whole episodes with the most likely actions. The parameters of
# the report have a leading axis of seeds.

# %%
all_params = jax.device_get(report.params)


def params_of(seed):
  """Returns the parameters of one seed."""
  return jax.tree.map(lambda x: x[seed], all_params)


evaluate = evaluation.make_evaluator(agent, environment, num_episodes=32)
for seed in range(3):
  result = evaluate(params_of(seed), jax.random.key(seed))
  sampled = report.metrics["seeds/episode_return_mean"][seed]
  print(f"seed {seed}: return {result.returns.mean():.0f}; when sampling {sampled:.0f}")

# %% [markdown]
# ## Watch it
#
# What `podracer watch` reads from the directory of a run is at hand here.

# %%
trained = types.SimpleNamespace(
  agent=agent,
  params=params_of,
  environment=environment,
  factory=host_environment.as_factory(environment),
  env_steps=report.env_steps,
)
frames, returns = watch.record_frames(trained, watch.WatchConfig(workdir="", episodes=1))
watch.write_video("cartpole.mp4", frames, trained.factory.frames_per_second)
print("return:", returns[0])
display.Video("cartpole.mp4", embed=True)

# %% [markdown]
# ## Next
#
# * `podracer.make_environment("gymnax:Breakout-MinAtar")` and any other name that `podracer envs` lists.
# * On the command line the same is `podracer train --env=gymnax:CartPole-v1 --num_seeds=3`, with
#   hyper-parameters for each family of environments, checkpoints, and runs that can be resumed.
# * Environments that are not written in JAX: `sebulba.ipynb`. Your own agent or environment:
#   `agents_as_library.ipynb`.
