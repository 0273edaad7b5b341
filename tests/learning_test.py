"""The presets learn, by the command a user types: three seeds, greedy evaluation, stated budgets.

The longer ones, with their curves, are in `benchmarks/learning/`.
"""

import json
import subprocess
import sys

import pytest


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lag", ["latest", "fixed:1"])
def test_cartpole_on_the_host(tmp_path, lag, seed):
  flags = (f"--lag={lag}", f"--seed={seed}")
  (result,) = train(tmp_path / "run", "envpool:CartPole-v1", 2_000_000, *flags, num_seeds=1)
  assert result >= 475
