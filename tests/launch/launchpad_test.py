"""Launchpad: the real one, on Python 3.10, whose nodes execute this checkout's podracer."""

import ast
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from absl import flags

from podracer.launch import launchpad_program

ROOT = pathlib.Path(__file__).parent.parent.parent
SOURCE = ROOT / "launch" / "launchpad_program.py"
REQUIREMENTS = ROOT / "launch" / "launchpad_requirements.txt"
VERSION = (3, 10)
TIMEOUT_SECONDS = 600
FAILURE_SECONDS = 30
# For the starting of processes on a busy machine, beside the limits of the program itself.
END_SECONDS = 60
# An update is 10 steps of 16 environments; in Catch, one in ten of them is a reset.
STEPS_PER_UPDATE = 16 * 9
NUM_ENV_STEPS = 1_400 * STEPS_PER_UPDATE
ENDLESS = 10**9
TRAINING = (
  "--env=gymnax:Catch-bsuite",
  "--num_devices=2",
  "--num_environments=16",
  "--unroll_length=10",
  "--updates_per_call=20",
  "--evaluate_episodes=16",
  "--config.learning_rate_schedule=constant",
  "--config.network.hidden_sizes",
  "8",
)
# Records its arguments, and executes here what it was to execute there.
FAKE = """#!{python}
import json, subprocess, sys
with open({record!r}, "a") as file:
  file.write(json.dumps(sys.argv) + "\\n")
command = next((a.partition("=")[2] for a in sys.argv if a.startswith("--command=")), sys.argv[-1])
sys.exit(subprocess.run(["sh", "-c", command]).returncode)
"""


