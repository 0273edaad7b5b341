"""Sebulba from the command line: signals, kills, faulty environments and bad input, on real processes."""

import itertools
import json
import signal
import time

import pytest

import podracer
from podracer.launch import main as main_lib

CARTPOLE = (
  "--env=envpool:CartPole-v1",
  "--num_environments=8",
  "--unroll_length=10",
  "--updates_per_report=5",
  "--evaluate_episodes=4",
  "--config.learning_rate_schedule=constant",
)
# An environment of gymnasium with a fault at a stated step, and one of the host that blocks for ever.
FAULTY = """
import os
import threading

import gymnasium
import numpy as np

from podracer import host_environment, types


class Faulty(gymnasium.Env):
  observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, fault):
    self.fault, self.count = fault, 0

  def reset(self, *, seed=None, options=None):
    return np.zeros((2,), np.float32), {}

  def step(self, action):
    self.count += 1
    if self.count == 100:
      if self.fault == "raises":
        raise ZeroDivisionError("the environment's own fault")
      if self.fault == "dies":
        os._exit(3)
      if self.fault == "blocks":
        threading.Event().wait()
      return np.full((2,), np.nan, np.float32), 0.0, False, False, {}
    return np.zeros((2,), np.float32), 1.0, self.count % 7 == 0, False, {}


def make(fault="nan"):
  return Faulty(fault)


class Blocks:
  def __init__(self, size):
    self.spec, self.num_environments, self.count = SPEC, size, 0

  def reset(self):
    none, zeros = np.zeros((self.num_environments,), bool), np.zeros((self.num_environments,))
    return host_environment.make_timestep(~none, zeros, none, none, np.zeros((len(none), 2), "f4"))

  def step(self, action):
    self.count += 1
    if self.count > 50:
      threading.Event().wait()
    none, zeros = np.zeros((self.num_environments,), bool), np.zeros((self.num_environments,))
    return host_environment.make_timestep(none, zeros, none, none, np.zeros((len(none), 2), "f4"))

  def close(self):
    pass


SPEC = types.EnvironmentSpec(
  "blocks", types.ArraySpec((2,), np.dtype("float32")), types.DiscreteActions(2)
)


def blocks():
  return host_environment.HostFactory(spec=SPEC, make=lambda seeds, options: Blocks(len(seeds)))
"""


@pytest.fixture
def make_process(make_run):
  run = make_run()
  (run.root / "faulty.py").write_text(FAULTY)
  return run, lambda *args: run.process("train", "--workdir=run", *args)


def assert_continues(run, make, before, *args):
  """The same command goes on: learner restored, rows kept, steps counted on."""
  code, out, err = make(*CARTPOLE, *args, "--num_env_steps=20000").wait()
  assert code == 0, out + err
  assert f"resumed at {before:,} environment steps" in out
  assert "Traceback" not in err
  rows = run.rows()
  steps = [row["env_steps"] for row in rows]
  assert steps == sorted(set(steps)) and steps[-1] >= 20_000
  updates = [row["updates"] for row in rows]
  # 80 transitions an update, of which resets are not counted: no step is counted twice.
  for a, b in itertools.pairwise(rows):
    assert 0 < b["env_steps"] - a["env_steps"] <= 80 * (b["updates"] - a["updates"])
  assert updates == sorted(set(updates))


@pytest.mark.slow
def test_sigterm_saves_within_an_update_and_the_run_goes_on(make_process):
  run, make = make_process
  process = make(*CARTPOLE, "--num_env_steps=100000000")
  process.wait_until(lambda: run.num_rows() >= 3)
  process.send(signal.SIGTERM)
  code, out, err = process.wait()
  assert code == 128 + signal.SIGTERM, out + err
  assert "saved at" in out and "Traceback" not in err
  before = run.rows()[-1]["env_steps"]
  assert podracer.load_policy(str(run.workdir)).env_steps == before
  row = run.rows()[-1]
  for name in (
    "lag/min",
    "lag/mean",
    "lag/max",
    "queue/depth",
    "stage/environment",
    "stage/update",
  ):
    assert row[name] >= 0
  assert_continues(run, make, before)
  evaluation = json.loads((run.workdir / "evaluation.json").read_text())
  assert evaluation["episodes"] == 4


