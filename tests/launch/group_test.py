"""Several processes that train together, joined on the loopback: what they agree on, and what becomes of the
others where one is stopped, killed or stuck."""

import contextlib
import ipaddress
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import podracer
from podracer import config
from podracer.launch import guard, host, rehearse
from podracer.launch import main as main_lib

from .conftest import TINY, Process, Run
from .faults_test import data_files, flip_bit

TERMINATED = 128 + signal.SIGTERM
PEER_TIMEOUT = 10


class Group:
  """The processes of one start."""

  def __init__(self, root, *args, size=2, by_process=None, port=0, wrapped=None):
    self.coordinator = f"127.0.0.1:{port or rehearse.free_port()}"
    joined = (f"--coordinator={self.coordinator}", f"--num_processes={size}")
    limits = ("--join_timeout_seconds=120", f"--peer_timeout_seconds={PEER_TIMEOUT}")
    own = by_process or {}
    self.members = [
      Process(
        ("train", *args, *joined, *limits, f"--process_id={i}", *own.get(i, ())),
        root,
        name=f"p{i}",
        wrapper=(wrapped or {}).get(i, ()),
      )
      for i in range(size)
    ]

  def wait(self):
    """Returns the exit codes, and all that was said."""
    ends = [member.wait() for member in self.members]
    return [code for code, _, _ in ends], "".join(out + err for _, out, err in ends)

  def worker(self, i):
    """The process that trains, which the one that was started watches."""
    (child,) = children(self.members[i].popen.pid)
    return child


def children(pid):
  path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
  return [int(child) for child in path.read_text().split()]


def processes_in(directory):
  """Processes that run in a directory."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      if os.readlink(path / "cwd") == str(directory):
        found.append(int(path.name))
    except OSError:
      continue
  return found


def digests(said):
  """The parameters that the processes say they end with."""
  return re.findall(r"parameters ([0-9a-f]{8})", said)


def params(run):
  return jax.tree.leaves(podracer.load_policy(str(run.workdir)).params)


# --- What is wrong is said before anything begins.


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "must be address:port or auto"),
    ({"coordinator": "here:0", "num_processes": 2, "process_id": 0}, "must be address:port"),
    ({"coordinator": ":12", "num_processes": 2, "process_id": 0}, "must be address:port"),
    ({"coordinator": "here:1"}, "num_processes must be above 0"),
    ({"coordinator": "here:1", "num_processes": 2}, "process_id must be 0 .. 1, got -1"),
    ({"coordinator": "here:1", "num_processes": 2, "process_id": 2}, "must be 0 .. 1, got 2"),
    ({"num_processes": 2}, "need --coordinator"),
    ({"coordinator": "auto", "process_id": 1}, "are found by themselves"),
  ],
)
def test_what_names_no_group(values, message):
  with pytest.raises(config.InputError, match=message):
    host.GroupConfig(**values)


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--num_hosts=x"], "--num_hosts: invalid literal"),
    (["--num_hosts=0"], "num_hosts must be above 0"),
    (["--num_devices=4"], "--num_devices is set by the rehearsal"),
    (["--num_hosts=3", "--env=gymnax:Catch-bsuite"], "not divisible by the 3 devices"),
  ],
)
def test_what_cannot_be_rehearsed(args, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    main_lib.main(["rehearse", *args])
  captured = capsys.readouterr()
  assert stop.value.code == 2
  assert captured.err.count("\n") == 1
  assert message in captured.err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("end", "code", "message"),
  [
    ("return 3", 3, ""),
    ("sys.exit(4)", 4, ""),
    ("raise config.InputError('wrong')", 2, "podracer: wrong"),
    ("raise ValueError('broken')", 1, "ValueError: broken"),
    ("raise jax.errors.JaxRuntimeError('Gloo: Connection closed by peer')", 75, "a peer was lost"),
    ("raise ValueError('UNKNOWN: Gloo all-reduce failed: reset by peer')", 75, "a peer was lost"),
    ("raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: shapes')", 1, "INVALID_ARGUMENT"),
    ("os.abort()", 75, "did not come together"),
    ("guard.joined(); os.abort()", 75, "a peer was lost or is stuck"),
    ("os.kill(os.getpid(), 9)", 137, ""),
    ("os.kill(os.getppid(), 15); signal.pause()", TERMINATED, "before the group had come together"),
    ("guard.joined(); os.kill(os.getppid(), 15); signal.pause()", TERMINATED, ""),
  ],
)
def test_however_the_run_ends_it_has_an_exit_code(end, code, message):
  source = f"""
import os, signal, sys
from podracer import config
from podracer.launch import guard
def work():
  import jax
  {end}
