"""The presets learn, by the command a user types: three seeds, greedy evaluation, stated budgets.

The longer ones, with their curves, are in `benchmarks/learning/`.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from podracer import evaluation
from podracer.environments import pgx
from podracer.launch import policy


def train(workdir, env, num_env_steps, *flags, num_seeds=3):
  """Trains seeds in one program; returns the mean return of each in the final evaluation."""
  command = [sys.executable, "-m", "podracer.launch.main", "train", f"--env={env}"]
  command += [f"--workdir={workdir}", f"--num_env_steps={num_env_steps}"]
  command += [f"--num_seeds={num_seeds}", *flags]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr
  evaluation = json.loads((workdir / "evaluation.json").read_text())
  assert evaluation["mode"] == "greedy" and evaluation["episodes"] == num_seeds * 128
  returns = evaluation["seeds/return_mean"] if num_seeds > 1 else [evaluation["return_mean"]]
  assert len(returns) == num_seeds
  print(env, returns)
  return returns


def test_catch(tmp_path):
  assert min(train(tmp_path / "run", "gymnax:Catch-bsuite", 500_000)) >= 0.95


@pytest.mark.slow
def test_cartpole(tmp_path):
  assert min(train(tmp_path / "run", "gymnax:CartPole-v1", 3_000_000)) >= 475


@pytest.mark.slow
def test_memory_needs_the_lstm(tmp_path):
  env = "gymnax:MemoryChain-bsuite"
  with_lstm = train(tmp_path / "lstm", env, 500_000)
  without = train(tmp_path / "feed_forward", env, 500_000, "--config.network.lstm_size=0")
  # Return 1 for the right answer and -1 for the wrong one: guessing has a mean of 0, and 128 episodes a
  # standard error of 0.09.
  assert min(with_lstm) >= 0.95
  assert max(without) <= 0.5


@pytest.mark.slow
def test_pendulum(tmp_path):
  # A random policy has about -1,200; good ones end between -150 and -250.
  assert min(train(tmp_path / "run", "gymnax:Pendulum-v1", 3_000_000)) >= -300


@pytest.mark.parametrize(
  ("lag", "seed"),
  [
    *(pytest.param("latest", seed, marks=pytest.mark.slow) for seed in range(3)),
    pytest.param("fixed:1", 0, marks=pytest.mark.slow),
    *(pytest.param("fixed:1", seed, marks=pytest.mark.exhaustive) for seed in (1, 2)),
  ],
)
def test_cartpole_on_the_host(tmp_path, lag, seed):
  flags = (f"--lag={lag}", f"--seed={seed}")
  (result,) = train(tmp_path / "run", "envpool:CartPole-v1", 2_000_000, *flags, num_seeds=1)
  assert result >= 475


@pytest.mark.slow
@pytest.mark.parametrize(
  ("env", "num_env_steps", "least"),
  [("gymnax:Catch-bsuite", 800_000, 0.95), ("gymnax:CartPole-v1", 500_000, 400)],
)
def test_muzero_on_anakin(tmp_path, env, num_env_steps, least):
  assert min(train(tmp_path / "run", env, num_env_steps, "--agent=muzero")) >= least


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
  ("env", "num_env_steps", "least"),
  [("gymnax:Catch-bsuite", 800_000, 0.95), ("envpool:CartPole-v1", 500_000, 400)],
)
def test_muzero_on_sebulba(tmp_path, env, num_env_steps, least, seed):
  flags = ("--agent=muzero", "--architecture=sebulba", f"--seed={seed}")
  (result,) = train(tmp_path / "run", env, num_env_steps, *flags, num_seeds=1)
  assert result >= least


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_small_student_plays_as_its_teacher(tmp_path, seed):
  """Of a quarter of the width, and later faster than from reward alone: kickstarted."""
  env = "gymnax:Catch-bsuite"
  (teacher,) = train(tmp_path / "teacher", env, 500_000, f"--seed={seed}", num_seeds=1)
  small = ("--config.network.hidden_sizes", "16", f"--seed={seed}")
  (student,) = distill(tmp_path, "student", 300_000, *small)
  (kickstarted,) = distill(tmp_path, "kickstarted", 300_000, "--kickstart", *small)
  assert teacher >= 0.95
  assert min(student, kickstarted) >= 0.95 * teacher


def distill(root, name, num_env_steps, *flags):
  """Trains a student of the run `teacher` in the same directory; returns its evaluation."""
  command = [
    sys.executable,
    "-m",
    "podracer.launch.main",
    "distill",
    f"--teacher={root / 'teacher'}",
  ]
  command += [f"--workdir={root / name}", f"--num_env_steps={num_env_steps}", *flags]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout + result.stderr
  evaluation = json.loads((root / name / "evaluation.json").read_text())
  print(name, evaluation["return_mean"])
  return [evaluation["return_mean"]]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_muzero_plays_tic_tac_toe(tmp_path):
  """It never loses to a random player in 200 games, and draws against a perfect one."""
  train(tmp_path / "run", "pgx:tic_tac_toe", 1_000_000, "--agent=muzero")
  loaded = policy.LoadedRun(str(tmp_path / "run"))
  opponents = {"random": None, "perfect": load_minimax().opponent}
  for name, opponent in opponents.items():
    game = loaded.environment.evaluation
    if opponent is not None:
      game = pgx.versus("tic_tac_toe", opponent)
    evaluate = evaluation.make_evaluator(loaded.agent, game, num_episodes=200)
    for seed in range(3):
      returns = evaluate(loaded.params(seed), jax.random.key(seed)).returns
      print(name, seed, returns.mean(), (returns < 0).sum())
      if name == "random":
        assert np.all(returns >= 0)
      else:
        assert np.mean(returns >= 0) >= 0.9


def load_minimax():
  """Returns the module beside this one: `tests` is the name of another package too."""
  path = pathlib.Path(__file__).parent / "minimax.py"
  spec = importlib.util.spec_from_file_location("minimax", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
