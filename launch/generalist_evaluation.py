"""Playing the tasks of a generalist, and the table of what it reached."""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.table

from podracer import agent as agent_lib
from podracer import checkpoint, environments, evaluation
from podracer import config as config_lib
from podracer.agents.generalist import agent as generalist_agent

from . import experiment, generalist_tasks, host, run_files

if TYPE_CHECKING:
  from . import generalist

MAX_VARIANTS = 8
"""Variants of a task that are played, where it was recorded in more."""


class Actor(NamedTuple):
  """What plays one task.

  Attributes:
    agent: of the task.
    params: its parameters, demonstrations read.
    environment: the environment.
  """

  agent: agent_lib.Agent
  params: generalist_agent.ActorParams
  environment: Any


class Played(NamedTuple):
  """Returns and lengths of whole episodes of one task.

  Attributes:
    returns: `[V, B, Q]` of V variants, B environments and Q successive episodes of each.
    lengths: `[V, B, Q]`.
    mode: greedy or sample.
  """

  returns: np.ndarray
  lengths: np.ndarray
  mode: str


def make_actor(
  saved: "generalist.TrainConfig",
  tasks: Mapping[str, generalist_tasks.Task],
  name: str,
  params: Any,
  *,
  variant: int | Mapping[str, Any] = 0,
  prompt: bool = True,
) -> Actor:
  """Returns what plays a task.

  Args:
    saved: configuration of the run.
    tasks: of the run.
    name: of the task.
    params: of the network.
    variant: which of the recorded environments, or the options of another.
    prompt: False acts without a demonstration.
  """
  config_lib.check(name in tasks, f"no task {name} (there is: {', '.join(sorted(tasks))})")
  task = tasks[name]
  options = task.variants[variant] if isinstance(variant, int) else variant
  environment = environments.make(task.env, **options)
  layouts = {n: t.layout for n, t in tasks.items()}
  shown = generalist_tasks.read_prompts(saved.workdir, name, task.layout) if prompt else None
  agent = generalist_agent.make_actor(saved.config, layouts, name, environment.spec, shown)
  read = jax.jit(
    lambda p: generalist_agent.with_prompts(saved.config, layouts, name, p, shown).prompts
  )
  return Actor(agent, generalist_agent.ActorParams(params, read(params)), environment)


