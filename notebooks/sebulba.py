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
# # Sebulba: host environments feed a learner
#
# Sebulba is the second machine of *Podracer architectures for scalable Reinforcement Learning* (Hessel
# et al. 2021, [arXiv 2104.06272](https://arxiv.org/abs/2104.06272)), for environments that are no JAX
# programs: games in C++, simulators, anything with a `step`.
#
# * **Actor threads** step batches of environments on the host and act on an actor device. There are
#   at least two on each device: while one waits for its environments, another uses the device.
# * A bounded queue hands finished unrolls to the **learner**, which updates on the learner devices and
#   publishes new parameters to the actors.
#
# This notebook trains IMPALA on CartPole, shows where the time of a step goes, and what the lag
# between acting and learning is. It needs no accelerator. All cells together take about three minutes on
# two CPU cores.

# %% [markdown]
# ## Install
#
# The cell does nothing where podracer is installed already. On Colab, put the git URL of podracer into the
# form field.

# %%
# @title Install podracer
SOURCE = ""  # @param {type:"string"}
EXTRAS = "envpool"
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
import dataclasses
import importlib.util
import types

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython import display

import podracer
from podracer import config, plotting, sebulba
from podracer.agents import impala
from podracer.launch import host, watch

# %% [markdown]
# ## A host environment
#
# envpool steps batches of environments in C++. Where it isn't installed, gymnasium will do: its
# environments run in processes, and are slower. `podracer envs` lists the names of both. What comes back is
# a factory, from which each actor thread makes environments of its own.

# %%
suite = "envpool" if importlib.util.find_spec("envpool") else "gymnasium"
environment = podracer.make_environment(f"{suite}:CartPole-v1")
environment.spec

# %% [markdown]
# ## Train
#
# `sebulba.train` is a generator of reports, as `anakin.train` is, and takes the same agent. `lag="latest"`
# lets every actor act with the newest parameters that there are, as in the paper. V-trace corrects for
# what the actors did under older ones.

# %%
learning = impala.ImpalaConfig(
  learning_rate=3e-3,
  learning_rate_schedule="linear",
  max_gradient_norm=1.0,
  vtrace_lambda=0.95,
  value_cost=2.5,
  network=config.NetworkConfig(activation="tanh"),
)
agent = impala.make_agent(learning, environment.spec)
machine = sebulba.SebulbaConfig(
  num_environments=64, unroll_length=16, threads_per_actor_device=2, updates_per_report=40
)
devices = host.start_jax(0, machine.preferred_devices)
print(devices)


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


# %%
reports = sebulba.train(agent, environment, learning, machine, num_env_steps=1_000_000)
report = follow(reports, environment.spec.name)

# %% [markdown]
# ## Where the time goes
#
# Each thread keeps a clock. A report says which stage is the bottleneck and what would help, and how
# long each stage takes a step. An actor's stages make up its whole time, and so do the learner's:
# stages in which a thread only waits (`parameters`, `queue`, `unrolls`) show which side is slower.

# %%
for line in report.summary.split("; "):
  print(line)

# %%
actor = ("environment", "inference", "transfer", "queue", "parameters")
learner = ("update", "publish", "unrolls")
waits = ("queue", "parameters", "unrolls")
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for name in (*actor, *learner):
  who = "actors" if name in actor else "learner"
  colour = "lightgrey" if name in waits else {"actors": "tab:blue", "learner": "tab:orange"}[who]
  axes.barh(f"{who}: {name}", 1e6 * report.metrics[f"stage/{name}"], color=colour)
axes.invert_yaxis()
axes.set(xlabel="microseconds of wall time a step (grey: waiting)")
plt.show()

# %% [markdown]
# On a CPU actors and learner share the cores. On a machine with several devices, `actor_devices=(0,)` and
# `learner_devices=(1, 2, 3)` split them; by default a quarter of them acts. `podracer tune` measures each part
# alone and names the fastest settings.

# %% [markdown]
# ## Lag
#
# The lag of an unroll is the number of updates between the parameters that acted and those that learn
# from it.
#
# * `latest`: whatever is newest. The lag depends on timing.
# * `fixed:k`: exactly k updates, whatever the timing, so that a run can be repeated number for number.
# * `lockstep`: none. Acting and learning take turns.


# %%
def short_run(lag):
  """Trains for a moment; returns the one report, at the end."""
  lagging = dataclasses.replace(machine, lag=lag, updates_per_report=1_000)
  *_, last = sebulba.train(agent, environment, learning, lagging, num_env_steps=100_000)
  return last


print(f"{'lag':10} {'least':>6} {'mean':>6} {'most':>6} {'steps/s':>9}")
for lag in ("latest", "fixed:1", "fixed:2", "lockstep"):
  metrics = short_run(lag).metrics
  lags = [f"{metrics[f'lag/{name}']:6.2f}" for name in ("min", "mean", "max")]
  print(f"{lag:10} {' '.join(lags)} {metrics['steps_per_second']:9,.0f}")

# %% [markdown]
# A fixed lag of k begins at 0 and has grown to k after k updates. The speeds say little here, where actors and
# learner share the cores; on devices of their own they overlap, but in lockstep take turns.
#
# The same seed and `fixed:1` twice, on threads that never run alike:

# %%
first, second = (jax.device_get(short_run("fixed:1").params) for _ in range(2))
same = jax.tree.map(np.array_equal, first, second)
print("the same parameters, bit for bit:", all(jax.tree.leaves(same)))

# %% [markdown]
# ## Watch it
#
# What `podracer watch` reads from the directory of a run is at hand here.

# %%
trained = types.SimpleNamespace(
  agent=agent,
  params=lambda seed: jax.device_get(report.params),
  environment=environment,
  factory=environment,
  env_steps=report.env_steps,
)
frames, returns = watch.record_frames(trained, watch.WatchConfig(workdir="", episodes=1))
watch.write_video("cartpole.mp4", frames, environment.frames_per_second)
print("return:", returns[0])
display.Video("cartpole.mp4", embed=True)

# %% [markdown]
# ## Next
#
# * Atari: `podracer train --env=envpool:Pong-v5` on the command line, which also has checkpoints and
#   resumes runs. It takes hours on two cores.
# * An environment of yours, written for gymnasium: `gymnasium:my_module:make_env`. See
#   `docs/custom_environment.md`.
# * MuZero on host environments: `muzero.make_agent` in place of `impala.make_agent`.
