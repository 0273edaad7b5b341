"""The tasks of a generalist's run: chosen from collections, and kept in its directory.

`tasks.json` and `prompts/<task>.npz` hold what acting needs, so that the data need not be there.
"""

import fnmatch
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from podracer import config as config_lib
from podracer import data
from podracer.agents import generalist
from podracer.agents.generalist import batches, prompts
from podracer.agents.generalist import layout as layout_lib
from podracer.data import filters as filters_lib

from . import run_files

TASKS_FILE = "tasks.json"
PROMPTS = "prompts"


class Task(NamedTuple):
  """What a run knows of a task.

  Attributes:
    layout: of its tokens.
    env: `suite:name` of its environment.
    variants: options of the environments it was recorded in.
    scores: who -> score, as `scores.json` has them.
    episodes: that are learnt from.
    digest: of these.
  """

  layout: layout_lib.Layout
  env: str
  variants: tuple[dict[str, Any], ...]
  scores: dict[str, Any]
  episodes: int
  digest: str

  def score(self, player: str) -> float | None:
    """Returns the mean return of `random` or `expert`, None where it is not known."""
    mean = (self.scores.get(player) or {}).get("mean")
    return None if mean is None else float(mean)

  def percent(self, value: float) -> float | None:
    """Returns a return in percent of the expert's, with 0 for a random policy."""
    random, expert = self.score("random"), self.score("expert")
    if random is None or expert is None or expert == random:
      return None
    return 100.0 * (value - random) / (expert - random)


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
  """Returns the names that one of the patterns matches, all of them where there is no pattern.

  Raises:
    config.InputError: for a pattern that matches none.
  """
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      close = config_lib.nearest(pattern, names)
      hint = f"; nearest: {close[0]}" if close else ""
      raise config_lib.InputError(f"no task {pattern}{hint} (there is: {', '.join(names)})")
  return [n for n in names if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]


def select(
  directories: Sequence[str], patterns: Sequence[str], filters: Sequence[str]
) -> dict[str, data.Dataset]:
  """Returns the recorded episodes to learn from, by task.

  Raises:
    config.InputError: there is no such data or task, a task is in two collections, or a filter leaves no
      episode.
  """
  where: dict[str, Any] = {}
  for directory in directories:
    collection = data.open(directory)
    for task in collection.tasks:
      config_lib.check(
        task not in where,
        f"{task} is in {where[task].root if task in where else ''} and in {directory}: make one "
        "collection of them by `podracer data merge`",
      )
      where[task] = collection
  return {
    task: filters_lib.apply(where[task][task], filters)
    for task in matching(sorted(where), patterns)
  }


def describe(dataset: data.Dataset, config: generalist.GeneralistConfig) -> Task:
  """Returns what a run is to know of a task.

  Raises:
    config.InputError: if it was recorded in several environments, or can't become tokens.
  """
  environments = sorted(set(dataset.column("env_id")))
  config_lib.check(
    len(environments) == 1, f"{dataset.task} was recorded in several: {', '.join(environments)}"
  )
  config_lib.check(
    not config.histories or bool(dataset.histories()),
    f"{dataset.task} has no learning histories: podracer train --record --record_histories",
  )
  return Task(
    layout=layout_lib.from_dataset(dataset, config),
    env=environments[0],
    variants=tuple(json.loads(text) for text in sorted(set(dataset.column("env_kwargs")))),
    scores=dict(dataset.scores),
    episodes=len(dataset),
    digest=dataset.digest(),
  )


def write(workdir: str, tasks: dict[str, Task]) -> None:
  """Writes tasks.json."""
  values = {
    name: {**task._asdict(), "layout": layout_lib.to_json(task.layout)}
    for name, task in tasks.items()
  }
  run_files.write_json(pathlib.Path(workdir) / TASKS_FILE, values)


def read(workdir: str) -> dict[str, Task]:
  """Reads tasks.json; raises InputError where it can't be read."""
  path = pathlib.Path(workdir) / TASKS_FILE
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
    return {
      name: Task(
        **{
          **task,
          "layout": layout_lib.from_json(task["layout"]),
          "variants": tuple(task["variants"]),
        }
      )
      for name, task in values.items()
    }
  except FileNotFoundError as error:
    raise config_lib.InputError(f"workdir {workdir} has no {TASKS_FILE} yet") from error
  except (ValueError, TypeError, KeyError) as error:
    raise config_lib.InputError(f"{path} cannot be read: {error}") from error


def check_same(workdir: str, tasks: dict[str, Task]) -> None:
  """Raises InputError where a run that goes on would learn from other episodes than before."""
  saved = read(workdir)
  before, now = ({n: t.digest for n, t in x.items()} for x in (saved, tasks))
  differing = sorted(n for n in {*before, *now} if before.get(n) != now.get(n))
  config_lib.check(
    not differing,
    f"the recorded episodes of {', '.join(differing)} are no more those that {workdir} learns from: take "
    "another --workdir, or --restart",
  )


def prompt_path(workdir: str, task: str) -> pathlib.Path:
  """Returns where the demonstrations of a task are."""
  return pathlib.Path(workdir) / PROMPTS / f"{task}.npz"


def write_prompts(
  workdir: str, dataset: data.Dataset, sampler: batches.Sampler, number: int
) -> None:
  """Writes the demonstrations to act with in a task."""
  chosen = prompts.choose(dataset, sampler, number)
  if chosen is not None:
    prompts.save(prompt_path(workdir, dataset.task), chosen)


def read_prompts(workdir: str, task: str, layout: layout_lib.Layout) -> prompts.Prompts | None:
  """Reads the demonstrations of a task, None where the run has none."""
  path = prompt_path(workdir, task)
  return prompts.load(path, layout) if path.exists() else None
