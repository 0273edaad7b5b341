"""`podracer distill`: trains a student of trained agents or of recorded data, or goes on with it."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import tyro

from podracer import config as config_lib
from podracer import environments
from podracer.agents.distillation import config as distillation_config

from . import command_line, experiment, teachers, train

PROGRAM = "podracer distill"
AGENT = "distillation"
# What makes the values of teacher and student worth the same, and their actions the same.
_AS_THE_TEACHER = ("discount", "reward_clip", "action_distribution")


@dataclasses.dataclass(frozen=True)
class DistillConfig(
  experiment.ExperimentConfig[experiment.AgentConfigT, experiment.MachineConfigT]
):
  """Trains a student of trained agents; on a workdir that has a run, goes on where it stopped.

  The options are those of `podracer train`, and --teacher and --kickstart. The environment is that of the
  teachers; of teachers of several environments the student learns all, as tasks. With --data it learns from
  recorded data in place of teachers.
  """

  teacher: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
  """Directory of a teacher's run; give it once for each teacher. `runs/a#2` takes policy number 2 of a run
  with several seeds."""
  kickstart: tyro.conf.FlagCreatePairsOff[bool] = False
  """Also learn from reward, while the teachers' weight falls to 0 over `distillation_steps` (Schmitt et al.
  2018)."""


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  train.start(PROGRAM, parse(args))


def parse(args: Sequence[str]) -> experiment.ExperimentConfig[Any, Any]:
  """Parses and checks the flags; teachers give the defaults, or a run that is there.

  Raises:
    config.InputError: for a configuration that can't work, or differs from that of the run.
  """
  names = _values(args, "teacher")
  workdir = command_line.peek(args, "workdir")
  if command_line.peek(args, "data") and not command_line.peek(args, "architecture"):
    args = [*args, "--architecture=offline"]
  agent = command_line.peek(args, "agent") or AGENT
  config_lib.check(agent == AGENT, f"podracer distill trains --agent={AGENT}, got {agent}")
  base = _default(args, names)
  workdir = workdir or base.workdir
  resumes = experiment.has_run(workdir) and "--restart" not in args
  if resumes:
    base = experiment.read(workdir)
    config_lib.check(
      base.agent == AGENT, f"workdir {workdir} holds a run of {base.agent}, take another --workdir"
    )
  changes: dict[str, Any] = {"teachers": names} if names else {}
  if "--kickstart" in args:
    changes |= distillation_config.KICKSTART
  default = dataclasses.replace(base, config=dataclasses.replace(base.config, **changes))
  types = experiment.config_types(default.agent, default.architecture)
  cls = DistillConfig[types[0], types[1]]  # type: ignore[valid-type]
  given = command_line.parse(cls, PROGRAM, args, default=_extended(default))
  wanted = _plain(given)
  return train.settle(wanted if resumes else _paced(wanted, args), base, workdir, resumes)


def _default(args: Sequence[str], names: tuple[str, ...]) -> Any:
  """Returns the configuration before any flag: that of the run, or by the teachers."""
  workdir, env = command_line.peek(args, "workdir"), command_line.peek(args, "env") or ""
  architecture = command_line.peek(args, "architecture")
  if architecture:
    command_line.check_choice("architecture", architecture, tuple(experiment.ARCHITECTURES))
  if workdir and experiment.has_run(workdir) and not (names and "--restart" in args):
    return experiment.read(workdir)
  asks_for_help, data = "--help" in args or "-h" in args, command_line.peek(args, "data")
  config_lib.check(
    bool(names or data) or asks_for_help,
    "no teacher given: --teacher=<directory of a run>, or --data=<recorded data>",
  )
  runs = [teachers.read(name) for name in names]
  if data and not env:
    return _default_of_data(data)
  own_env = environments.TASK_SEPARATOR.join(dict.fromkeys(run.env for run in runs))
  env = env or own_env
  made = experiment.default_experiment(
    AGENT, architecture or experiment.default_architecture(env), env
  )
  if env == own_env and runs:
    made = dataclasses.replace(made, env_options=_env_options(runs))
  same = {
    name: getattr(runs[0].config, name)
    for name in _AS_THE_TEACHER
    if runs and hasattr(runs[0].config, name)
  }
  return dataclasses.replace(made, config=dataclasses.replace(made.config, **same))


def _default_of_data(path: str) -> Any:
  """Returns the configuration for the environments of recorded data, with their options."""
  from podracer import data

  envs, options = [], []
  for dataset in data.open(path):
    envs.append(str(dataset.column("env_id")[0]))
    recorded = json.loads(dataset.column("env_kwargs")[0])
    options.append([f"{name}={value!r}" for name, value in recorded.items()])
  env = environments.TASK_SEPARATOR.join(envs)
  made = experiment.default_experiment(AGENT, "offline", env)
  return dataclasses.replace(made, env_options=experiment.task_options(options))


def _env_options(runs: Sequence[Any]) -> tuple[str, ...]:
  """Returns the options of the teachers' environments, of several as those of tasks."""
  first = {run.env: run.env_options for run in reversed(runs)}
  return experiment.task_options([first[env] for env in dict.fromkeys(run.env for run in runs)])


def _paced(wanted: Any, args: Sequence[str]) -> Any:
  """Returns a new run with schedules of a length that fits it, where none was given.

  Teachers have faded, or given up control, after half of its gradient steps; one that ends when it is
  passed is judged after a twentieth.
  """
  machine = wanted.machine
  steps_per_update = getattr(machine, machine.batch_field) * machine.unroll_length
  num_steps = wanted.num_env_steps // steps_per_update * wanted.config.gradient_steps_per_update
  is_judged = wanted.config.distillation_schedule == "until_passed"
  paces = {
    "distillation_steps": max(1, num_steps // (20 if is_judged else 2)),
    "control_steps": max(1, num_steps // 2),
  }
  changes = {
    name: steps
    for name, steps in paces.items()
    if command_line.peek(args, f"config.{name}") is None
  }
  return dataclasses.replace(wanted, config=dataclasses.replace(wanted.config, **changes))


def _extended(default: Any) -> Any:
  fields = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
  return DistillConfig(**fields)


def _plain(given: Any) -> Any:
  names = {field.name for field in dataclasses.fields(experiment.ExperimentConfig)}
  return experiment.ExperimentConfig(**{name: getattr(given, name) for name in sorted(names)})


def _values(args: Sequence[str], name: str) -> tuple[str, ...]:
  """Returns every value of a flag that may be given several times."""
  values = []
  for i, arg in enumerate(args):
    flag, separator, rest = arg.partition("=")
    if flag == f"--{name}":
      values += [rest] if separator else list(args[i + 1 : i + 2])
  return tuple(values)
