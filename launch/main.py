"""The `podracer` command."""

import contextlib
import importlib
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence

from podracer import config, report

from . import command_line

# name -> what it does; each is a module of this package with `main(args)`.
COMMANDS = {
  "train": "train an agent, or go on with a run",
  "distill": "train a student of trained agents",
  "evaluate": "play whole episodes with a trained agent",
  "watch": "render a video of a trained agent",
  "record": "write what a trained agent experiences as a dataset",
  "data": "look into recorded data, check it, merge it, export it",
  "generalist": "train one network for many tasks from recorded data, and play them",
  "plot": "draw the learning curves of runs",
  "envs": "list the environments there are",
  "launch": "start the processes of several hosts by Ray, SLURM or GKE",
  "rehearse": "run the processes of several hosts on this machine",
  "tune": "find the fastest settings of sebulba on this machine",
}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs one command; a wrong name or value is one line and exit code 2, a bad run one and 1."""
  args = list(sys.argv[1:] if argv is None else argv)
  with command_line.noting_final(), _ending_quietly():
    if not args or args[0] in ("-h", "--help"):
      print(_help())
    else:
      _run(args)


def _run(args: Sequence[str]) -> None:
  try:
    command_line.check_choice("command", args[0], tuple(COMMANDS))
    # A user's own module:function lies where the command is given; last, so that it shadows nothing.
    sys.path.append(os.getcwd())
    module = importlib.import_module(f"podracer.launch.{args[0]}")
    module.main(args[1:])
  except config.InputError as error:
    command_line.fail("podracer", str(error))
  except report.RunError as error:
    first, *rest = [line.strip() for line in str(error).splitlines()]
    print("podracer:", " ".join([first, "; ".join(rest)]).rstrip(), file=sys.stderr)
    sys.exit(command_line.RUN_ERROR)


@contextlib.contextmanager
def _ending_quietly() -> Iterator[None]:
  """Ends without a traceback where Ctrl-C is pressed, or nobody reads what is printed (`| head`)."""
  try:
    try:
      yield
    finally:
      sys.stdout.flush()
  except KeyboardInterrupt:
    print("podracer: interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
  except BrokenPipeError:
    if not _is_unread():
      raise
    # For what is left to be printed, by the interpreter's end too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _is_unread() -> bool:
  """Returns whether what is printed goes into a pipe that nobody reads any more."""
  poll = select.poll()
  try:
    poll.register(sys.stdout.fileno(), 0)
  except OSError:  # It is no file.
    return False
  return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _help() -> str:
  lines = ["usage: podracer COMMAND [OPTIONS]", "", "commands:"]
  lines += [f"  {name:12}{text}" for name, text in COMMANDS.items()]
  lines += ["", "`podracer COMMAND --help` tells the options of a command. To begin:", ""]
  lines += ["  podracer train --env=gymnax:Catch-bsuite --workdir=runs/catch"]
  return "\n".join(lines)


if __name__ == "__main__":
  main()