def load_fresh():
  spec = importlib.util.spec_from_file_location("fresh", ROOT / "tests" / "fresh.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="session")
def launchpad_python():
  """The interpreter of an environment with the requirements, kept for the next time."""
  fresh = load_fresh()
  interpreter = fresh.find_python(VERSION)
  if interpreter is None:
    reason = "there is no Python 3.10, which Launchpad needs"
    pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
  name = f"launchpad-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  folder = cache / "podracer-tests" / name
  folder.parent.mkdir(parents=True, exist_ok=True)
  with open(f"{folder}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / "complete").exists():
      shutil.rmtree(folder, ignore_errors=True)
      python = fresh.make_environment(folder, interpreter)
      fresh.run(python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS)
      fresh.run(python, "-m", "pip", "check")
      (folder / "complete").touch()
  return folder / "bin" / "python"


def processes(*words):
  """Returns {process id: parent's} of those whose command line has all words."""
  found = {}
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
      if all(word in command for word in words):
        status = (path / "stat").read_text().rpartition(") ")[2].split()
        if status[0] != "Z":
          found[int(path.name)] = int(status[1])
  return found


class Program:
  """A launcher with its run directory `it's a run`, whose name needs quoting."""

  def __init__(self, python, root):
    self.python, self.root = python, root
    self.workdir = root / "it's a run"
    self.out = root / "launcher.out"

  def start(self, *args, num_env_steps=NUM_ENV_STEPS, **environment):
    training = [*TRAINING, f"--workdir={self.workdir}", f"--num_env_steps={num_env_steps}"]
    if num_env_steps != NUM_ENV_STEPS:
      training.append("--checkpoint_every_seconds=0.1")
    command = [self.python, SOURCE, f"--python={sys.executable}", *args, "--", *training]
    with open(self.out, "w") as out:
      self.popen = subprocess.Popen(
        [str(word) for word in command],
        cwd=self.root,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
      )

  def wait(self, seconds=TIMEOUT_SECONDS):
    """Returns the exit code."""
    return self.popen.wait(seconds)

  def wait_until_training(self):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(self.rows()) < 3 or not self.steps():
      assert self.popen.poll() is None, self.text()
      assert time.monotonic() < deadline, self.text()
      time.sleep(0.05)

  def training(self, i):
    """The process of host i that trains: a child of the one that was started."""
    found = processes(str(self.workdir), "podracer.launch.main", f"--process_id={i}")
    (child,) = (process for process, parent in found.items() if parent in found)
    return child

  def assert_no_orphans(self, seconds=0.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and processes(str(self.workdir)):
      time.sleep(0.1)
    assert not processes(str(self.workdir)), self.text()

  def text(self):
    return self.out.read_text()

  def rows(self):
    path = self.workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []

  def steps(self):
    return [p for p in (self.workdir / "checkpoints").glob("*") if p.name.isdecimal()]

  def assert_trained(self, num_env_steps=NUM_ENV_STEPS):
    assert json.loads(self.rows()[-1])["env_steps"] == num_env_steps
    evaluation = json.loads((self.workdir / "evaluation.json").read_text())
    assert evaluation["env_steps"] == num_env_steps
    for i in range(2):
      assert f"host {i} | process {i} of 2" in self.text()


@pytest.fixture
def program(launchpad_python, tmp_path):
  made = Program(launchpad_python, tmp_path)
  yield made
  for process in processes(str(made.workdir)):
    with contextlib.suppress(ProcessLookupError):
      os.kill(process, signal.SIGKILL)


def fake(folder, name):
  """Makes an executable of that name; returns the PATH with it and the file that it records to."""
  record = folder / f"{name}.jsonl"
  (folder / "bin").mkdir()
  path = folder / "bin" / name
  path.write_text(FAKE.format(python=sys.executable, record=str(record)))
  path.chmod(0o755)
  return f"{folder / 'bin'}:{os.environ['PATH']}", record


@pytest.mark.slow
def test_two_hosts_train_and_are_evaluated_and_recorded(program):
  program.start("--num_hosts=2", "--evaluate", "--record_episodes=8")
  assert program.wait() == 0, program.text()
  program.assert_no_orphans()
  program.assert_trained()
  # podracer evaluate plays 128 episodes by default, the training's own evaluation 16.
  assert json.loads((program.workdir / "evaluation.json").read_text())["episodes"] == 128
  assert "evaluator | evaluation (greedy" in program.text()
  assert (program.root / "it's a run-episodes" / "collection.json").exists()
  assert "8 of 8 episodes" in program.text()


@pytest.mark.slow
def test_one_killed_host_stops_all(program):
  program.start("--num_hosts=2", "--evaluate", num_env_steps=ENDLESS)
  program.wait_until_training()
  os.kill(program.training(1), signal.SIGKILL)
  code = program.wait(FAILURE_SECONDS)
  # Either is seen first: the death of one, or what the other says of it.
  assert code in (75, 128 + signal.SIGKILL), program.text()
  program.assert_no_orphans()
  assert program.steps()


@pytest.mark.slow
def test_killed_group_is_started_again_and_ends_at_the_exact_count(program):
  num_env_steps = 3_000 * STEPS_PER_UPDATE
  program.start("--num_hosts=2", "--max_restarts=1", num_env_steps=num_env_steps)
  program.wait_until_training()
  os.kill(program.training(0), signal.SIGKILL)
  assert program.wait() == 0, program.text()
  program.assert_no_orphans()
  assert "starting the group again (0 more times)" in program.text()
  assert "host 0 | resumed at" in program.text()
  program.assert_trained(num_env_steps)


@pytest.mark.slow
def test_sigterm_saves_and_ends_all(program):
  program.start("--num_hosts=2", num_env_steps=ENDLESS)
  program.wait_until_training()
  program.popen.send_signal(signal.SIGTERM)
  assert program.wait(END_SECONDS) == 128 + signal.SIGTERM, program.text()
  program.assert_no_orphans()
  assert "host 0 | saved at" in program.text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "keep"])
def test_nothing_outlives_a_killed_watcher(program, victim):
  path, _ = fake(program.root, "ssh")
  coordinator = f"--coordinator=127.0.0.1:{launchpad_program.free_port()}"
  program.start("--runner=ssh", "--hosts=a,b", coordinator, num_env_steps=ENDLESS, PATH=path)
  program.wait_until_training()
  if victim == "launcher":
    program.popen.kill()
  else:
    found = processes(sys.executable, "-m", launchpad_program.MODULE, "--process_id=1")
    keepers = [p for p, parent in found.items() if parent in found]
    os.kill(max(keepers or found), signal.SIGKILL)
    assert program.wait(FAILURE_SECONDS) != 0, program.text()
  program.assert_no_orphans(END_SECONDS)
  assert program.steps()


@pytest.mark.slow
def test_ssh_executes_on_each_host(program):
  path, record = fake(program.root, "ssh")
  coordinator = f"127.0.0.1:{launchpad_program.free_port()}"
  program.start(
    *("--runner=ssh", "--hosts=first,me@second", f"--coordinator={coordinator}", "--evaluate"),
    PATH=path,
  )
  assert program.wait() == 0, program.text()
  program.assert_no_orphans()
  program.assert_trained()
  called = [json.loads(line) for line in record.read_text().splitlines()]
  assert [argv[-2] for argv in sorted(called[:2])] == ["first", "me@second"]
  assert called[2][-2] == "first"
  for argv in called:
    assert "-oBatchMode=yes" in argv
    words = shlex.split(argv[-1])
    assert words[:4] == [sys.executable, "-m", launchpad_program.MODULE, "keep"]
    assert f"--workdir={program.workdir}" in words
  for i, argv in enumerate(sorted(called[:2])):
    assert shlex.split(argv[-1])[-3:] == [
      f"--coordinator={coordinator}",
      "--num_processes=2",
      f"--process_id={i}",
    ]


@pytest.mark.slow
def test_gcloud_executes_on_each_worker(program):
  path, record = fake(program.root, "gcloud")
  coordinator = f"127.0.0.1:{launchpad_program.free_port()}"
  place = ("--tpu_name=pod", "--zone=here", "--project=mine", f"--coordinator={coordinator}")
  program.start("--runner=gcloud", "--num_hosts=2", *place, "--evaluate", PATH=path)
  assert program.wait() == 0, program.text()
  program.assert_no_orphans()
  program.assert_trained()
  called = [json.loads(line)[1:] for line in record.read_text().splitlines()]
  assert sorted(argv[5] for argv in called[:2]) == ["--worker=0", "--worker=1"]
  for argv in called:
    assert argv[:5] == ["compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert argv[6:8] == ["--zone=here", "--project=mine"]
    words = shlex.split(argv[8].partition("--command=")[2])
    assert f"--workdir={program.workdir}" in words
  # The TPUs of one host alone can't be used.
  assert called[2][5] == "--worker=0"
  assert called[2][8].startswith(f"--command=env JAX_PLATFORMS=cpu {sys.executable} -m ")


@pytest.mark.slow
def test_bad_flags_are_one_line(launchpad_python, tmp_path):
  def line(*args):
    command = [str(word) for word in (launchpad_python, SOURCE, *args)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 2, result
    assert not result.stdout
    assert result.stderr.count("\n") == 1
    return result.stderr

  assert "Did you mean: num_hosts" in line("--num_host=2")
  assert "need --python" in line("--num_hosts=2", "--", "--workdir=a")
  # What only podracer knows is said by each host.
  command = [launchpad_python, SOURCE, "--num_hosts=2", f"--python={sys.executable}", "--"]
  command += [*TRAINING, "--workdir=a", "--agent=imapla"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
  assert result.returncode == 2, result
  assert "imapla" in result.stdout
  assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.slow
def test_wheel_has_program_and_requirements(tmp_path):
  names = zipfile.ZipFile(load_fresh().build_wheel(tmp_path)).namelist()
  assert {f"podracer/launch/{path.name}" for path in (SOURCE, REQUIREMENTS)} <= {*names}


def test_program_is_python_3_10_of_the_standard_library_absl_and_launchpad():
  tree = ast.parse(SOURCE.read_text(), feature_version=VERSION)
  imported = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0
      imported.add(node.module.partition(".")[0])
  assert imported - set(sys.stdlib_module_names) == {"absl", "launchpad"}


def test_pins_are_exact():
  lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
  pins = dict(line.split("==") for line in lines if line)
  assert {"dm-launchpad", "tensorflow-cpu", "protobuf", "numpy", "absl-py"} <= pins.keys()
  assert all(version.replace(".", "").isdecimal() for version in pins.values())


def parse(*args):
  values = flags.FlagValues()
  launchpad_program.define_flags(values)
  return launchpad_program.parse(["launchpad_program", *args], values)


GOOD = (f"--python={sys.executable}", "--num_hosts=2", "--", "--env=a:b", "--workdir=/runs/a")


def test_commands_of_the_nodes():
  launch = parse("--evaluate", "--record_episodes=9", *GOOD)
  nodes = {node.name: node for node in launch.nodes()}
  assert list(nodes) == ["host 0", "host 1", "evaluator", "recorder"]
  assert nodes["recorder"].after == ("host 0", "host 1", "evaluator")
  kept = [sys.executable, "-m", launchpad_program.MODULE, "keep"]
  assert nodes["host 1"].command == [
    *(*kept, "train", "--env=a:b", "--workdir=/runs/a"),
    *(f"--coordinator={launch.coordinator}", "--num_processes=2", "--process_id=1"),
  ]
  assert nodes["evaluator"].command == [*kept, "evaluate", "--workdir=/runs/a"]
  expected = ["record", "--workdir=/runs/a", "--episodes=9", "--out=/runs/a-episodes"]
  assert nodes["recorder"].command == [*kept, *expected]


def test_coordinator_of_ssh_is_the_first_host(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", fake(tmp_path, "ssh")[0])
  launch = parse("--runner=ssh", "--hosts=me@a,b", "--port=99", *GOOD)
  assert (launch.num_hosts, launch.coordinator) == (2, "a:99")


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (("--num_hosts=0", *GOOD[2:]), "num_hosts must be at least 1"),
    (GOOD[:2], "need --workdir, after --"),
    ((*GOOD[:2], "--env=a:b"), "train's flags come after --"),
    ((*GOOD[:2], "train", *GOOD[2:]), "train: train's flags come after --"),
    ((*GOOD, "--process_id", "1"), "--process_id of podracer train is set by the launcher"),
    ((*GOOD, "--restart"), "--restart can't be launched"),
    (("--runner=slurm", *GOOD), "--runner must be one of local, ssh, gcloud"),
    (("--runner=ssh", *GOOD), "needs --hosts"),
    (("--runner=ssh", "--hosts=a,b,c", *GOOD), "--hosts names 3"),
    (("--runner=ssh", "--hosts=a,-oProxyCommand=b", *GOOD), "is no host"),
    (("--runner=ssh", "--hosts=a,b", *GOOD, "--workdir=runs"), "absolute path"),
    (("--runner=gcloud", *GOOD), "needs --coordinator"),
    (("--runner=gcloud", "--coordinator=a:1", "--zone=z", *GOOD), "needs --tpu_name"),
    (("--coordinator=host", *GOOD), "--coordinator must be address:port"),
    (("--python=/no/python", "--num_hosts=1", *GOOD[2:]), "can't be executed"),
    (("--record_episodes=-1", *GOOD), "record_episodes must not be negative"),
  ],
)
def test_bad_flags(args, message, tmp_path, monkeypatch):
  folder = tmp_path / "bin"
  folder.mkdir()
  for name in ("ssh", "gcloud"):
    (folder / name).write_text("")
    (folder / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  if "--python" not in " ".join(args):
    args = (GOOD[0], *args)
  with pytest.raises(launchpad_program.UsageError) as error:
    parse(*args)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def keep(*args, **keywords):
  command = [sys.executable, "-m", launchpad_program.MODULE, "keep", *args]
  return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **keywords)


def test_keep_gives_output_and_exit_code(tmp_path):
  process = keep("envs", "Catch", cwd=tmp_path, stdin=subprocess.DEVNULL)
  assert "gymnax:Catch-bsuite" in process.communicate()[0]
  assert process.returncode == 0
  with keep("trian", cwd=tmp_path, stdin=subprocess.PIPE) as process:
    assert "train" in process.stdout.read()
  assert process.returncode == 2
