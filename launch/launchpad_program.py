r"""Launchpad: trains with a process a host, started and watched by one program.

    launchpad/bin/python launchpad_program.py --num_hosts=2 --python=.venv/bin/python -- \
      --env=gymnax:Catch-bsuite --workdir=runs/catch

Launchpad's wheels end at Python 3.10 and podracer begins at 3.11, so its nodes execute `podracer` under another
interpreter, here or on other hosts. This module therefore imports nothing of podracer.

The nodes are threads (`local_mt`) that each watch one command: with `local_mp`, whose nodes are processes, Launchpad
ignores how they end and exits with 0. What a node executes is `keep` below, on its host: it ends with its standard
input, so that nothing is left where the launcher, ssh or the network is gone.
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import pathlib
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags

PROGRAM = "launchpad_program"
MODULE = "podracer.launch.launchpad_program"
KEEP = "keep"
RUNNERS = ("local", "ssh", "gcloud")
USAGE_ERROR = 2
FINAL = (1, USAGE_ERROR)  # What stays wrong however often it is tried.
EXIT_OFFSET = 128
POLL_SECONDS = 0.2
# After a failure there is no group that could still save.
FAILED_SECONDS = 15
# How much longer each watcher waits than the one that it watches.
SLACK_SECONDS = 5
# A host that can't be reached is given up after a minute; nobody is there to type a password.
SSH_OPTIONS = ("ServerAliveInterval=15", "ServerAliveCountMax=4")
_PR_SET_PDEATHSIG = 1


class UsageError(Exception):
  """A wrong flag; its text is one line for a person."""


def check(condition: object, message: str) -> None:
  """Raises UsageError with `message` unless the condition holds."""
  if not condition:
    raise UsageError(message)


class NodeSpec(NamedTuple):
  """A node of the program."""

  group: str
  name: str
  command: list[str]
  after: tuple[str, ...]  # Names of the nodes that must have ended well before.


@dataclasses.dataclass(frozen=True)
class Launch:
  """What is launched."""

  python: str  # Path of the interpreter that has podracer, on every host.
  training: Sequence[str]  # The flags of `podracer train`.
  num_hosts: int
  coordinator: str = ""  # address:port
  runner: str = "local"
  hosts: Sequence[str] = ()  # ssh
  tpu_name: str = ""  # gcloud
  zone: str = ""
  project: str = ""
  evaluate: bool = False
  record_episodes: int = 0
  record_out: str = ""
  stop_seconds: int = 60
  max_restarts: int = 0

  def __post_init__(self) -> None:
    check(self.runner in RUNNERS, f"--runner must be one of {', '.join(RUNNERS)}")
    check(self.num_hosts >= 1, f"--num_hosts must be at least 1, got {self.num_hosts}")
    check(self.python, "need --python, the path of the interpreter that has podracer")
    for name in ("record_episodes", "max_restarts", "stop_seconds"):
      value = getattr(self, name)
      check(value >= 0, f"--{name} must not be negative, got {value}")
    for name in ("coordinator", "num_processes", "process_id"):
      found = peek(self.training, name)
      check(found is None, f"--{name} of podracer train is set by the launcher: leave it out")
    check(self.workdir, "need --workdir, after --: the directory of the run")
    # The group that is started again would begin anew, again and again.
    check("--restart" not in self.training, "--restart can't be launched: take another --workdir")
    _, _, port = self.coordinator.rpartition(":")
    check(
      port.isdecimal() and len(port) < len(self.coordinator) - 1,
      f"--coordinator must be address:port of host 0, got {self.coordinator!r}",
    )
    if self.runner == "local":
      check(shutil.which(self.python), f"--python={self.python} can't be executed")
    else:
      for name, path in (("python", self.python), ("workdir", self.workdir)):
        check(os.path.isabs(path), f"--{name} must be an absolute path on the hosts, got {path}")
      check(
        shutil.which(self.runner), f"--runner={self.runner}, but there is no {self.runner} on PATH"
      )
    if self.runner == "ssh":
      check(
        len(self.hosts) == self.num_hosts,
        f"--num_hosts={self.num_hosts}, but --hosts names {len(self.hosts)}",
      )
      for host in self.hosts:
        check(host and host[0] != "-" and not host.split()[1:], f"{host!r} of --hosts is no host")
    if self.runner == "gcloud":
      check(self.tpu_name, "--runner=gcloud needs --tpu_name")
      check(self.zone, "--runner=gcloud needs --zone")

  @property
  def workdir(self) -> str:
    """The directory of the run."""
    return peek(self.training, "workdir") or ""

  @property
  def out(self) -> str:
    """Where the recorder writes."""
    return self.record_out or f"{self.workdir.rstrip('/')}-episodes"

  def nodes(self) -> list[NodeSpec]:
    """Returns the nodes: a host each, and those that follow the training."""
    joins = (f"--coordinator={self.coordinator}", f"--num_processes={self.num_hosts}")
    nodes = []
    for i in range(self.num_hosts):
      command = self._on(i, ["train", *self.training, *joins, f"--process_id={i}"])
      nodes.append(NodeSpec("host", f"host {i}", command, ()))
    # One at a time has the devices of host 0.
    if self.evaluate:
      command = self._on(0, ["evaluate", f"--workdir={self.workdir}"], is_alone=True)
      nodes.append(NodeSpec("evaluator", "evaluator", command, tuple(n.name for n in nodes)))
    if self.record_episodes:
      args = [
        f"--workdir={self.workdir}",
        f"--episodes={self.record_episodes}",
        f"--out={self.out}",
      ]
      command = self._on(0, ["record", *args], is_alone=True)
      nodes.append(NodeSpec("recorder", "recorder", command, tuple(n.name for n in nodes)))
    return nodes

  def _on(self, i: int, args: Sequence[str], is_alone: bool = False) -> list[str]:
    """Returns the command that runs `podracer` on host i, and ends it when its own input ends."""
    command = [self.python, "-m", MODULE, KEEP, *args]
    if self.runner == "local":
      return command
    if self.runner == "ssh":
      options = [f"-o{option}" for option in ("BatchMode=yes", *SSH_OPTIONS)]
      return ["ssh", "-T", *options, self.hosts[i], shlex.join(command)]
    if is_alone:
      # One host of a pod alone would wait for the TPUs of the others.
      command = ["env", "JAX_PLATFORMS=cpu", *command]
    place = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
    return [
      *("gcloud", "compute", "tpus", "tpu-vm", "ssh", self.tpu_name, f"--worker={i}", *place),
      f"--command={shlex.join(command)}",
      *("--quiet", "--", "-T", *(f"-o{option}" for option in SSH_OPTIONS)),
    ]


def peek(args: Sequence[str], name: str) -> str | None:
  """Returns the value of `--name=value` or `--name value`, or None."""
  value = None
  for i, arg in enumerate(args):
    flag, separator, rest = arg.partition("=")
    if flag.replace("-", "_") == f"__{name}":
      value = rest if separator else (args[i + 1] if i + 1 < len(args) else None)
  return value


def free_port() -> int:
  """Returns a port of the loopback that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
  return port


