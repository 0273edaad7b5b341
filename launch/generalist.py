"""`podracer generalist train|evaluate`: one network for many tasks, trained from recorded files alone."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from podracer import config as config_lib
from podracer.agents import generalist
from podracer.data import filters as filters_lib

from . import command_line, experiment, interrupts, run_files

if TYPE_CHECKING:
  from . import policy

NAME = experiment.GENERALIST
PROGRAM = "podracer generalist"
EVERYTHING = "all"
# The command's beginning, for the time to the first update.
START = time.perf_counter()

Filters = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
_MAY_CHANGE = {"may_change": True}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Trains a generalist from recorded data; on a workdir that has a run, goes on where it stopped."""

  config: generalist.GeneralistConfig = dataclasses.field(
    default_factory=generalist.GeneralistConfig
  )
  """Hyper-parameters."""
  data: tuple[str, ...] = ()
  """Directories of collections (`podracer record` makes one)."""
  workdir: str = dataclasses.field(default="runs/generalist", metadata=_MAY_CHANGE)
  """Directory of the run."""
  restart: tyro.conf.FlagCreatePairsOff[bool] = dataclasses.field(
    default=False, metadata=_MAY_CHANGE
  )
  """Begin anew in a workdir that has a run; the old one is moved aside, not deleted."""
  filter: Filters = ()
  """Episodes to learn from: --filter=top_fraction:0.1, one after the other; `all` takes them as they are.
  By default norm80, and of learning histories all."""
  tasks: tuple[str, ...] = ()
  """Names of tasks, or patterns such as 'gymnax_*'; all by default."""
  num_updates: int = 2000
  """Batches to learn from."""
  seed: int = 0
  """Of the parameters, the order of the data, and the prompts."""
  num_devices: int = 0
  """Devices to use; 0 takes all accelerators, or where there are none one virtual device a core."""
  updates_per_report: int = dataclasses.field(default=50, metadata=_MAY_CHANGE)
  """Updates between two rows of metrics.jsonl."""
  evaluate_every: int = dataclasses.field(default=0, metadata=_MAY_CHANGE)
  """Updates between evaluations; 0 evaluates at the end only."""
  evaluate_episodes: int = dataclasses.field(default=64, metadata=_MAY_CHANGE)
  """Whole episodes of each task in an evaluation; 0 evaluates nothing, and plays nothing."""
  checkpoint_every_seconds: float = dataclasses.field(default=60.0, metadata=_MAY_CHANGE)
  """Seconds between checkpoints; one is always written at the end, on SIGTERM and on Ctrl-C."""
  max_checkpoints: int = dataclasses.field(default=3, metadata=_MAY_CHANGE)
  """Checkpoints kept, at least 2."""
  tensorboard: bool = dataclasses.field(default=True, metadata=_MAY_CHANGE)
  """Also write TensorBoard events."""

  def __post_init__(self) -> None:
    config_lib.check_positive(
      num_updates=self.num_updates,
      updates_per_report=self.updates_per_report,
      checkpoint_every_seconds=self.checkpoint_every_seconds,
    )
    config_lib.check_at_least(
      0,
      seed=self.seed,
      num_devices=self.num_devices,
      evaluate_every=self.evaluate_every,
      evaluate_episodes=self.evaluate_episodes,
    )
    config_lib.check_at_least(2, max_checkpoints=self.max_checkpoints)
    for text in self.resolved_filters():
      filters_lib.parse(text)

  def resolved_filters(self) -> tuple[str, ...]:
    """Returns the filters to take, the default in place of none."""
    default = () if self.config.histories else ("norm80",)
    return tuple(text for text in self.filter or default if text != EVERYTHING)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Plays whole episodes of every task and writes evaluation.json."""

  workdir: str
  """Directory of the run."""
  episodes: int = 64
  """Whole episodes of each task; with --in_context_episodes the environments of each."""
  tasks: tuple[str, ...] = ()
  """Names of tasks, or patterns; all by default."""
  mode: Literal["auto", "greedy", "sample"] = "auto"
  """Take the likeliest action, or sample; auto samples after algorithm distillation."""
  prompt: bool = True
  """Whether demonstrations stand in front; --no-prompt acts without."""
  in_context_episodes: int = 0
  """Play so many episodes in a row without forgetting, and tell the return by their number
  (algorithm distillation)."""
  env_options: Filters = ()
  """Play this variant of the environments in place of the recorded ones, one that was held out say:
  --env_options goal=3 --env_options goal=7 plays two. Several options of one are parted by spaces."""
  seed: int = 0
  """Of the environments."""

  def __post_init__(self) -> None:
    config_lib.check_positive(episodes=self.episodes)
    config_lib.check_at_least(0, seed=self.seed, in_context_episodes=self.in_context_episodes)
    for text in self.env_options:
      experiment.parse_options(tuple(text.split()))


def _train(args: Sequence[str]) -> None:
  wanted = parse_train(args)
  # Before JAX: an interrupt that is raised while a library is imported may be swallowed there.
  with interrupts.Interrupts() as signals, command_line.disk_errors(wanted.workdir):
    from . import generalist_run

    code = generalist_run.run(wanted, START, signals)
  sys.exit(code)


def _evaluate(args: Sequence[str]) -> None:
  wanted: EvaluateConfig = command_line.parse(EvaluateConfig, f"{PROGRAM} evaluate", args)
  saved = read(wanted.workdir)
  config_lib.check(
    saved.config.histories or not wanted.in_context_episodes,
    "in_context_episodes is for a run with --config.histories",
  )
  from . import generalist_evaluation

  with command_line.disk_errors(wanted.workdir):
    generalist_evaluation.main(wanted, saved)


class _Action(NamedTuple):
  """One thing to do, with what arguments it is parsed and what it does."""

  config: Any
  run: Callable[[Sequence[str]], None]
  help: str


ACTIONS = {
  "train": _Action(TrainConfig, _train, "train it from recorded data, or go on"),
  "evaluate": _Action(EvaluateConfig, _evaluate, "play all tasks and compare with their experts"),
}


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  if not args or args[0] in ("-h", "--help"):
    print(_help())
    sys.exit(0)
  command_line.check_choice("action", args[0], tuple(ACTIONS))
  ACTIONS[args[0]].run(args[1:])


def parse(args: Sequence[str]) -> Any:
  """Returns the options of the action that is named first."""
  command_line.check_choice("action", args[0], tuple(ACTIONS))
  return command_line.parse(ACTIONS[args[0]].config, f"{PROGRAM} {args[0]}", args[1:])


def parse_train(args: Sequence[str]) -> TrainConfig:
  """Parses and checks the flags; on a workdir with a run its configuration gives the defaults.

  Raises:
    config.InputError: for a configuration that can't work, or differs from that of the run.
  """
  workdir = command_line.peek(args, "workdir") or TrainConfig().workdir
  resumes = experiment.has_run(workdir) and "--restart" not in args
  saved = read(workdir) if resumes else None
  wanted: TrainConfig = command_line.parse(TrainConfig, f"{PROGRAM} train", args, default=saved)
  wanted = dataclasses.replace(wanted, workdir=workdir)
  config_lib.check(
    bool(wanted.data), "no data given: --data=DIR, a collection of `podracer record`"
  )
  path = pathlib.Path(workdir)
  config_lib.check(
    experiment.has_run(workdir) or not path.is_dir() or not any(path.iterdir()),
    f"workdir {workdir} is not empty and not a run: it has no {experiment.CONFIG_FILE}",
  )
  command_line.check_writable("workdir", workdir)
  changed = _differences(saved, wanted) if saved else []
  config_lib.check(
    not changed,
    f"workdir {workdir} holds a run with another configuration: {'; '.join(changed)} (take another "
    "--workdir, or --restart)",
  )
  return wanted


def to_json(wanted: TrainConfig) -> dict[str, Any]:
  """Returns the configuration as plain JSON values, without where and how it was started."""
  values = json.loads(json.dumps(dataclasses.asdict(wanted)))
  del values["workdir"], values["restart"]
  return {"agent": NAME, **values}


def read(workdir: str) -> TrainConfig:
  """Reads the configuration of a run.

  Raises:
    config.InputError: if there is none, or it is not that of a generalist.
  """
  path = pathlib.Path(workdir)
  config_lib.check(path.is_dir(), f"workdir {workdir} does not exist")
  path = path / experiment.CONFIG_FILE
  config_lib.check(path.is_file(), f"workdir {workdir} is not a run: it has no {path.name}")
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
    agent = values.pop("agent", None)
    config_lib.check(agent == NAME, f"workdir {workdir} is a run of {agent}, not of a generalist")
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    settings = generalist.GeneralistConfig(**values.pop("config"))
    return TrainConfig(**{**values, **lists, "config": settings, "workdir": workdir})
  except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
    raise config_lib.InputError(f"{path} cannot be read: {error}") from error


def write(wanted: TrainConfig) -> None:
  """Writes config.json, whole or not at all."""
  run_files.write_json(pathlib.Path(wanted.workdir) / experiment.CONFIG_FILE, to_json(wanted))


def load_policy(
  workdir: str, task: str, *, greedy: bool = True, prompt: bool = True, seed: int = 0
) -> "policy.Policy":
  """Loads the newest valid generalist of a run, to act in one of its tasks.

  Args:
    workdir: the run directory.
    task: one of its tasks, as `gymnax_catch_bsuite`.
    greedy: False samples.
    prompt: False acts without a demonstration.
    seed: of the sampling.

  Raises:
    config.InputError: if it is not the run of a generalist, has no checkpoint yet, or no such task.
  """
  from . import generalist_evaluation, policy

  saved = read(workdir)
  loaded = generalist_evaluation.Loaded(saved)
  actor = loaded.actor(task, prompt)
  return policy.Policy(
    actor.agent, actor.params, actor.environment.spec, loaded.env_steps, greedy=greedy, seed=seed
  )


def _differences(saved: TrainConfig, wanted: TrainConfig) -> list[str]:
  """Returns `name: saved -> wanted` for what may not change when a run is resumed."""
  may_change = {f.name for f in dataclasses.fields(TrainConfig) if f.metadata == _MAY_CHANGE}
  if saved.config.learning_rate_schedule == "constant":
    may_change.add("num_updates")
  old, new = to_json(saved), to_json(wanted)
  old["filter"], new["filter"] = (list(made.resolved_filters()) for made in (saved, wanted))
  old, new = ({**v, **{f"config.{k}": x for k, x in v["config"].items()}} for v in (old, new))
  return [
    f"{name}: {old[name]} -> {new[name]}"
    for name in sorted(new)
    if name != "config" and name not in may_change and old.get(name) != new[name]
  ]


def _help() -> str:
  lines = [f"usage: {PROGRAM} ACTION [OPTIONS]", "", "actions:"]
  lines += [f"  {name:10}{action.help}" for name, action in ACTIONS.items()]
  lines += ["", f"`{PROGRAM} ACTION --help` tells the options of an action. For example:", ""]
  lines += [f"  {PROGRAM} train --data=data/catch --workdir=runs/generalist"]
  return "\n".join(lines)
