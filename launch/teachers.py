"""The teachers of a student's run: read from runs of their own, kept by the student's."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from podracer import config as config_lib
from podracer import environments

from . import experiment, run_files

if TYPE_CHECKING:
  from podracer import agent as agent_lib

Experiment = experiment.ExperimentConfig[Any, Any]

DIRECTORY = "teachers"


def names(saved: Experiment) -> tuple[str, ...]:
  """Returns how the teachers of a run are named, () where its agent has none."""
  is_student = isinstance(saved.config, config_lib.StudentConfig)
  return saved.config.teachers if is_student else ()


def split_name(name: str) -> tuple[str, int]:
  """Returns directory and seed index of a teacher: `runs/a#2` is policy number 2 of runs/a."""
  directory, _, index = name.rpartition("#")
  return (directory, int(index)) if directory and index.isdecimal() else (name, 0)


def read(name: str) -> Experiment:
  """Reads the configuration of a teacher's run.

  Raises:
    InputError: if there is no such run, or not so many seeds in it.
  """
  directory, index = split_name(name)
  try:
    saved = experiment.read(directory)
  except config_lib.InputError as error:
    raise config_lib.InputError(f"teacher {name}: {error}") from error
  config_lib.check(
    index < saved.num_seeds,
    f"teacher {name}: the policies of {directory} are 0 .. {saved.num_seeds - 1}",
  )
  return saved


def check(wanted: Experiment) -> None:
  """Checks the teachers of a run that is to begin or go on, free of JAX.

  Raises:
    InputError: if a student has none, or one isn't a run or of another environment; or for teachers
      beside recorded data.
  """
  if not isinstance(wanted.config, config_lib.StudentConfig):
    return
  if getattr(wanted.machine, "data", ""):
    config_lib.check(
      not names(wanted),
      "teachers: whoever played the recorded data is its teacher, no other is asked",
    )
    return
  config_lib.check(
    bool(names(wanted)) or not wanted.machine.plays,  # Recorded data speaks for them.
    "no teacher given: --config.teachers, or podracer distill --teacher=<directory of a run>",
  )
  if wanted.restart or not _has_checkpoint(wanted.workdir):
    for name in names(wanted):
      _task(wanted, name, read(name))


def load(wanted: Experiment) -> "Sequence[agent_lib.Teacher]":
  """Returns the teachers with which a run begins, or goes on.

  One that goes on has its teachers' parameters in its checkpoints, whatever has become of their runs.

  Args:
    wanted: configuration of the student's run.

  Raises:
    InputError: if a teacher isn't a run, has no checkpoint, or is of another environment.
    checkpoint.CheckpointError: if all its checkpoints are bad.
  """
  from podracer import types

  from . import policy

  if _has_checkpoint(wanted.workdir):
    return shapes(wanted)
  teachers = []
  for name in names(wanted):
    directory, index = split_name(name)
    saved = read(name)
    try:
      loaded = policy.LoadedRun(directory)
    except config_lib.InputError as error:
      raise config_lib.InputError(f"teacher {name}: {error}") from error
    params = types.to_numpy(loaded.params(index))
    spec = loaded.environment.spec
    teachers.append(_make(wanted, name, saved, loaded.agent, params, spec))
  return teachers


def shapes(saved: Experiment) -> "Sequence[agent_lib.Teacher]":
  """Returns the teachers of a run with jax.ShapeDtypeStruct for parameters, which its checkpoints have.

  Raises:
    InputError: if neither the run nor the teacher's own has its configuration.
  """
  import jax

  teachers = []
  for i, name in enumerate(names(saved)):
    copied = _copy_directory(saved.workdir, i)
    own = experiment.read(str(copied)) if experiment.has_run(str(copied)) else read(name)
    spec = own.make_environment().spec
    agent = own.make_agent(spec, own.config.for_evaluation())
    params = jax.eval_shape(agent.init, jax.random.key(0))
    teachers.append(_make(saved, name, own, agent, params, spec))
  return teachers


def keep(wanted: Experiment) -> None:
  """Copies the configurations of the teachers into the run, which then needs their runs no more."""
  for i, name in enumerate(names(wanted)):
    path = _copy_directory(wanted.workdir, i) / experiment.CONFIG_FILE
    if not path.exists():
      run_files.write_json(path, experiment.to_json(read(name)))


def _make(
  wanted: Experiment, name: str, own: Experiment, agent: Any, params: Any, spec: Any
) -> "agent_lib.Teacher":
  from podracer import agent as agent_lib

  # A teacher that had teachers itself needs these no more.
  params, _ = agent_lib.split_frozen(agent, params)
  if agent.act_by_prior is not None and not wanted.config.teacher_search:
    agent = agent_lib.without_search(agent)
  return agent_lib.Teacher(
    agent=agent,
    params=params,
    spec=spec,
    task=_task(wanted, name, own),
    action_distribution=getattr(own.config, "action_distribution", "gaussian"),
  )


def _task(wanted: Experiment, name: str, own: Experiment) -> int | None:
  """Returns the number of the task that a teacher teaches, None for all of them."""
  tasks = environments.split(wanted.env)
  if len(tasks) == 1:
    return 0
  if own.env == wanted.env:
    return None
  config_lib.check(
    own.env in tasks,
    f"teacher {name} was trained in {own.env}, which is none of the tasks {', '.join(tasks)}",
  )
  return tasks.index(own.env)


def _copy_directory(workdir: str, index: int) -> pathlib.Path:
  return pathlib.Path(workdir) / DIRECTORY / str(index)


def _has_checkpoint(workdir: str) -> bool:
  steps = pathlib.Path(workdir) / "checkpoints"
  return steps.is_dir() and any(path.name.isdecimal() for path in steps.iterdir())
