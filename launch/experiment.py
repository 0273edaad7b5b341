"""An experiment: which agent in which environment on which machine, as one frozen configuration.

Free of JAX, so that a wrong name or value is answered before JAX starts.
"""

import ast
import dataclasses
import fnmatch
import importlib
import json
import pathlib
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import tyro

from podracer import config as config_lib
from podracer import environments

from . import host, run_files


class MachineConfig(Protocol):
  """What every machine's configuration can do."""

  takes_host_environments: ClassVar[bool]
  takes_several_seeds: ClassVar[bool]
  # Whether it has environments, or only learns; and the field that says how large its batch is.
  plays: ClassVar[bool]
  batch_field: ClassVar[str]
  unroll_length: int

  def preferred_devices(self, num_cores: int, num_tasks: int = 1, num_processes: int = 1) -> int:
    """Returns how many virtual devices a process makes where there is no accelerator."""
    ...

  def check(
    self, num_devices: int, num_minibatches: int, num_tasks: int = 1, num_processes: int = 1
  ) -> None:
    """Raises InputError for what can't be shared out over the devices of all processes."""
    ...


AgentConfigT = TypeVar("AgentConfigT", bound=config_lib.LearnerConfig)
MachineConfigT = TypeVar("MachineConfigT", bound=MachineConfig)

# name -> (module, name of its configuration); the module also has `make_agent` and `presets`.
AGENTS = {
  "impala": ("podracer.agents.impala", "ImpalaConfig"),
  "muzero": ("podracer.agents.muzero", "MuZeroConfig"),
  "distillation": ("podracer.agents.distillation", "DistillationConfig"),
}
# name -> (module of the configuration, its name); beside it lies `machine` with `make_machine` and `run`.
ARCHITECTURES = {
  "anakin": ("podracer.anakin.config", "AnakinConfig"),
  "sebulba": ("podracer.sebulba.config", "SebulbaConfig"),
  "offline": ("podracer.offline.config", "OfflineConfig"),
}