class Outcome:
  """How the nodes of a program ended; its threads share it."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._codes: dict[str, int] = {}
    self.failure = 0  # The exit code of the node that failed first.

  def add(self, name: str, code: int, was_stopped: bool) -> None:
    """Notes that a node ended."""
    with self._lock:
      self._codes[name] = code
      if code and not was_stopped:
        self.failure = self.failure or code

  def succeeded(self, names: Sequence[str]) -> bool:
    """Returns whether all these nodes ended well."""
    with self._lock:
      return all(self._codes.get(name) == 0 for name in names)


class Node:
  """Executes one command and watches it: what fails stops all others."""

  def __init__(self, spec: NodeSpec, outcome: Outcome, stop_seconds: int):
    """Makes a node.

    Args:
      spec: what it executes, and when.
      outcome: of all nodes.
      stop_seconds: that the command has to save once the program is told to stop.
    """
    self._name, self._command, self._after = spec.name, spec.command, spec.after
    self._outcome, self._stop_seconds = outcome, stop_seconds

  def run(self) -> None:
    """Runs the node; Launchpad calls it."""
    import launchpad as lp

    code = 1
    try:
      code = self._execute(lp)
    except OSError as error:
      _print(f"{PROGRAM}: {self._name} can't be started: {error}\n")
    except Exception:
      traceback.print_exc()
    was_stopped = lp.wait_for_stop(0)
    self._outcome.add(self._name, code, was_stopped)
    if code and not was_stopped:
      _print(f"{PROGRAM}: {self._name} ended with exit code {code}; stopping all\n")
      lp.stop()

  def _execute(self, lp: Any) -> int:
    """Returns the exit code of the command."""
    while not self._outcome.succeeded(self._after):
      if lp.wait_for_stop(POLL_SECONDS):
        return 1
    child = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      start_new_session=True,  # A Ctrl-C is the launcher's.
    )
    printer = threading.Thread(target=self._print_lines, args=(child.stdout,), daemon=True)
    printer.start()
    self._tell(child, self._stop_seconds)
    while child.poll() is None:
      if lp.wait_for_stop(POLL_SECONDS):
        self._end(child, FAILED_SECONDS if self._outcome.failure else self._stop_seconds)
    printer.join(SLACK_SECONDS)
    return child.returncode if child.returncode >= 0 else EXIT_OFFSET - child.returncode

  def _print_lines(self, lines: Any) -> None:
    for line in lines:
      _print(f"{self._name} | {line.decode(errors='replace')}")

  def _tell(self, child: "subprocess.Popen[bytes]", seconds: int) -> None:
    """Says how long the command may go on after the end of its input."""
    assert child.stdin is not None
    with contextlib.suppress(OSError):
      child.stdin.write(b"%d\n" % seconds)
      child.stdin.flush()

  def _end(self, child: "subprocess.Popen[bytes]", seconds: int) -> None:
    assert child.stdin is not None
    self._tell(child, seconds)
    with contextlib.suppress(OSError):
      child.stdin.close()
    try:
      child.wait(seconds + SLACK_SECONDS)
    except subprocess.TimeoutExpired:
      child.kill()
      child.wait()


def _print(line: str) -> None:
  """Prints a whole line at once: several threads do."""
  sys.stdout.write(line)
  sys.stdout.flush()


def make_program(launch: Launch, outcome: Outcome) -> Any:
  """Returns the `lp.Program` of a launch, whose nodes note in `outcome` how they end."""
  import launchpad as lp

  program = lp.Program("podracer")
  for spec in launch.nodes():
    # In a function: Launchpad looks for handles in arguments, and takes tuples to pieces.
    make = functools.partial(Node, spec, outcome, launch.stop_seconds)
    program.add_node(lp.PyClassNode(make), label=spec.group)
  return program


def run(launch: Launch) -> tuple[int, bool]:
  """Runs a launch to its end.

  Returns:
    0, the exit code of the node that failed first, or 128 + the number of the signal that stopped all; and
    whether this launcher was told to stop.
  """
  import launchpad as lp

  notice = flags.FLAGS["lp_termination_notice_secs"]
  if not notice.present:
    notice.value = max(launch.stop_seconds, FAILED_SECONDS) + 3 * SLACK_SECONDS
  received: list[int] = []
  for number in (signal.SIGINT, signal.SIGTERM):
    # Launchpad calls it beside its own handler.
    signal.signal(number, lambda number, frame: received.append(number))
  outcome = Outcome()
  program = make_program(launch, outcome)
  manager = lp.launch(program, launch_type=lp.LaunchType.LOCAL_MULTI_THREADING)
  manager.wait(raise_error=False)
  if outcome.succeeded([spec.name for spec in launch.nodes()]):
    return 0, False
  if outcome.failure:
    return outcome.failure, False  # What then stops all is a signal, too.
  return (EXIT_OFFSET + received[0] if received else 1), bool(received)


def keep(args: Sequence[str]) -> int:
  """Runs `podracer` on a host until it ends, or until standard input does.

  The input has lines with the seconds that `podracer` gets after the end of the input: SIGTERM lets it save,
  SIGKILL comes then.

  Args:
    args: of `podracer`.

  Returns:
    Its exit code, or 128 + the number of the signal that killed it.
  """
  child = subprocess.Popen(
    [sys.executable, "-m", "podracer.launch.main", *args],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env={**os.environ, "PYTHONUNBUFFERED": "1"},
    # What kills this process alone ends podracer, too.
    preexec_fn=_end_with_parent if sys.platform == "linux" else None,
  )
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: child.terminate())
  assert child.stdout is not None
  printer = threading.Thread(target=_pass_on, args=(child.stdout.fileno(),), daemon=True)
  printer.start()
  told, has_input, deadline = b"", True, float("inf")
  while child.poll() is None:
    if not has_input:
      time.sleep(POLL_SECONDS)
    elif select.select([0], [], [], POLL_SECONDS)[0]:
      piece = os.read(0, 1024)
      told, has_input = told + piece, bool(piece)
      if told and not has_input:  # Without a word it had no input to begin with.
        deadline = time.monotonic() + int(told.split()[-1])
        child.terminate()
    if time.monotonic() > deadline:
      child.kill()
  printer.join(SLACK_SECONDS)
  code = child.returncode
  return code if code >= 0 else EXIT_OFFSET - code


def _end_with_parent() -> None:
  """Has the kernel tell this process to end when its parent dies."""
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _pass_on(source: int) -> None:
  """Copies to standard output, and goes on where nobody reads that any more: podracer is to save."""
  while piece := os.read(source, 65536):
    with contextlib.suppress(OSError):
      os.write(1, piece)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the launcher's flags. Not on import: the names are too general for that."""

  def integer(name: str, default: int | None, text: str) -> None:
    flags.DEFINE_integer(name, default, text, flag_values=values)

  def string(name: str, default: str, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)

  string("runner", "local", f"Where the hosts are: {', '.join(RUNNERS)}.")
  string("python", "", "Path of the interpreter that has podracer, on every host.")
  integer("num_hosts", None, "Processes that train together; with ssh as many as --hosts names.")
  flags.DEFINE_list("hosts", [], "ssh: the hosts, as ssh takes them.", flag_values=values)
  string("tpu_name", "", "gcloud: name of the TPU.")
  string("zone", "", "gcloud: its zone.")
  string("project", "", "gcloud: its project.")
  string(
    "coordinator",
    "",
    "address:port of host 0 as the others reach it; found for local, and the first of --hosts for ssh.",
  )
  integer("port", 8476, "ssh: port of --coordinator, where that is not given.")
  flags.DEFINE_bool("evaluate", False, "Evaluate after training.", flag_values=values)
  integer("record_episodes", 0, "Record so many episodes after training.")
  string("record_out", "", "Directory they go to; by default <workdir>-episodes.")
  integer("stop_seconds", 60, "Seconds to save in, once the launcher is told to stop.")
  integer("max_restarts", 0, "Times the group is started again after a failure.")


