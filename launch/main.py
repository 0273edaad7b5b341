"""The `podracer` command."""

import importlib
import os
import sys
from collections.abc import Sequence

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
  if not args or args[0] in ("-h", "--help"):
    print(_help())
    return
  with command_line.noting_final():
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


def _help() -> str:
  lines = ["usage: podracer COMMAND [OPTIONS]", "", "commands:"]
  lines += [f"  {name:12}{text}" for name, text in COMMANDS.items()]
  lines += ["", "`podracer COMMAND --help` tells the options of a command. To begin:", ""]
  lines += ["  podracer train --env=gymnax:Catch-bsuite --workdir=runs/catch"]
  return "\n".join(lines)


if __name__ == "__main__":
  main()