CONFIG_FILE = "config.json"
GENERALIST = "generalist"
"""The agent of runs that only `podracer generalist` reads."""
MAY_CHANGE = {"may_change": True}


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(Generic[AgentConfigT, MachineConfigT]):
  """Trains an agent; on a workdir that has a run, goes on where it stopped."""

  config: AgentConfigT
  """Hyper-parameters of the agent."""
  # Without a prefix: --num_environments, not --machine.num_environments.
  machine: Annotated[MachineConfigT, tyro.conf.arg(name="")]
  """The machine."""
  env: str = ""
  """`suite:environment` (see `podracer envs`), or your own `package.module:function`; several joined by +
  are tasks that the agent learns together."""
  env_options: tuple[str, ...] = ()
  """Options of the environment, each as name=value (true and false are bools, other Python literals what they
  are, all else strings); those of task i of several as i.name=value."""
  agent: str = "impala"
  """The agent."""
  architecture: str = "anakin"
  """The machine that runs it: anakin; sebulba, which host environments take by themselves; or offline,
  which learns from recorded data."""
  workdir: str = dataclasses.field(default="", metadata=MAY_CHANGE)
  """Directory of the run; runs/<environment>-<agent> by default."""
  restart: tyro.conf.FlagCreatePairsOff[bool] = dataclasses.field(
    default=False, metadata=MAY_CHANGE
  )
  """Begin anew in a workdir that has a run; the old one is moved aside, not deleted."""
  num_env_steps: int = dataclasses.field(default=3_000_000, metadata=MAY_CHANGE)
  """Environment steps of the run; it ends with the first update that reaches them."""
  seed: int = 0
  """Of everything random."""
  num_seeds: int = 1
  """Whole runs side by side, with seeds seed .. seed + num_seeds - 1 (anakin)."""
  num_devices: int = 0
  """Devices to use, over all processes; 0 takes all accelerators, or where there are none virtual devices: one a core for
  anakin, as many as are named for sebulba."""
  evaluate_every: int = dataclasses.field(default=0, metadata=MAY_CHANGE)
  """Environment steps between evaluations; 0 evaluates at the end only."""
  evaluate_episodes: int = dataclasses.field(default=128, metadata=MAY_CHANGE)
  """Whole episodes of an evaluation."""
  evaluate_mode: Literal["greedy", "sample"] = dataclasses.field(
    default="greedy", metadata=MAY_CHANGE
  )
  """Take the most likely action, or sample."""
  checkpoint_every_seconds: float = dataclasses.field(default=60.0, metadata=MAY_CHANGE)
  """Seconds between checkpoints; one is always written at the end, on SIGTERM and on Ctrl-C."""
  max_checkpoints: int = dataclasses.field(default=3, metadata=MAY_CHANGE)
  """Checkpoints kept, at least 2."""
  tensorboard: bool = dataclasses.field(default=True, metadata=MAY_CHANGE)
  """Also write TensorBoard events."""
  record: float = dataclasses.field(default=0.0, metadata=MAY_CHANGE)
  """Share of the environments whose whole episodes are recorded as expert data, in <workdir>/data."""
  record_histories: bool = dataclasses.field(default=False, metadata=MAY_CHANGE)
  """Keep all episodes of a recorded environment as one learning history."""
  wandb_project: str = dataclasses.field(default="", metadata=MAY_CHANGE)
  """Also log to this Weights & Biases project; needs podracer-rl[wandb]."""
  # Without a prefix, as the machine's.
  group: Annotated[host.GroupConfig, tyro.conf.arg(name="")] = dataclasses.field(
    default_factory=host.GroupConfig
  )
  """The processes that train together."""

  def __post_init__(self) -> None:
    config_lib.check_positive(
      num_env_steps=self.num_env_steps,
      num_seeds=self.num_seeds,
      evaluate_episodes=self.evaluate_episodes,
      checkpoint_every_seconds=self.checkpoint_every_seconds,
    )
    config_lib.check_at_least(
      0, seed=self.seed, num_devices=self.num_devices, evaluate_every=self.evaluate_every
    )
    config_lib.check_at_least(2, max_checkpoints=self.max_checkpoints)
    config_lib.check_fraction(record=self.record)
    config_lib.check(
      self.record > 0 or not self.record_histories,
      "record_histories needs --record, a share of the environments above 0",
    )
    config_lib.check(
      self.seed + self.num_seeds <= 2**32, f"seed must be below 2^32, got {self.seed}"
    )
    parse_options(self.env_options)

  def check(self) -> None:
    """Checks what needs more than one field; raises InputError. Still free of JAX."""
    config_lib.check(bool(self.env), "no environment given: --env=suite:name (`podracer envs`)")
    environments.check_name(self.env)
    config_lib.check(
      self.machine.takes_host_environments or not environments.is_host(self.env),
      f"environment {self.env} runs on the host, which takes --architecture=sebulba",
    )
    config_lib.check(
      self.machine.takes_several_seeds or self.num_seeds == 1,
      f"num_seeds={self.num_seeds}: {self.architecture} runs one seed at a time",
    )
    # The least there will be: more devices are only known once JAX has started.
    processes = max(1, self.group.num_processes)
    num_devices = self.num_devices or processes * self.preferred_devices(1, processes)
    config_lib.check(
      num_devices % processes == 0,
      f"num_devices={num_devices} is not divisible by the {processes} processes",
    )
    self.machine.check(num_devices, self.config.num_minibatches, self.num_tasks, processes)
    if self.record:
      self.check_can_record()
    self.config.check_unroll(self.machine.unroll_length)

  def check_can_record(self) -> None:
    """Raises InputError where what is played can't be recorded."""
    config_lib.check(
      not self.group.coordinator,
      "record works in one process; of what several have trained, `podracer record` records",
    )
    config_lib.check(
      self.num_tasks == 1,
      f"environment {self.env} has several tasks, which can't be recorded: record each by itself",
    )

  @property
  def num_tasks(self) -> int:
    """Tasks that the name of the environment joins."""
    return len(environments.split(self.env))

  def preferred_devices(self, num_cores: int, num_processes: int = 1) -> int:
    """Returns how many virtual devices a process makes where there is no accelerator."""
    return self.machine.preferred_devices(num_cores, self.num_tasks, num_processes)

  def make_environment(self) -> Any:
    """Builds the environment: an `Environment`, or a `HostFactory`."""
    return environments.make(self.env, **parse_options(self.env_options))

  def make_agent(self, spec: Any, config: Any = None, teachers: Sequence[Any] = ()) -> Any:
    """Builds the agent for an environment.

    Args:
      spec: of the environment.
      config: of the agent in place of this experiment's, one for evaluation say.
      teachers: of an agent that learns from teachers; acting alone needs none.
    """
    make = importlib.import_module(AGENTS[self.agent][0]).make_agent
    config = self.config if config is None else config
    if isinstance(config, config_lib.StudentConfig):
      return make(config, spec, teachers)
    return make(config, spec)


def parse_options(options: tuple[str, ...]) -> dict[str, Any]:
  """Returns `name=value` strings as a dict; a value is a Python literal, true, false, or else a string."""
  parsed: dict[str, Any] = {}
  for option in options:
    name, separator, value = option.partition("=")
    config_lib.check(bool(name and separator), f"env_options takes name=value, got {option!r}")
    # As a string `false` would be true.
    literal = {"true": "True", "false": "False"}.get(value, value)
    try:
      parsed[name] = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
      parsed[name] = value
  return parsed


