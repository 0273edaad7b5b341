"""`podracer launch ray|slurm|gke`: what starts the processes of several hosts, and starts them again."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from podracer import config

from . import command_line, gke, ray_engine, slurm, train

PROGRAM = "podracer launch"
# No run is there: what a path says on another machine can't be looked up.
ELSEWHERE = "/nonexistent/podracer-run"


class _Engine(NamedTuple):
  """One that starts processes: its options, what does it, what it does, and where the run lies."""

  config: Any
  run: Callable[[Any, list[str]], None]
  help: str
  is_elsewhere: bool = False


ENGINES = {
  "ray": _Engine(ray_engine.RayConfig, ray_engine.run, "run them on a Ray cluster, to the end"),
  "slurm": _Engine(slurm.SlurmConfig, slurm.run, "print a batch script for sbatch"),
  "gke": _Engine(gke.GkeConfig, gke.run, "print a Kubernetes JobSet for kubectl", True),
}


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  if not args or args[0] in ("-h", "--help"):
    print(_help())
    sys.exit(0)
  engine, wanted, training = parse(args)
  engine.run(wanted, training)


def parse(args: Sequence[str]) -> tuple[_Engine, Any, list[str]]:
  """Returns the engine that is named first, its options, and the flags of training.

  Raises:
    config.InputError: for a wrong flag, of the engine or of training: it is said once, by no host.
  """
  command_line.check_choice("engine", args[0], tuple(ENGINES))
  engine = ENGINES[args[0]]
  own, training = command_line.split(engine.config, args[1:])
  wanted = command_line.parse(engine.config, f"{PROGRAM} {args[0]}", own)
  for name in ("coordinator", "num_processes", "process_id"):
    config.check(
      command_line.peek(training, name) is None, f"--{name} is set by the launch: leave it out"
    )
  # The group that is started again would begin anew, again and again.
  config.check("--restart" not in training, "--restart can't be launched: take another --workdir")
  checked = [*training, f"--workdir={ELSEWHERE}"] if engine.is_elsewhere else training
  group = ("--coordinator=localhost:1", f"--num_processes={wanted.num_hosts}", "--process_id=0")
  train.parse([*checked, *group])
  return engine, wanted, training


def _help() -> str:
  lines = ["usage: podracer launch ENGINE [OPTIONS] [OPTIONS OF podracer train]", "", "engines:"]
  lines += [f"  {name:8}{engine.help}" for name, engine in ENGINES.items()]
  lines += ["", "`podracer launch ENGINE --help` tells the options of an engine, and"]
  lines += ["`podracer train --help` those of training. For example:", ""]
  lines += ["  podracer launch ray --num_hosts=2 --address=local --env=gymnax:Catch-bsuite"]
  return "\n".join(lines)
