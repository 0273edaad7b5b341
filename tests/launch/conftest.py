"""Runs that several test files use: real processes with one tiny configuration, so they share what they compile."""

import glob
import json
import pathlib
import re
import subprocess
import sys
import time

import pytest

TIMEOUT_SECONDS = 300
TINY = (
  "--env=podracer.testing:probe_memory",
  "--num_environments=16",
  "--unroll_length=10",
  "--updates_per_call=20",
  "--num_devices=1",
  "--evaluate_episodes=16",
  # Whatever the preset is: a run with a schedule can't be given more steps.
  "--config.learning_rate_schedule=constant",
  "--config.learning_rate=0.005",
  "--config.network.hidden_sizes",
  "8",
)
NUM_ENV_STEPS = 300_000


class Process:
  """One `podracer` process, with its output in files."""

  def __init__(self, args, cwd, name="process", wrapper=(), **keywords):
    self.out, self.err = (pathlib.Path(cwd) / f"{name}.{stream}" for stream in ("out", "err"))
    command = [*wrapper, sys.executable, "-m", "podracer.launch.main", *map(str, args)]
    with open(self.out, "w") as out, open(self.err, "w") as err:
      # A group of its own, so that a signal meant for it is not ours too.
      self.popen = subprocess.Popen(
        command, cwd=cwd, stdout=out, stderr=err, start_new_session=True, **keywords
      )

  def wait(self):
    """Returns (exit code, standard output, standard error)."""
    try:
      code = self.popen.wait(TIMEOUT_SECONDS)
    finally:
      self.popen.kill()
    return code, self.out.read_text(), self.err.read_text()

  def wait_until(self, condition):
    """Waits for something that a run does before it ends."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
      assert self.popen.poll() is None, (
        f"ended too early: {self.out.read_text()}{self.err.read_text()}"
      )
      assert time.monotonic() < deadline
      time.sleep(0.002)

  def send(self, number):
    self.popen.send_signal(number)


class Run:
  """A run directory `run` in a directory of its own, and how to start processes on it."""

  def __init__(self, root):
    self.root = pathlib.Path(root)
    self.workdir = self.root / "run"

  def start(self, *args, **keywords):
    steps = (
      () if any("--num_env_steps" in arg for arg in args) else (f"--num_env_steps={NUM_ENV_STEPS}",)
    )
    return Process(("train", *TINY, *steps, "--workdir=run", *args), self.root, **keywords)

  def train(self, *args, **keywords):
    return self.start(*args, **keywords).wait()

  def process(self, *args):
    return Process(args, self.root)

  def command(self, *args):
    return self.process(*args).wait()

  def num_rows(self):
    path = self.workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def rows(self):
    """The rows of metrics.jsonl, but for what depends on the clock."""
    with open(self.workdir / "metrics.jsonl") as file:
      rows = [json.loads(line) for line in file]
    clock = ("time", "steps_per_second")
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]

  def steps(self):
    return sorted(
      (path for path in (self.workdir / "checkpoints").glob("*") if path.name.isdecimal()),
      key=lambda path: int(path.name),
    )

  def state(self):
    """Digests of every array of the newest checkpoint, and the counters."""
    text = pathlib.Path(glob.glob(f"{self.steps()[-1]}/manifest/metadata*")[0]).read_text()
    manifest = json.loads(text)["manifest"]
    return manifest["items"], manifest["metadata"]["counters"]

  def evaluation(self):
    return json.loads((self.workdir / "evaluation.json").read_text())

  def assert_same_as(self, other):
    assert self.state() == other.state()
    assert self.rows() == other.rows()
    assert self.evaluation() == other.evaluation()


class Loss:
  """What a fault costs, as properties of the test; benchmarks/faults.py prints them."""

  def __init__(self, record_property):
    self._record, self._begin, self._env_steps = record_property, 0.0, 0

  def happens(self, run):
    """To be called as a fault happens."""
    self._begin, self._env_steps = time.monotonic(), _env_steps(run)

  def has(self, what):
    """To be called when the processes have ended, or have resumed."""
    self._record(f"{what}_seconds", time.monotonic() - self._begin)

  def is_mended(self, said):
    """To be called with what was said by the processes that went on."""
    resumed = int(re.findall(r"resumed at ([\d,]+)", said)[-1].replace(",", ""))
    self._record("env_steps", self._env_steps)
    # After a signal it trains on until it has saved: nothing is lost.
    self._record("lost_env_steps", max(0, self._env_steps - resumed))
    self._record("first_update_seconds", float(re.findall(r"first update ([\d.]+) s", said)[-1]))


def _env_steps(run):
  """The last count that was written, which may be of before the last update."""
  return run.rows()[-1]["env_steps"] if run.num_rows() else 0


@pytest.fixture
def loss(record_property):
  return Loss(record_property)


@pytest.fixture
def make_run(tmp_path):
  return lambda name="a": _make_run(tmp_path / name)


def _make_run(root):
  root.mkdir()
  return Run(root)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """A run that nothing interrupted; not to be changed."""
  run = Run(tmp_path_factory.mktemp("finished"))
  code, out, err = run.train()
  assert code == 0, out + err
  return run