def parse(argv: Sequence[str], values: flags.FlagValues) -> Launch:
  """Parses the launcher's flags, and those of `podracer train` after `--`.

  Raises:
    UsageError: for whatever can't work.
  """
  argv = list(argv)
  end = argv.index("--") if "--" in argv else len(argv)
  try:
    _, *rest = values(argv[:end])
  except flags.Error as error:
    raise UsageError(f"{' '.join(str(error).split())} (train's flags come after --)") from error
  check(not rest, f"{' '.join(rest)}: train's flags come after --")
  check(values.runner in RUNNERS, f"--runner must be one of {', '.join(RUNNERS)}")
  coordinator, num_hosts = values.coordinator, values.num_hosts
  if values.runner == "local":
    coordinator = coordinator or f"127.0.0.1:{free_port()}"
  elif values.runner == "ssh":
    check(values.hosts, "--runner=ssh needs --hosts")
    coordinator = coordinator or f"{values.hosts[0].rpartition('@')[2]}:{values.port}"
    num_hosts = len(values.hosts) if num_hosts is None else num_hosts
  check(num_hosts is not None, "need --num_hosts")
  check(coordinator, "--runner=gcloud needs --coordinator=address:port, of worker 0")
  names = {field.name for field in dataclasses.fields(Launch)}
  given: dict[str, Any] = {name: values[name].value for name in names & set(values)}
  given.update(coordinator=coordinator, num_hosts=num_hosts, training=argv[end + 1 :])
  return Launch(**given)