def task_options(by_task: Sequence[Sequence[str]]) -> tuple[str, ...]:
  """Returns the options of tasks as those of their environment; of one task they stay as they are."""
  if len(by_task) == 1:
    return tuple(by_task[0])
  return tuple(f"{i}.{option}" for i, options in enumerate(by_task) for option in options)


def default_architecture(env: str) -> str:
  """Returns the machine for an environment where none is named."""
  return "sebulba" if environments.is_host(env) else "anakin"


def make_machine(
  experiment: "ExperimentConfig[Any, Any]", agent: Any, environment: Any, devices: Any
) -> Any:
  """Builds the machine of an experiment."""
  return machine_module(experiment.architecture).make_machine(
    agent,
    environment,
    experiment.config,
    experiment.machine,
    num_env_steps=experiment.num_env_steps,
    num_seeds=experiment.num_seeds,
    devices=devices,
    record=experiment.record,
  )


def machine_module(architecture: str, name: str = "machine") -> Any:
  """Returns a module of a machine: `machine`, with its `make_machine` and `run`, or `recording`."""
  package = ARCHITECTURES[architecture][0].rpartition(".")[0]
  return importlib.import_module(f"{package}.{name}")


def merge_options(defaults: tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
  """Returns `name=value` options with those of `options` in place of the defaults of the same name."""
  by_name = {option.partition("=")[0]: option for option in (*defaults, *options)}
  return tuple(by_name.values())


def experiment_type(agent: str, architecture: str) -> Any:
  """Returns ExperimentConfig of the configuration types of an agent and a machine.

  Raises:
    config.InputError: for an unknown agent or architecture, listing those there are.
  """
  return ExperimentConfig[config_types(agent, architecture)]  # type: ignore[misc]


def config_types(agent: str, architecture: str) -> tuple[Any, Any]:
  """Returns the configuration types of an agent and a machine; see `experiment_type`."""
  types = []
  for kind, name, table in (
    ("agent", agent, AGENTS),
    ("architecture", architecture, ARCHITECTURES),
  ):
    config_lib.check(name in table, f"unknown {kind} {name}; there is: {', '.join(table)}")
    module, attribute = table[name]
    types.append(getattr(importlib.import_module(module), attribute))
  return types[0], types[1]


def default_experiment(agent: str, architecture: str, env: str) -> ExperimentConfig[Any, Any]:
  """Returns the configuration for an environment before any flag: the agent's preset for it."""
  agent_type, machine_type = typing.get_args(experiment_type(agent, architecture))
  presets = importlib.import_module(f"{AGENTS[agent][0]}.presets").PRESETS
  preset = _preset(presets, env)
  agent_config = agent_type(**preset.get("config", {}))
  # The parts of an agent's configuration, `network` for one, stand beside it in a preset.
  parts = {
    field.name: dataclasses.replace(getattr(agent_config, field.name), **preset[field.name])
    for field in dataclasses.fields(agent_config)
    if field.name in preset and dataclasses.is_dataclass(getattr(agent_config, field.name))
  }
  agent_config = dataclasses.replace(agent_config, **parts)
  fields = {field.name for field in dataclasses.fields(machine_type)}
  machine = {name: value for name, value in preset.get("machine", {}).items() if name in fields}
  return ExperimentConfig(
    config=agent_config,
    machine=_shared_out(machine_type(**machine), len(environments.split(env))),
    env=env,
    agent=agent,
    architecture=architecture,
    workdir=default_workdir(env, agent),
    num_env_steps=preset["num_env_steps"],
    env_options=preset.get("env_options", ()),
    evaluate_episodes=preset.get("evaluate_episodes", 128),
  )


def _preset(presets: Any, env: str) -> dict[str, Any]:
  """Returns the preset of an environment; of several tasks that of none, with the options of each."""

  def find(name: str) -> dict[str, Any]:
    return next(values for pattern, values in presets if fnmatch.fnmatch(name, pattern))

  tasks = environments.split(env)
  if len(tasks) == 1:
    return find(env)
  options = task_options([find(task).get("env_options", ()) for task in tasks])
  # What only separates names fits no pattern of one environment.
  return {**find(environments.TASK_SEPARATOR), "env_options": options}


def _shared_out(machine: Any, num_tasks: int) -> Any:
  """Returns the machine with a batch of which each task has a share that most devices divide."""
  if num_tasks == 1:
    return machine
  step, size = 8 * num_tasks, getattr(machine, machine.batch_field)
  return dataclasses.replace(machine, **{machine.batch_field: -(-size // step) * step})


def default_workdir(env: str, agent: str) -> str:
  """Returns runs/<environment>-<agent>, or nothing where no environment is given."""
  names = [task.rpartition(":")[2].replace("/", "-") for task in environments.split(env)]
  name = environments.TASK_SEPARATOR.join(names)
  if len(names) > 1 and len(name) > 80:
    name = f"{names[0]}{environments.TASK_SEPARATOR}{len(names) - 1}-tasks"
  return f"runs/{name}-{agent}" if name else ""


def to_json(experiment: ExperimentConfig[Any, Any]) -> dict[str, Any]:
  """Returns the configuration as plain JSON values, without where and how it was started."""
  values = json.loads(json.dumps(dataclasses.asdict(experiment)))
  del values["workdir"], values["restart"], values["group"]
  return values


def from_json(values: dict[str, Any], workdir: str) -> ExperimentConfig[Any, Any]:
  """Returns the configuration that `to_json` wrote.

  Raises:
    config.InputError: for a field that is not known, from another version say.
  """
  cls = experiment_type(values.get("agent", ""), values.get("architecture", ""))
  agent_type, machine_type = typing.get_args(cls)
  types = {"config": agent_type, "machine": machine_type}
  return _build(ExperimentConfig, {**values, "workdir": workdir}, types)


def _build(cls: Any, values: dict[str, Any], types: dict[str, Any]) -> Any:
  """Builds a dataclass of nested dataclasses and tuples from JSON values."""
  hints = {**typing.get_type_hints(cls), **types}
  unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
  config_lib.check(not unknown, f"unknown field {', '.join(unknown)} in {cls.__name__}")
  built = {}
  for name, value in values.items():
    if dataclasses.is_dataclass(hints[name]):
      built[name] = _build(hints[name], value, {})
    else:
      built[name] = tuple(value) if isinstance(value, list) else value
  return cls(**built)


def has_run(workdir: str) -> bool:
  """Returns True where a directory holds a run."""
  return bool(workdir) and (pathlib.Path(workdir) / CONFIG_FILE).is_file()


def read(workdir: str) -> ExperimentConfig[Any, Any]:
  """Reads the configuration of a run.

  Raises:
    config.InputError: if there is no such directory, it is not a run, or its configuration can't be read.
  """
  path = pathlib.Path(workdir)
  config_lib.check(path.is_dir(), f"workdir {workdir} does not exist")
  config_lib.check(has_run(workdir), f"workdir {workdir} is not a run: it has no {CONFIG_FILE}")
  try:
    values = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    made = None if values.get("agent") == GENERALIST else from_json(values, workdir)
  except (ValueError, TypeError, AttributeError) as error:
    raise config_lib.InputError(f"{path / CONFIG_FILE} cannot be read: {error}") from error
  if made is None:
    raise config_lib.InputError(
      f"workdir {workdir} holds a generalist: podracer generalist evaluate, or load_policy(..., task=...)"
    )
  return made


def to_play(experiment: ExperimentConfig[Any, Any]) -> ExperimentConfig[Any, Any]:
  """Returns an experiment on a machine that plays: one that learns from data has the default one."""
  if experiment.machine.plays:
    return experiment
  architecture = default_architecture(experiment.env)
  made = default_experiment(experiment.agent, architecture, experiment.env)
  return dataclasses.replace(experiment, architecture=architecture, machine=made.machine)


def write(experiment: ExperimentConfig[Any, Any]) -> None:
  """Writes config.json, whole or not at all."""
  run_files.write_json(pathlib.Path(experiment.workdir) / CONFIG_FILE, to_json(experiment))


def identity(experiment: ExperimentConfig[Any, Any]) -> dict[str, Any]:
  """Returns the JSON values of a run that stay the same wherever it goes on."""
  may_change = _may_change()
  return {name: value for name, value in to_json(experiment).items() if name not in may_change}


def _may_change() -> set[str]:
  return {f.name for f in dataclasses.fields(ExperimentConfig) if f.metadata == MAY_CHANGE}


def differences(
  saved: ExperimentConfig[Any, Any],
  wanted: ExperimentConfig[Any, Any],
  may_change: Iterable[str] | None = None,
) -> list[str]:
  """Returns `name: saved -> wanted` for each field that may not differ.

  Args:
    saved: one of them.
    wanted: the other.
    may_change: names of fields that may; those that may change when a run is resumed by default.
  """
  may_change = _may_change() if may_change is None else set(may_change)
  # A linear schedule runs over the whole run: another length is another schedule.
  if saved.config.learning_rate_schedule != "constant":
    may_change.discard("num_env_steps")
  old, new = _flatten(to_json(saved)), _flatten(to_json(wanted))
  return [
    f"{name}: {old.get(name)} -> {new.get(name)}"
    for name in sorted({**old, **new})
    if old.get(name) != new.get(name) and name not in may_change
  ]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = value
  return flat