@pytest.mark.slow
def test_kill_9_and_two_interrupts(make_process):
  run, make = make_process
  process = make(*CARTPOLE, "--num_env_steps=100000000", "--checkpoint_every_seconds=0.2")
  process.wait_until(lambda: len(run.steps()) >= 2)
  process.send(signal.SIGKILL)
  assert process.wait()[0] == -signal.SIGKILL
  before = podracer.load_policy(str(run.workdir)).env_steps
  process = make(*CARTPOLE, "--num_env_steps=100000000")
  process.wait_until(lambda: "resumed at" in process.out.read_text())
  process.send(signal.SIGINT)
  process.wait_until(lambda: "saving and ending" in process.err.read_text())
  process.send(signal.SIGINT)
  code, _, err = process.wait()
  assert code == 128 + signal.SIGINT
  assert "Traceback" not in err
  # It may have saved between the two.
  before = podracer.load_policy(str(run.workdir)).env_steps
  assert_continues(run, make, before)


FAULTS = [
  ("gymnasium:faulty:make", "raises", "ZeroDivisionError: the environment's own fault"),
  ("gymnasium:faulty:make", "dies", "ended with exit code 3"),
  ("gymnasium:faulty:make", "nan", "observation that is not finite, in environment"),
  ("gymnasium:faulty:make", "blocks", "did not answer for 5 s"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("env", "fault", "expected"), FAULTS, ids=lambda x: str(x)[:20])
def test_a_fault_of_an_environment_ends_the_run_with_its_traceback(
  make_process, env, fault, expected
):
  _, make = make_process
  process = make(
    f"--env={env}",
    "--env_options",
    f"fault={fault}",
    "--num_environments=8",
    "--unroll_length=10",
    "--stall_timeout_seconds=5",
    "--num_env_steps=100000000",
  )
  code, _, err = process.wait()
  assert code == 1
  assert "Traceback" in err and expected in err, err


@pytest.mark.slow
def test_a_thread_that_is_stuck_does_not_keep_the_process(make_process):
  _, make = make_process
  process = make(
    "--env=faulty:blocks",
    "--architecture=sebulba",
    "--num_environments=8",
    "--unroll_length=10",
    "--stall_timeout_seconds=5",
    "--num_env_steps=100000000",
  )
  begin = time.monotonic()
  code, _, err = process.wait()
  assert code == 1
  assert "podracer: stalled: actor " in err and "is stepping faulty:blocks (environments" in err
  assert "Traceback" not in err
  assert time.monotonic() - begin < 120


POOL = ("train", "--env=envpool:CartPole-v1")
CASES = [
  ((*POOL, "--architecture=anakin"), "runs on the host, which takes --architecture=sebulba"),
  (
    (*POOL, "--actor_devices", "0", "1", "--num_environments=6"),
    "not divisible by the 4 actor threads",
  ),
  (
    (*POOL, "--actor_devices", "1", "--num_devices=1"),
    "actor_devices=(1,), but there are 1 devices",
  ),
  ((*POOL, "--num_environments=63"), "not divisible by the 2 actor threads"),
  ((*POOL, "--learner_devices", "0", "1", "2"), "not divisible by the 3 learner devices"),
  ((*POOL, "--lag=fixed"), "lag must be latest, lockstep or fixed:k"),
  ((*POOL, "--num_seeds=2"), "sebulba runs one seed at a time"),
  ((*POOL, "--env_options", "gravity=9"), "has no option gravity; its options: "),
  ((*POOL, "--env_options", "max_episode_steps=x"), "max_episode_steps must be a whole number"),
  (("train", "--env=envpool:Pnog-v5"), "nearest: envpool:Pong-v5"),
  (("train", "--env=gymnasium:CartPole-v11"), "nearest: gymnasium:CartPole-v1"),
  (("train", "--env=envpool:Go-v1"), "environment envpool:Go-v1"),
  (("tune", "--env=envpool:CartPole-v1", "--seconds=0"), "seconds must be above 0"),
  (
    ("tune", "--env=envpool:CartPole-v1", "--num_environments=3", "--threads_per_actor_device=2"),
    "is divisible",
  ),
]


@pytest.mark.parametrize(("args", "expected"), CASES, ids=lambda x: " ".join(x)[:70])
def test_one_line_and_exit_code_2(args, expected, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    main_lib.main(args)
  captured = capsys.readouterr()
  assert stop.value.code == 2
  assert captured.err.count("\n") == 1, captured.err
  assert expected in captured.err
  assert "Traceback" not in captured.err
  assert list(tmp_path.iterdir()) == [], "something was left behind"
