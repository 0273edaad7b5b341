"""`podracer rehearse`: runs the processes of several hosts on this machine, before a pod is paid for."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from podracer import config

from . import command_line, experiment, train

PROGRAM = "podracer rehearse"
END_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class RehearseConfig:
  """Runs the processes of several hosts on this machine; takes the options of `podracer train`, too.

  A process a host, joined on the loopback. What they print has the number of its host before it.
  """

  num_hosts: int = 2
  """Hosts."""
  devices_per_host: int = 1
  """Virtual devices of each."""

  def __post_init__(self) -> None:
    config.check_positive(num_hosts=self.num_hosts, devices_per_host=self.devices_per_host)


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  flags = parse(args)
  sys.exit(run([[sys.executable, "-m", "podracer.launch.main", "train", *each] for each in flags]))


def parse(args: Sequence[str]) -> list[list[str]]:
  """Returns the flags of `podracer train` on each host.

  Raises:
    config.InputError: for a wrong flag, also of training: it is said once, by no host.
  """
  own, training = command_line.split(RehearseConfig, args)
  wanted: RehearseConfig = command_line.parse(RehearseConfig, PROGRAM, own)
  for name in ("coordinator", "num_processes", "process_id", "num_devices"):
    config.check(
      command_line.peek(training, name) is None, f"--{name} is set by the rehearsal: leave it out"
    )
  if command_line.peek(training, "workdir") is None:
    env, agent = command_line.peek(training, "env") or "", command_line.peek(training, "agent")
    named = experiment.default_workdir(env, agent or "impala")
    training = [*training, *([f"--workdir={named}-rehearsal"] if named else [])]
  shared = [
    *training,
    f"--num_devices={wanted.num_hosts * wanted.devices_per_host}",
    f"--coordinator=127.0.0.1:{free_port()}",
    f"--num_processes={wanted.num_hosts}",
  ]
  flags = [[*shared, f"--process_id={i}"] for i in range(wanted.num_hosts)]
  train.parse(flags[0])
  return flags


def free_port() -> int:
  """Returns a port of the loopback that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
  return port


def run(commands: Sequence[Sequence[str]]) -> int:
  """Runs the commands side by side; where one fails all others are ended.

  Args:
    commands: one a host.

  Returns:
    0, or the exit code of the first that failed.
  """
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
  hosts = [
    subprocess.Popen(
      command,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,  # A Ctrl-C is passed on, once.
    )
    for command in commands
  ]
  printers = [
    threading.Thread(target=_print, args=(i, host.stdout), daemon=True)
    for i, host in enumerate(hosts)
  ]
  for printer in printers:
    printer.start()
  code = 0
  with _passing_signals(hosts):
    while any(host.poll() is None for host in hosts):
      failed = [host.returncode for host in hosts if host.returncode]
      if failed:
        code = failed[0]
        break
      time.sleep(0.05)
    _end(hosts)
  for printer in printers:
    printer.join(END_SECONDS)
  code = code or next((host.returncode for host in hosts if host.returncode), 0)
  codes = ", ".join(f"host {i}: {host.returncode}" for i, host in enumerate(hosts))
  print(f"rehearsal of {len(hosts)} hosts ended with exit code {code} ({codes})")
  return code if code >= 0 else 128 - code


def _print(number: int, lines: IO[str] | None) -> None:
  assert lines is not None
  for line in lines:
    print(f"host {number} | {line}", end="", flush=True)


@contextlib.contextmanager
def _passing_signals(hosts: Sequence["subprocess.Popen[str]"]) -> Iterator[None]:
  """Passes SIGINT and SIGTERM on to all hosts, as an engine that preempts them does."""

  def pass_on(number: int, frame: object) -> None:
    del frame
    for host in hosts:
      if host.poll() is None:
        host.send_signal(number)

  previous = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def _end(hosts: Sequence["subprocess.Popen[str]"]) -> None:
  """Waits for all hosts once one has failed: they notice by themselves, or are killed."""
  deadline = time.monotonic() + END_SECONDS
  for host in hosts:
    try:
      host.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      host.kill()
      host.wait()