def start_again(max_restarts: int) -> NoReturn:
  """Replaces this process by a launcher that may restart so many times."""
  signal.alarm(0)
  end = sys.argv.index("--")
  args = [*sys.argv[:end], f"--max_restarts={max_restarts}", *sys.argv[end:]]
  os.execv(sys.executable, [sys.executable, *args])


def main(argv: Sequence[str]) -> None:
  """Launches what the flags name."""
  try:
    try:
      import launchpad  # noqa: F401
    except ImportError as error:
      here = pathlib.Path(__file__).with_name("launchpad_requirements.txt")
      raise UsageError(f"{error}: Launchpad is installed by pip install -r {here}") from error
    launch = parse(argv, flags.FLAGS)
  except UsageError as error:
    print(f"{PROGRAM}: {error}", file=sys.stderr)
    sys.exit(USAGE_ERROR)
  code, was_stopped = run(launch)
  if code in (0, *FINAL) or was_stopped or not launch.max_restarts:
    print(f"{PROGRAM}: ended with exit code {code}", flush=True)
    sys.exit(code)
  left = launch.max_restarts - 1
  print(f"{PROGRAM}: exit code {code}; starting the group again ({left} more times)", flush=True)
  start_again(left)


if __name__ == "__main__":
  if sys.argv[1:2] == [KEEP]:
    sys.exit(keep(sys.argv[2:]))
  define_flags(flags.FLAGS)
  if {"-h", "--help"} & {*sys.argv}:
    print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
    sys.exit(0)
  main(sys.argv)