guard.run(work)
"""
  done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
  assert done.returncode == code
  assert message in done.stderr


# --- Together.

SHORT = ("--num_devices=4", "--config.optimizer=sgd", "--workdir=run")
ANAKIN = (*TINY, *SHORT, "--num_env_steps=1_600")
CATCH = (*ANAKIN[len(TINY) :], "--env=gymnax:Catch-bsuite", "--num_environments=16")
SEBULBA = (
  "--env=envpool:CartPole-v1",
  *SHORT,
  "--num_env_steps=640",
  "--num_environments=16",
  "--unroll_length=8",
  "--threads_per_actor_device=1",
  "--lag=lockstep",
  "--evaluate_episodes=4",
  "--config.learning_rate_schedule=constant",
)
MUZERO = (
  *("--agent=muzero", "--config.search.num_simulations=2"),
  *("--config.replay.capacity=0", "--config.num_minibatches=2", "--config.num_epochs=2"),
)
# Machine and agent: flags, and how far parameters may be apart.
ALIKE = {
  "impala on anakin": (ANAKIN, 1e-5),
  "muzero on anakin": ((*CATCH, *MUZERO), 1e-4),
  # A search makes more of a difference in the last bits.
  "muzero on sebulba": ((*SEBULBA, *MUZERO), 5e-4),
  "impala on sebulba": (SEBULBA, 1e-5),
}


def split(what, num_actors):
  """Returns the flags by which a process of Sebulba has as many actors, and as many learners."""
  if "sebulba" not in what:
    return ()
  numbers = [str(i) for i in range(2 * num_actors)]
  return ("--actor_devices", *numbers[:num_actors], "--learner_devices", *numbers[num_actors:])


@pytest.fixture
def make_run(tmp_path):
  def make(name):
    (tmp_path / name).mkdir()
    return Run(tmp_path / name)

  return make


def cases():
  """All by two processes and by four; beside each other they cost minutes."""
  for what in ALIKE:
    for size in (2, 4):
      marks = [pytest.mark.exhaustive]
      if (what, size) in (("muzero on sebulba", 2), ("impala on anakin", 4)):
        marks = [pytest.mark.slow]
      elif "impala" in what and size == 2:
        marks = []
      yield pytest.param(what, size, marks=marks)


@pytest.mark.parametrize(("what", "size"), list(cases()))
def test_several_processes_are_one_with_the_same_batch(what, size, make_run):
  flags, tolerance = ALIKE[what]
  if "sebulba" in what:
    flags = (*flags, f"--num_devices={2 * size}")
  one, group = make_run("one"), make_run("group")
  code, out, err = Process(("train", *flags, *split(what, size)), one.root).wait()
  assert code == 0, out + err
  codes, said = Group(group.root, *flags, *split(what, 1), size=size).wait()
  assert codes == [0] * size, said
  assert len(digests(said)) == size
  assert len(set(digests(said))) == 1
  for name in ("env_steps", "updates", "episodes"):
    assert group.rows()[-1][name] == one.rows()[-1][name]
  for ours, theirs in zip(params(group), params(one), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
  # A log is written once; what differs between processes is in it by process.
  assert [row["updates"] for row in group.rows()] == [row["updates"] for row in one.rows()]
  assert all(len(v) == size for k, v in group.rows()[-1].items() if k.startswith("processes/"))


def test_processes_of_different_configurations_are_named(make_run):
  run = make_run("run")
  different = {1: ("--config.learning_rate=0.25", "--seed=3")}
  codes, said = Group(run.root, *ANAKIN, by_process=different).wait()
  assert codes == [2, 2], said
  named = "process 1 was started with another configuration than process 0: "
  assert said.count(f"{named}config.learning_rate: 0.005 -> 0.25; seed: 0 -> 3") == 2
  assert not run.workdir.exists()


@pytest.mark.slow
def test_a_wrong_number_of_processes_is_said(make_run):
  run = make_run("run")
  flags = (*ANAKIN, "--num_devices=6", "--num_environments=48")
  codes, said = Group(run.root, *flags, by_process={1: ("--num_processes=3",)}).wait()
  assert codes == [guard.PEER_LOST, 2], said
  assert "podracer: num_processes=3, but process 0 was started with 2" in said
  assert not run.workdir.exists()


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_is_said_within_the_time(make_run):
  run = make_run("run")
  port = rehearse.free_port()
  flags = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=1")
  begin = time.monotonic()
  code, _, err = Process(("train", *ANAKIN, *flags, "--join_timeout_seconds=3"), run.root).wait()
  assert code == guard.PEER_LOST
  assert "the coordinator can't be reached, or is given another --num_processes" in err
  assert time.monotonic() - begin < 60
  assert not run.workdir.exists()


# --- Apart. Every run here is one that goes on for a while and saves often.

LONG = (
  *TINY,
  "--num_devices=2",
  "--workdir=run",
  "--checkpoint_every_seconds=0.5",
  "--max_checkpoints=4",
)
NUM_ENV_STEPS = 300_000
WHOLE = (*LONG, f"--num_env_steps={NUM_ENV_STEPS}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  run = Run(tmp_path_factory.mktemp("uninterrupted"))
  codes, said = Group(run.root, *WHOLE).wait()
  assert codes == [0, 0], said
  return run


def begun(run):
  """Starts a group and waits until it has saved something."""
  group = Group(run.root, *WHOLE)
  group.members[0].wait_until(lambda: len(run.steps()) >= 2)
  return group


def assert_goes_on_as(run, uninterrupted, loss):
  codes, said = Group(run.root, *WHOLE).wait()
  assert codes == [0, 0], said
  loss.is_mended(said)
  assert run.state() == uninterrupted.state()
  rows, expected = ([dict(row) for row in r.rows()] for r in (run, uninterrupted))
  for row in (*rows, *expected):
    row.pop("processes/steps_per_second", None)
  assert rows == expected


def assert_nobody_is_left(run):
  deadline = time.monotonic() + 20
  while processes_in(run.root):
    assert time.monotonic() < deadline, processes_in(run.root)
    time.sleep(0.1)


@pytest.mark.parametrize(
  "told",
  [pytest.param((1,), marks=pytest.mark.exhaustive), pytest.param((0, 1), marks=pytest.mark.slow)],
)
def test_a_signal_to_one_saves_and_ends_all(told, make_run, uninterrupted, loss):
  run = make_run("run")
  group = begun(run)
  for i in told:
    group.members[i].send(signal.SIGTERM)
  loss.happens(run)
  codes, said = group.wait()
  loss.has("ended")
  assert codes == [TERMINATED if i in told else guard.PEER_LOST for i in range(2)], said
  assert "saved at" in said
  assert "Traceback" not in said
  assert_nobody_is_left(run)
  assert_goes_on_as(run, uninterrupted, loss)


@pytest.mark.slow
def test_sebulba_goes_on_after_a_signal_to_one(make_run, loss):
  run = make_run("run")
  flags = (*SEBULBA, *split("sebulba", 1), "--num_env_steps=60_000", "--checkpoint_every_seconds=1")
  group = Group(run.root, *flags)
  group.members[0].wait_until(lambda: run.steps())
  group.members[1].send(signal.SIGTERM)
  loss.happens(run)
  codes, said = group.wait()
  loss.has("ended")
  assert codes == [guard.PEER_LOST, TERMINATED], said
  (saved,) = re.findall(r"saved at ([\d,]+) environment steps", said)
  codes, said = Group(run.root, *flags).wait()
  assert codes == [0, 0], said
  loss.is_mended(said)
  assert f"resumed at {saved} environment steps" in said
  first, second = digests(said)
  assert first == second
  steps = [row["env_steps"] for row in run.rows()]
  assert steps == sorted(set(steps))
  assert steps[-1] - 2 * 16 * 8 < 60_000 <= steps[-1]


@pytest.mark.parametrize(
  ("killed", "number"),
  [
    pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(1, signal.SIGKILL, marks=pytest.mark.exhaustive),
    pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
  ],
)
def test_where_one_is_lost_the_others_end_and_all_go_on_later(
  killed, number, make_run, uninterrupted, loss
):
  run = make_run("run")
  group = begun(run)
  stuck = group.worker(killed)
  os.kill(stuck if number == signal.SIGSTOP else group.members[killed].popen.pid, number)
  loss.happens(run)
  other = group.members[1 - killed]
  assert other.popen.wait(6 * PEER_TIMEOUT) == guard.PEER_LOST, other.err.read_text()
  loss.has("ended")
  assert f"Exit code {guard.PEER_LOST}" in other.err.read_text()
  if number == signal.SIGSTOP:
    os.kill(stuck, signal.SIGKILL)
  group.wait()
  assert_nobody_is_left(run)
  assert_goes_on_as(run, uninterrupted, loss)


@pytest.mark.parametrize(
  "seen_by",
  [pytest.param("all", marks=pytest.mark.exhaustive), pytest.param("one", marks=pytest.mark.slow)],
)
def test_a_damaged_checkpoint_is_passed_over_by_all(
  seen_by, make_run, uninterrupted, loss, tmp_path
):
  run = make_run("run")
  group = begun(run)
  group.members[0].send(signal.SIGTERM)
  group.wait()
  loss.happens(run)
  step, wrapped = run.steps()[-1], {}
  if seen_by == "one":
    # In its own mount namespace process 1 has a damaged copy in place of what process 0 reads.
    copy = tmp_path / "damaged"
    shutil.copytree(step, copy)
    mount = f"mount --bind '{copy}' '{step}' && exec \"$@\""
    wrapped[1] = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
  for path in data_files(copy if seen_by == "one" else step):
    flip_bit(path)
  codes, said = Group(run.root, *WHOLE, wrapped=wrapped).wait()
  assert codes == [0, 0], said
  loss.is_mended(said)
  assert "is skipped" in said
  assert run.state() == uninterrupted.state()


@pytest.mark.slow
def test_killed_at_any_moment_of_a_save(make_run, uninterrupted, loss):
  run = make_run("run")
  delays = (0.0, 0.03, 0.1, 0.3)
  for delay in delays:
    group = Group(run.root, *WHOLE, "--checkpoint_every_seconds=0.01")
    before = len(run.steps())
    newest = run.steps()[-1].name if before else ""
    group.members[0].wait_until(
      lambda newest=newest: run.steps() and run.steps()[-1].name != newest
    )
    time.sleep(delay)
    for member in group.members:
      member.send(signal.SIGKILL)
    loss.happens(run)
    group.wait()
    assert_nobody_is_left(run)
  assert_goes_on_as(run, uninterrupted, loss)


@pytest.mark.slow
def test_a_full_disk_of_one_process_stops_neither(make_run, uninterrupted):
  run = make_run("run")
  group = Group(run.root, *WHOLE)
  group.members[0].wait_until(lambda: len(run.steps()) >= 2)
  resource.prlimit(group.worker(1), resource.RLIMIT_FSIZE, (1000, 1000))
  codes, said = group.wait()
  assert codes == [0, 0], said
  assert run.steps(), said


def test_one_that_can_not_listen_says_so(make_run):
  run = make_run("run")
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    flags = ("--num_processes=2", "--process_id=0")
    flags += (f"--coordinator=127.0.0.1:{taken.getsockname()[1]}",)
    code, _, err = Process(("train", *ANAKIN, *flags), run.root).wait()
  assert code == 2
  assert "process 0 can't listen on 127.0.0.1:" in err
  assert "Address already in use" in err
  assert not run.workdir.exists()


@pytest.mark.slow
def test_a_group_of_one_saves_when_told_to_end(make_run):
  run = make_run("run")
  group = Group(run.root, *WHOLE, "--num_env_steps=100_000_000", size=1)
  group.members[0].wait_until(lambda: run.num_rows() >= 3)
  group.members[0].send(signal.SIGTERM)
  codes, said = group.wait()
  assert codes == [TERMINATED], said
  assert "saved at" in said


@pytest.mark.slow
def test_a_group_begins_anew(make_run):
  """All of them, at whatever moment each looks for the run that is moved out of the way."""
  run = make_run("run")
  for args in ((), ("--restart",)):
    codes, said = Group(run.root, *ANAKIN, *args).wait()
    assert codes == [0, 0], said
  assert said.count("moved the run that was there to run.1") == 1
  assert "resumed" not in said
  assert (run.root / "run.1" / "config.json").exists()
  codes, said = Group(run.root, *ANAKIN, by_process={1: ("--restart",)}).wait()
  assert codes == [2, 2], said
  assert "restart: False -> True" in said


def test_the_address_that_leads_to_the_coordinator():
  assert host.own_address("127.0.0.1:80") == "127.0.0.1"
  assert host.own_address("localhost:80") in ("127.0.0.1", "::1")
  assert host.own_address("no.such.host.invalid:80") is None


@pytest.mark.slow
def test_only_the_loopback_is_listened_on(make_run):
  run = make_run("run")
  group = begun(run)
  workers = [group.worker(i) for i in range(2)]
  found = [address for worker in workers for address in listeners(worker)]
  for member in group.members:
    member.send(signal.SIGTERM)
  group.wait()
  assert len(found) >= 2  # The coordinator's, and of each the collectives'.
  assert all(ipaddress.ip_address(address).is_loopback for address in found), found


def listeners(pid):
  """Addresses on which a process listens."""
  inodes = set()
  for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
    with contextlib.suppress(OSError):
      inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(path)))
  addresses = []
  for table in ("tcp", "tcp6"):
    for line in pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
      fields = line.split()
      if fields[3] == "0A" and fields[9] in inodes:
        addresses.append(to_address(fields[1].partition(":")[0]))
  return addresses


def to_address(text):
  """The kernel's hexadecimal words, each of the machine's byte order, as an address."""
  words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
  address = ipaddress.ip_address(b"".join(words))
  return str(getattr(address, "ipv4_mapped", None) or address)
