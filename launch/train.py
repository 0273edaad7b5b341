"""`podracer train`: trains an agent in a run directory, or goes on with the run that is there."""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from podracer import config as config_lib

from . import command_line, experiment, guard, interrupts, teachers

PROGRAM = "podracer train"
# The command's beginning, for the time to the first update.
START = time.perf_counter()


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  start(PROGRAM, parse(args))


def start(program: str, wanted: experiment.ExperimentConfig[Any, Any]) -> NoReturn:
  """Trains, and exits with the code of the run.

  Args:
    program: the words of the command, for messages.
    wanted: a checked configuration.
  """
  if wanted.group.coordinator:
    guard.run(functools.partial(_train, program, wanted))
  sys.exit(_train(program, wanted))


def _train(program: str, wanted: experiment.ExperimentConfig[Any, Any]) -> int:
  # Before JAX: an interrupt that is raised while a library is imported may be swallowed there.
  with interrupts.Interrupts() as signals:
    # Only here does JAX come in: what a person gets wrong is answered before.
    from . import run

    if signals.requested:
      print(f"{program}: interrupted before training began", file=sys.stderr)
      return signals.exit_code
    return run.run(wanted, START, signals)


def parse(args: Sequence[str]) -> experiment.ExperimentConfig[Any, Any]:
  """Parses and checks the flags; on a workdir with a run its configuration gives the defaults.

  Raises:
    config.InputError: for a configuration that can't work, or differs from that of the run.
  """
  peek = functools.partial(command_line.peek, args)
  env, workdir = peek("env") or "", peek("workdir")
  agent, architecture = peek("agent"), peek("architecture")
  command_line.check_choice("agent", agent or "impala", tuple(experiment.AGENTS))
  command_line.check_choice(
    "architecture", architecture or "anakin", tuple(experiment.ARCHITECTURES)
  )
  if not workdir:
    workdir = experiment.default_workdir(env, agent or "impala")
  resumes = experiment.has_run(workdir) and "--restart" not in args
  if resumes or (experiment.has_run(workdir) and not env):
    # Also what is begun anew without naming its environment is begun as it was.
    base = experiment.read(workdir)
    _check_same_kind(workdir, base, agent, architecture)
  else:
    architecture = architecture or experiment.default_architecture(env)
    base = experiment.default_experiment(agent or "impala", architecture, env)
  cls = experiment.experiment_type(base.agent, base.architecture)
  return settle(command_line.parse(cls, PROGRAM, args, default=base), base, workdir, resumes)


def settle(
  wanted: experiment.ExperimentConfig[Any, Any],
  base: experiment.ExperimentConfig[Any, Any],
  workdir: str,
  resumes: bool,
) -> experiment.ExperimentConfig[Any, Any]:
  """Returns a parsed configuration once all of it is checked.

  Args:
    wanted: as parsed.
    base: the configuration before any flag; that of the run, if it goes on.
    workdir: of the run.
    resumes: whether the run that is there goes on.

  Raises:
    config.InputError: for a configuration that can't work, or differs from that of the run.
  """
  options = experiment.merge_options(base.env_options, wanted.env_options)
  wanted = dataclasses.replace(wanted, workdir=workdir, env_options=options)
  wanted.check()
  teachers.check(wanted)
  _check_workdir(workdir)
  if resumes:
    changed = experiment.differences(base, wanted)
    config_lib.check(
      not changed,
      f"workdir {workdir} holds a run with another configuration: {'; '.join(changed)} (take another "
      "--workdir, or --restart)",
    )
  return wanted


def _check_same_kind(workdir: str, base: Any, agent: str | None, architecture: str | None) -> None:
  for kind, saved, wanted in (
    ("agent", base.agent, agent),
    ("architecture", base.architecture, architecture),
  ):
    config_lib.check(
      wanted in (None, saved),
      f"workdir {workdir} holds a run with another configuration: {kind}: {saved} -> {wanted} (take "
      "another --workdir, or --restart)",
    )


def _check_workdir(workdir: str) -> None:
  """Refuses a directory that holds something else than a run."""
  path = pathlib.Path(workdir)
  config_lib.check(not path.exists() or path.is_dir(), f"workdir {workdir} is not a directory")
  if path.is_dir() and not experiment.has_run(workdir):
    config_lib.check(
      not any(path.iterdir()),
      f"workdir {workdir} is not empty and not a run: it has no config.json",
    )
