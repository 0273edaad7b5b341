"""Returns and lengths of episodes, kept while environments run, inside a compiled program or not."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from podracer import metrics as metrics_lib
from podracer import types


class EpisodeTracker(NamedTuple):
  """The episodes under way, and the sums over those that have ended since the last `drain`.

  Kept an environment, so that a step costs no reduction. Leaves `[B]`.
  """

  current_return: types.Array
  current_length: types.Array
  return_sum: types.Array
  length_sum: types.Array
  num_episodes: types.Array


class EpisodeTotals(NamedTuple):
  """Sums over ended episodes: scalars, or `[N]` of an environment of N tasks."""

  return_sum: types.Array
  length_sum: types.Array
  num_episodes: types.Array


def make_tracker(batch_size: int) -> EpisodeTracker:
  """Returns a tracker of `batch_size` environments at the beginning of their episodes."""
  return EpisodeTracker(
    current_return=jnp.zeros((batch_size,), jnp.float32),
    current_length=jnp.zeros((batch_size,), jnp.int32),
    return_sum=jnp.zeros((batch_size,), jnp.float32),
    length_sum=jnp.zeros((batch_size,), jnp.int32),
    num_episodes=jnp.zeros((batch_size,), jnp.int32),
  )


def advance(
  current_return: types.Array, current_length: types.Array, timestep: types.TimeStep
) -> tuple[types.Array, types.Array]:
  """Returns return and length `[B]` of the episodes on arriving at `timestep`; 0 where it is FIRST."""
  is_first = timestep.is_first()
  return (
    jnp.where(is_first, 0.0, current_return + timestep.reward),
    jnp.where(is_first, 0, current_length + 1),
  )


def track(tracker: EpisodeTracker, timestep: types.TimeStep) -> EpisodeTracker:
  """Takes in the time steps `[B]` arrived at; a FIRST one begins an episode anew."""
  is_last = timestep.is_last()
  episode_return, episode_length = advance(tracker.current_return, tracker.current_length, timestep)
  return EpisodeTracker(
    current_return=episode_return,
    current_length=episode_length,
    return_sum=tracker.return_sum + jnp.where(is_last, episode_return, 0.0),
    length_sum=tracker.length_sum + jnp.where(is_last, episode_length, 0),
    num_episodes=tracker.num_episodes + is_last.astype(jnp.int32),
  )


def drain(tracker: EpisodeTracker, num_tasks: int = 0) -> tuple[EpisodeTracker, EpisodeTotals]:
  """Returns the sums since the last drain, and the tracker with none; episodes under way go on.

  Args:
    tracker: `[B]`.
    num_tasks: N, of which each has B / N of the environments, one after the other, and sums of its own;
      0 sums over all.
  """

  def total(x: types.Array) -> types.Array:
    return jnp.sum(x.reshape(num_tasks, -1), axis=1) if num_tasks else jnp.sum(x)

  totals = EpisodeTotals(
    return_sum=total(tracker.return_sum),
    length_sum=total(tracker.length_sum),
    num_episodes=total(tracker.num_episodes),
  )
  tracker = tracker._replace(
    return_sum=jnp.zeros_like(tracker.return_sum),
    length_sum=jnp.zeros_like(tracker.length_sum),
    num_episodes=jnp.zeros_like(tracker.num_episodes),
  )
  return tracker, totals


class Counts:
  """How many episodes have ended since a run began, exactly, and how many of each task."""

  def __init__(self, task_names: Sequence[str] = (), counters: Mapping[str, Any] | None = None):
    """Begins at 0, or at the counters of a report; see `to_json`."""
    counters = counters or {}
    self.task_names = tuple(task_names)
    self._all = int(counters.get("episodes", 0))
    self._by_task = [int(x) for x in counters.get("task_episodes", [0] * len(self.task_names))]

  def add(self, num_episodes: Any) -> None:
    """Adds `EpisodeTotals.num_episodes`, on the host: `[...]`, or `[..., N]` of N tasks."""
    self._all += int(np.sum(num_episodes))
    if self.task_names:
      added = np.asarray(num_episodes).reshape((-1, len(self.task_names))).sum(axis=0)
      self._by_task = [x + int(y) for x, y in zip(self._by_task, added, strict=True)]

  def metrics(self) -> dict[str, int]:
    """Returns the counts by the names of metrics."""
    names = (metrics_lib.of_task(name, "episodes") for name in self.task_names)
    return {"episodes": self._all, **dict(zip(names, self._by_task, strict=True))}

  def to_json(self) -> dict[str, Any]:
    """Returns the counts as plain JSON values."""
    by_task = {"task_episodes": self._by_task} if self.task_names else {}
    return {"episodes": self._all, **by_task}


def mean_metrics(totals: EpisodeTotals, task_names: Sequence[str] = ()) -> dict[str, Any]:
  """Returns the means of return and length, NaN where no episode ended, by the names of metrics.

  Args:
    totals: NumPy arrays `[...]`, or `[..., N]` of N tasks.
    task_names: of the tasks, whose own means are beside those over all episodes; () of one task.
  """
  if not task_names:
    return _means(totals)
  metrics = _means(EpisodeTotals(*(np.sum(x, axis=-1) for x in totals)))
  for i, name in enumerate(task_names):
    own = _means(EpisodeTotals(*(x[..., i] for x in totals)))
    metrics |= {metrics_lib.of_task(name, metric): value for metric, value in own.items()}
  return metrics


def _means(totals: EpisodeTotals) -> dict[str, Any]:
  divisor = np.where(totals.num_episodes > 0, totals.num_episodes, np.nan)
  return {
    "episode_return_mean": totals.return_sum / divisor,
    "episode_length_mean": totals.length_sum / divisor,
  }
