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
# # Expert data: record what a trained agent experiences
#
# What an agent experiences becomes a dataset that today's trainers read with no glue: RLDS episodes in
# ArrayRecord files. This notebook trains an agent, records whole episodes of it, and reads them back: as
# arrays, through a filter, in batches by Grain, by TFDS's stock reader, and exported to Minari.
#
# It needs no accelerator. All cells together take about three minutes on two CPU cores.

# %% [markdown]
# ## Install
#
# The cell does nothing where podracer is installed already. On Colab, put the git URL of podracer into the
# form field.

# %%
# @title Install podracer
SOURCE = ""  # @param {type:"string"}
EXTRAS = "minari"
OTHERS = ["tensorflow-datasets"]

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
import os
import sysconfig

import grain
import matplotlib.pyplot as plt
import numpy as np
from IPython import display

from podracer import data

# Where the command `podracer` lies, should this kernel not know.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
# A kernel asks programs for colours, at which the progress bar takes the cell for a terminal.
_ = os.environ.pop("FORCE_COLOR", None)

# %% [markdown]
# ## Train
#
# The command line trains into a run directory. In CartPole a pole is balanced; the return is the number
# of steps it stays up, 500 at most. `--record=0.05` also keeps the whole episodes of that share of the
# environments while the agent learns.

# %% language="bash"
# podracer train --env=gymnax:CartPole-v1 --num_env_steps=1_000_000 --record=0.05 --workdir=runs/cartpole

# %%
display.Image("runs/cartpole/learning_curve.png", width=600)

# %% language="bash"
# podracer watch --workdir=runs/cartpole --episodes=1

# %%
display.Video("runs/cartpole/watch.mp4", embed=True)

# %% [markdown]
# ## Record
#
# `podracer record` plays with the trained agent on the machine of its run. It samples the policy, for a greedy
# agent repeats itself where nothing is random. The scores of a random policy and of the agent are measured
# as well, so that returns can be compared between tasks.

# %% language="bash"
# podracer record --workdir=runs/cartpole --episodes=200 --score_episodes=64 --out=data/cartpole
# podracer data verify data/cartpole

# %% [markdown]
# ## Open
#
# A collection has a dataset for each task, and a dataset is a view of episodes. Nothing is read before steps
# are asked for.

# %%
collection = data.open("data/cartpole")
(task,) = collection.tasks
dataset = collection[task]
print(dataset.num_total, "episodes,", dataset.num_steps, "steps")
for who, score in dataset.scores.items():
  print(f"{who}: {score['mean']:.1f} ± {score['std']:.1f}")
columns = ["episode_return", "episode_length", "policy_mode", "teacher_step", "seed"]
dataset.rows.select(columns).to_pandas().head()

# %% [markdown]
# An episode of T transitions has T+1 steps. The reward of a step follows its action, and the last step has
# the true final observation. Beside what the environment said, there is what the agent thought: the
# logits it sampled from, and the value it expected.

# %%
episode = dataset.episode(0)
for name, values in episode.steps.items():
  print(f"{name:20} {values.dtype!s:8} {values.shape}")

# %%
figure, (above, below) = plt.subplots(2, 1, figsize=(7, 4), sharex=True, layout="constrained")
above.plot(np.degrees(episode.steps["observation"][:, 2]))
above.set(ylabel="angle of the pole")
below.plot(episode.steps["value"][:-1])
below.set(xlabel="step", ylabel="value")
plt.show()

# %% [markdown]
# ## Filter
#
# A filter is a view, and deletes nothing. `norm80` keeps episodes whose return is at least 0.8 of the
# way from the random score to the expert's.

# %%
good = dataset.filter("norm80")
print(good.dropped)

while_training = data.open("runs/cartpole/data")[task]
step = while_training.column("teacher_step")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
left.plot(step, while_training.column("episode_return"), ".", markersize=3, alpha=0.5)
left.set(
  xlabel="steps the teacher was trained for", ylabel="episode return", title="while training"
)
left.xaxis.set_major_formatter("{x:,.0f}")
bins = np.linspace(0, dataset.column("episode_return").max(), 25)
for view, label in ((dataset, "all"), (good, "norm80")):
  returns = view.column("episode_return")
  right.hist(returns, bins, orientation="horizontal", label=label, alpha=0.7)
right.set(xlabel="episodes", title="of the trained agent")
right.legend()
plt.show()

# %% [markdown]
# ## Batches by Grain
#
# A source gives windows that lie in one episode; `mask` says where one is filled up. Grain shuffles,
# batches, and resumes.

# %%
source = data.WindowSource(good, length=16, names=["observation", "action", "reward"])
batches = grain.MapDataset.source(source).seed(0).shuffle().batch(32)
for name, values in batches[0].items():
  print(f"{name:12} {values.dtype!s:8} {values.shape}")

# %% [markdown]
# ## TFDS
#
# The same files are a TFDS dataset, which its stock reader opens, with TensorFlow or without.

# %%
import tensorflow_datasets as tfds

builder = tfds.builder_from_directory(f"data/cartpole/{task}/1.0.0")
records = builder.as_data_source(split="train")
print(len(records), "records, of at most 256 steps each")
print(records[0]["task"], records[0]["episode_return"], sorted(records[0]["steps"][0]))

# %% [markdown]
# ## Export
#
# Four formats of other libraries are written too, and each is read by its own reader. Here it is Minari.

# %% language="bash"
# podracer data export data/cartpole --to=minari --filter=norm80 --out=export/cartpole

# %%
os.environ["MINARI_DATASETS_PATH"] = os.path.abspath("export/cartpole")
import minari

exported = minari.load_dataset(f"{task}-v0")
print(exported.total_episodes, "episodes,", exported.total_steps, "steps")
print("return of the first:", exported[0].rewards.sum())

# %% [markdown]
# ## Next
#
# * `podracer data info data/cartpole` tells what is in a collection; `merge` joins several.
# * `--record_histories` keeps all episodes of an environment as one learning history, in order.
# * `docs/expert_data.md` has the format, the filters and the other exports.
