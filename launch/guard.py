"""A process of a group, watched by another: whatever ends it, whoever started it learns how.

JAX's runtime aborts a process whose peer is lost, from C++, where no `finally` runs. So the run is a child of
the process that was started, which only passes on signals and turns the end of the child into an exit code.
"""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from podracer import config, report

from . import interrupts

PEER_LOST = 75
"""Exit code: temporary, start the group again (EX_TEMPFAIL of sysexits.h)."""
_PR_SET_PDEATHSIG = 1
_JOINED = b"j"
_to_parent: int | None = None
# What JAX raises where a peer is gone before its runtime aborts.
_SIGNS_OF_LOSS = (
  "Gloo",
  "coordination service",
  "CoordinationService",
  "heartbeat",
  "Connection reset",
  "Connection closed",
  "Broken pipe",
  "UNAVAILABLE",
  "DEADLINE_EXCEEDED",
)
_GLOO = "Gloo "  # It may come as a bare ValueError.


def run(work: Callable[[], int]) -> NoReturn:
  """Runs `work` in a child process and exits with its exit code, or with `PEER_LOST`.

  Args:
    work: returns an exit code; called before JAX is imported.
  """
  global _to_parent
  parent = os.getpid()
  from_child, _to_parent = os.pipe()
  child = os.fork()
  if child == 0:
    _die_with(parent)
    # Of its own, so that a terminal's Ctrl-C comes once.
    os.setpgid(0, 0)
    os._exit(_guarded(work))
  os.close(_to_parent)
  sys.exit(_watch(child, from_child))


def joined() -> None:
  """Says that the group has come together: what ends this process from now on is no wrong address."""
  if _to_parent is not None:
    os.write(_to_parent, _JOINED)


def _watch(child: int, from_child: int) -> int:
  """Passes signals on until the child ends; returns the exit code."""
  os.set_blocking(from_child, False)
  has_joined, ended_by = False, 0

  def pass_on(number: int, frame: FrameType | None) -> None:
    nonlocal has_joined, ended_by
    del frame
    with contextlib.suppress(BlockingIOError):
      has_joined = has_joined or os.read(from_child, 1) == _JOINED
    with contextlib.suppress(ProcessLookupError):
      if has_joined:
        os.kill(child, number)
      else:
        # It waits for the others in C++, where no handler runs; nothing was begun yet.
        ended_by = number
        os.kill(child, signal.SIGKILL)

  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, pass_on)
  _, status = os.waitpid(child, 0)
  code = os.waitstatus_to_exitcode(status)
  with contextlib.suppress(BlockingIOError):
    has_joined = has_joined or os.read(from_child, 1) == _JOINED
  if ended_by:
    print("podracer: interrupted before the group had come together", file=sys.stderr)
    return interrupts.EXIT_OFFSET + ended_by
  if code == -signal.SIGABRT and has_joined:
    _say("JAX gave up the group: a peer was lost or is stuck", PEER_LOST)
    return PEER_LOST
  if code == -signal.SIGABRT:
    print(
      "podracer: the group did not come together within --join_timeout_seconds: the coordinator can't be "
      "reached, or is given another --num_processes, or a process is missing or there twice (JAX's own words "
      f"are above). Exit code {PEER_LOST}: nothing was begun",
      file=sys.stderr,
    )
    return PEER_LOST
  return code if code >= 0 else interrupts.EXIT_OFFSET - code


def _guarded(work: Callable[[], int]) -> int:
  """Returns the exit code of `work`, after a word on what ended it.

  Nothing may wait for the peers on the way out: they learn of the end by its connections closing.
  """
  try:
    code = work()
  except (config.InputError, report.RunError) as error:
    print("podracer:", "; ".join(str(error).splitlines()), file=sys.stderr)
    code = 2 if isinstance(error, config.InputError) else 1
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else 1
  except BaseException as error:
    text = str(error)
    if _is_loss(error):
      _say(f"a peer was lost: {' '.join(text.split())[:300]}", PEER_LOST)
      code = PEER_LOST
    else:
      traceback.print_exc()
      code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  return code


def _is_loss(error: BaseException) -> bool:
  """Returns whether an exception is what JAX raises where a peer is gone."""
  text = str(error)
  if isinstance(error, ValueError) and _GLOO in text:
    return True
  return type(error).__module__.startswith("jax") and any(sign in text for sign in _SIGNS_OF_LOSS)


def _say(reason: str, code: int) -> None:
  print(
    f"podracer: {reason}. Exit code {code}: started again, the whole group goes on from its newest "
    "checkpoint",
    file=sys.stderr,
    flush=True,
  )


def _die_with(parent: int) -> None:
  """Has the kernel kill this process when its parent dies (Linux; elsewhere it may outlive it)."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(PEER_LOST)