def play(
  actors: Sequence[Actor],
  num_environments: int,
  num_episodes: int,
  key: Any,
  greedy: bool,
  should_stop: Callable[[], bool] = lambda: False,
) -> Played | None:
  """Plays as many episodes, one after the other, in each of B environments of every variant.

  Args:
    actors: of the V variants of a task.
    num_environments: of all variants together, B of each.
    num_episodes: of each environment.
    key: of environments and actions.
    greedy: False samples.
    should_stop: asked now and then; True ends it.

  Returns:
    What was played, or None where it was stopped.
  """
  size = -(-num_environments // len(actors))
  results = []
  for i, actor in enumerate(actors):
    evaluate = evaluation.make_evaluator(
      actor.agent,
      actor.environment,
      num_episodes=size * num_episodes,
      greedy=greedy,
      # As many environments as there are equal quotas.
      max_environments=size,
    )
    result = evaluate(actor.params, jax.random.fold_in(key, i), should_stop)
    if result is None:
      return None
    results.append(result)
  shape = (len(actors), -1, num_episodes)
  return Played(
    returns=np.concatenate([r.returns for r in results]).reshape(shape),
    lengths=np.concatenate([r.lengths for r in results]).reshape(shape),
    mode=results[0].mode,
  )


def some(variants: Sequence[Any]) -> list[int]:
  """Returns the numbers of at most MAX_VARIANTS variants, spread evenly."""
  number = min(len(variants), MAX_VARIANTS)
  return sorted({int(i) for i in np.linspace(0, len(variants) - 1, number)})


def summary(task: generalist_tasks.Task, played: Played) -> dict[str, Any]:
  """Returns what evaluation.json holds of a task."""
  result = evaluation.EvaluationResult(
    played.returns.reshape(-1), played.lengths.reshape(-1), played.mode
  )
  found = result.summary()
  found |= {"random": task.score("random"), "expert": task.score("expert")}
  found["percent_of_expert"] = task.percent(found["return_mean"])
  if played.returns.shape[-1] > 1:
    found["return_mean_by_episode"] = np.mean(played.returns, axis=(0, 1)).tolist()
  return found


def together(by_task: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
  """Returns what evaluation.json holds of all tasks: the mean over those whose scores are known."""
  percents = [found["percent_of_expert"] for found in by_task.values()]
  known = [percent for percent in percents if percent is not None]
  mean = float(np.mean(known)) if known else None
  return {"percent_of_expert_mean": mean, "tasks": dict(by_task)}


def make_table(by_task: Mapping[str, dict[str, Any]]) -> rich.table.Table:
  """Returns the table that a person reads."""
  table = rich.table.Table()
  for column in ("task", "episodes", "return", "random", "expert", "% of expert"):
    table.add_column(column, justify="left" if column == "task" else "right")
  for name, found in by_task.items():
    numbers = (found["return_mean"], found["random"], found["expert"])
    shown = ["-" if number is None else f"{number:,.2f}" for number in numbers]
    table.add_row(name, f"{found['episodes']:,}", *shown, _percent(found["percent_of_expert"]))
  mean = together(by_task)["percent_of_expert_mean"]
  if len(by_task) > 1:
    table.add_section()
    table.add_row("mean over tasks", "", "", "", "", _percent(mean))
  return table


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{value:.1f}"


class Loaded:
  """A run read back: its tasks and the newest valid parameters."""

  def __init__(self, saved: "generalist.TrainConfig"):
    """Reads a run.

    Raises:
      config.InputError: if it has no checkpoint yet.
      checkpoint.CheckpointError: if all its checkpoints are bad.
    """
    self.saved = saved
    self.tasks = generalist_tasks.read(saved.workdir)
    layouts = {name: task.layout for name, task in self.tasks.items()}
    agent = generalist_agent.make_agent(saved.config, layouts)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
      jax.eval_shape(agent.init, jax.random.key(0)),
    )
    checkpointer = checkpoint.Checkpointer(pathlib.Path(saved.workdir) / "checkpoints")
    restored = checkpointer.restore({"params": target})
    checkpointer.close()
    if restored is None:
      raise config_lib.InputError(f"workdir {saved.workdir} has no checkpoint yet")
    self.params = restored.items["params"]
    self.updates = int(restored.metadata["counters"]["updates"])
    self.env_steps = min(restored.metadata["counters"]["env_steps"])

  def actor(self, task: str, prompt: bool = True, variant: Any = 0) -> Actor:
    """See `make_actor`."""
    return make_actor(self.saved, self.tasks, task, self.params, variant=variant, prompt=prompt)


def main(wanted: "generalist.EvaluateConfig", saved: "generalist.TrainConfig") -> None:
  """Runs `podracer generalist evaluate`."""
  host.start_jax(1)
  loaded = Loaded(saved)
  chosen = [experiment.parse_options(tuple(text.split())) for text in wanted.env_options]
  greedy = wanted.mode == "greedy" or (wanted.mode == "auto" and not saved.config.histories)
  by_task = {}
  for name in generalist_tasks.matching(sorted(loaded.tasks), wanted.tasks):
    task = loaded.tasks[name]
    make = functools.partial(loaded.actor, name, wanted.prompt)
    actors = [make(variant) for variant in chosen or some(task.variants)]
    key = jax.random.key(wanted.seed)
    played = play(actors, wanted.episodes, max(1, wanted.in_context_episodes), key, greedy)
    assert played is not None  # Nothing asked it to stop.
    by_task[name] = summary(task, played)
    if chosen:
      by_task[name]["env_options"] = [json.dumps(options, sort_keys=True) for options in chosen]
      # [V, Q]: variant, number of the episode in the context.
      by_task[name]["return_mean_by_variant"] = np.mean(played.returns, axis=1).tolist()
  print(f"{saved.workdir} after {loaded.updates:,} updates")
  show(by_task)
  mode = "greedy" if greedy else "sample"
  run_files.write_evaluation(
    saved.workdir,
    loaded.env_steps,
    {"updates": loaded.updates, "mode": mode, **together(by_task)},
  )


def show(by_task: Mapping[str, dict[str, Any]]) -> None:
  """Prints the table, and below it the returns by variant and by the number of the episode in the context."""
  rich.console.Console(highlight=False).print(make_table(by_task))
  for name, found in by_task.items():
    means = found.get("return_mean_by_episode", ())
    if means:
      print(f"{name}, return by episode in context  {_numbered(means)}")
    variants = found.get("env_options", ())
    if len(variants) > 1:
      for options, of_variant in zip(variants, found["return_mean_by_variant"], strict=True):
        shown = _numbered(of_variant) if means else f"return {of_variant[0]:.2f}"
        print(f"{name} {options}  {shown}")


def _numbered(means: Sequence[float]) -> str:
  return "  ".join(f"{i + 1}: {mean:.2f}" for i, mean in enumerate(means))
