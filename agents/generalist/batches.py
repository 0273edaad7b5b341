"""Batches of raw steps from recorded files, mixed from all tasks, through Grain.

A batch is a function of its number and the seed, so a run that goes on reads what it would have read.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from podracer.data import dataset as dataset_lib
from podracer.data import loaded, schema, sources

from . import config as config_lib
from . import layout as layout_lib

_MAX_BYTES_IN_MEMORY = 1e9
_READ_THREADS = 4
_PREFETCHED = 16

Steps = dict[str, np.ndarray]


class _InMemory(dataset_lib.Dataset):
  """A view whose episodes are kept once they were read: to read a window takes half a millisecond."""

  def __init__(self, view: dataset_lib.Dataset):
    super().__init__(view.folder, view.schema, view.index, view.scores)
    self.num_total, self.dropped, self.weights = view.num_total, view.dropped, view.weights
    self._read = functools.cache(
      lambda i, names, stack: super(_InMemory, self).episode(i, names, stack).steps
    )

  def window(
    self,
    i: int,
    start: int,
    length: int,
    names: Sequence[str] | None = None,
    frame_stack: int | None = None,
  ) -> Steps:
    """See `Dataset.window`."""
    steps = self._read(i, None if names is None else tuple(names), frame_stack)
    return {name: value[start : start + length] for name, value in steps.items()}


class Sampler:
  """Draws the sequences of one task: windows, some of them with another episode in front."""

  def __init__(
    self,
    dataset: dataset_lib.Dataset,
    layout: layout_lib.Layout,
    config: config_lib.GeneralistConfig,
  ):
    """Takes a view of the recorded episodes.

    Raises:
      InputError: for histories, where there is none.
    """
    # Frames are kept stacked.
    num_bytes = layout.frame_stack * loaded.num_bytes(dataset, layout.fields)
    self._dataset = _InMemory(dataset) if num_bytes < _MAX_BYTES_IN_MEMORY else dataset
    self._layout, self._config = layout, config
    self._stack = layout.frame_stack if layout.frame_stack > 1 else None
    self.length = layout.steps_per_sequence(config.context)
    given = (self._dataset, self.length, layout.fields, self._stack)
    self._source: Any = (
      sources.HistorySource(*given, stride=config.history_stride)
      if config.histories
      else sources.WindowSource(*given)
    )
    _, self._teacher = np.unique(dataset.column("teacher_id"), return_inverse=True)
    order = np.argsort(self._teacher, kind="stable")
    self._by_teacher = np.split(order, np.cumsum(np.bincount(self._teacher))[:-1])

  def __len__(self) -> int:
    """Windows there are, each of which is drawn once an epoch."""
    return len(self._source)

  def draw(self, index: Any, rng: np.random.Generator) -> Steps:
    """Returns a sequence.

    Reed et al. (2022), section 2.2: 25 % of the sequences have in front steps of another episode of the
    same teacher and task, half of them its end, half drawn uniformly. They take half of the sequence at
    most here.

    Args:
      index: of a window.
      rng: of the prompt.

    Returns:
      name of a field -> `[S, *shape]`, and `mask`, False where the sequence is filled up.
    """
    if self._config.histories:
      return with_arrived_reward(self._source[index])
    episode, start, length, _ = (int(x[0]) for x in self._source.places(np.array([index])))
    window = self._window(episode, start, length)
    if rng.random() < self._config.prompt_fraction:
      prompt = self._prompt(episode, rng)
      window = {name: np.concatenate([prompt[name], window[name]]) for name in window}
    return sources.pad({n: value[: self.length] for n, value in window.items()}, self.length)

  def end_of(self, episode: int) -> Steps:
    """Returns the last steps of an episode, as many as a prompt has at most."""
    num_steps = int(self._dataset.stored_steps()[episode])
    size = max(1, self.length // 2)
    return self._window(episode, max(0, num_steps - size), size)

  def _prompt(self, episode: int, rng: np.random.Generator) -> Steps:
    """Returns steps of another episode of the same teacher; none where that has no other."""
    candidates = self._by_teacher[self._teacher[episode]]
    candidates = candidates[candidates != episode]
    if not len(candidates):
      return {name: value[:0] for name, value in self._window(episode, 0, 1).items()}
    other = int(rng.choice(candidates))
    if rng.random() < 0.5:
      return self.end_of(other)
    size = max(1, self.length // 2)
    num_starts = max(1, int(self._dataset.stored_steps()[other]) - size + 1)
    return self._window(other, int(rng.integers(num_starts)), size)

  def _window(self, episode: int, start: int, length: int) -> Steps:
    return self._dataset.window(episode, start, length, self._layout.fields, self._stack)


def with_arrived_reward(steps: Steps) -> Steps:
  """Returns steps whose reward is the one that arrived with the observation, as an agent sees it.

  A recorded step has the reward that followed its action. That before a window is not known, and 0.
  """
  reward = steps[schema.REWARD]
  return {**steps, schema.REWARD: np.concatenate([np.zeros_like(reward[:1]), reward[:-1]])}


class _Mixed:
  """Batches by their numbers: task -> name of a field -> `[B_task, S_task, ...]`."""

  def __init__(self, by_task: Mapping[str, Any], num_batches: int):
    self._by_task, self._num_batches = by_task, num_batches

  def __len__(self) -> int:
    return self._num_batches

  def __getitem__(self, index: int) -> dict[str, Steps]:
    return {task: batches[index] for task, batches in self._by_task.items()}


def batches(
  samplers: Mapping[str, Sampler], rows: int, seed: int, num_batches: int, start: int = 0
) -> Iterator[dict[str, Steps]]:
  """Yields batches, each with the same share of every task.

  Args:
    samplers: of the tasks.
    rows: of each task.
    seed: of the order of the windows, another in every epoch, and of the prompts.
    num_batches: where they end.
    start: number of the first batch.

  Yields:
    task -> name of a field -> `[rows, S_task, *shape]`.
  """
  by_task = {}
  for k, (task, sampler) in enumerate(sorted(samplers.items())):
    seed_of_task = int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
    indices = grain.MapDataset.range(len(sampler)).seed(seed_of_task).shuffle().repeat()
    by_task[task] = indices.random_map(sampler.draw).batch(rows)
  options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCHED)
  numbered = grain.MapDataset.source(_Mixed(by_task, num_batches))
  yield from numbered[start:].to_iter_dataset(options)


def num_steps(batch: Mapping[str, Mapping[str, np.ndarray]]) -> int:
  """Returns the recorded steps of a batch that have an action."""
  return sum(int(np.sum(steps[sources.MASK] & ~steps[schema.IS_LAST])) for steps in batch.values())
