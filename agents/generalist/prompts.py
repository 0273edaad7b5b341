"""Demonstrations to act with: the ends of the best recorded episodes, kept in a file of their own."""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from podracer import config
from podracer.data import dataset as dataset_lib
from podracer.data import sources

from . import batches
from . import layout as layout_lib


class Prompts(NamedTuple):
  """P demonstrations of one task.

  Attributes:
    steps: name of a field -> `[P, S, *shape]`, filled up with zeros.
    lengths: `[P]` int32 steps of each.
  """

  steps: dict[str, np.ndarray]
  lengths: np.ndarray


def choose(dataset: dataset_lib.Dataset, sampler: batches.Sampler, number: int) -> Prompts | None:
  """Returns the ends of the `number` episodes of the highest returns, or None for no number.

  Args:
    dataset: the episodes.
    sampler: of the same episodes.
    number: of demonstrations; fewer where there are fewer episodes.
  """
  if not number:
    return None
  best = np.argsort(-dataset.column("episode_return"), kind="stable")[:number]
  ends = [sampler.end_of(int(i)) for i in best]
  lengths = np.array([len(next(iter(end.values()))) for end in ends], np.int32)
  size = int(lengths.max())
  padded = [sources.pad(end, size) for end in ends]
  steps = {name: np.stack([p[name] for p in padded]) for name in padded[0] if name != sources.MASK}
  return Prompts(steps, lengths)


def save(path: str | os.PathLike[str], prompts: Prompts) -> None:
  """Writes prompts into an npz file, by rename."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.stem}.partial.npz")
  # A key is a path in the archive.
  steps = {name.replace("/", "|"): value for name, value in prompts.steps.items()}
  np.savez_compressed(partial, lengths=prompts.lengths, **steps)  # type: ignore[arg-type]
  partial.replace(path)


def load(path: str | os.PathLike[str], layout: layout_lib.Layout) -> Prompts:
  """Reads what `save` wrote; raises InputError where it is not that of the layout."""
  try:
    with np.load(path, allow_pickle=False) as file:
      steps = {n.replace("|", "/"): file[n] for n in file.files if n != "lengths"}
      lengths = file["lengths"]
  except (OSError, ValueError, KeyError) as error:
    raise config.InputError(f"{path} cannot be read: {error}") from error
  config.check(set(steps) == set(layout.fields), f"{path} holds demonstrations of another task")
  return Prompts(steps, lengths)
