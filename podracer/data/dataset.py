"""Reading of expert data: a collection, its tasks, and views of the episodes of one.

A dataset is rows of `episodes.parquet`. Filtering one gives another; no shard is opened before steps
are asked for, and of a long episode only the segments that hold them are read.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from podracer import config

from . import episode as episode_lib
from . import example, filters, frames, layout, reader
from . import index as index_lib
from . import schema as schema_lib


class Dropped(NamedTuple):
  """What a filter did: its text, and how many episodes it kept and dropped."""

  filter: str
  kept: int
  dropped: int


class Dataset:
  """A view of the recorded episodes of one task, N of them.

  Attributes:
    folder: its directory.
    task: its name.
    schema: fields of a step.
    index: of the episodes.
    scores: `random`, `expert`, `human`, those that are known -> `mean`, `n`, `seeds`.
    num_total: episodes before any filter.
    dropped: what the filters did, in order.
    weights: `[N]` how likely a step of each episode is to be sampled, or None where all are alike.
  """

  def __init__(
    self, folder: pathlib.Path, schema: schema_lib.Schema, index: index_lib.Index, scores: Any
  ):
    """Makes a view of all episodes of an index; `open` does, and then `filter`."""
    self.folder = folder
    self.task = folder.parent.name
    self.schema = schema
    self.index = index
    self.scores: dict[str, Any] = scores
    self.num_total = len(index)
    self.dropped: list[Dropped] = []
    self.weights: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.index)

  def __repr__(self) -> str:
    """Two views of the same episodes by the same filters say the same."""
    names = ", ".join(dropped.filter for dropped in self.dropped)
    return (
      f"Dataset({self.task}, {len(self)} of {self.num_total} episodes, filters=[{names}],"
      f" digest={self.digest()})"
    )

  def digest(self) -> str:
    """Returns what is the same for views of the same episodes, in the same order, alike weighted."""
    digest = hashlib.sha256(" ".join([self.task, *self.index.shards]).encode())
    weights = () if self.weights is None else (self.weights,)
    for array in (*self.index.place, *weights):
      digest.update(array.tobytes())
    return digest.hexdigest()[:16]

  @property
  def rows(self) -> Any:
    """`[N]` rows of the index, a pyarrow.Table: metadata of the episodes, `shard` and `record`."""
    return self.index.rows

  @property
  def num_steps(self) -> int:
    """Transitions of all episodes; of each is stored one step more, with the final observation."""
    return int(self.column("episode_length").sum())

  def column(self, name: str) -> np.ndarray:
    """Returns `[N]` values of `rows`. Raises InputError where there is no such column."""
    return self.index.column(name)

  def stored_steps(self) -> np.ndarray:
    """Returns `[N]` steps stored of each episode, T+1."""
    return self.index.place.num_steps

  def filter(self, wanted: str | Callable[..., Any], **options: Any) -> "Dataset":
    """Returns the view of the episodes that a filter keeps.

    Args:
      wanted: a name of `filters.FILTERS`, or a function of this dataset and the options that returns
        `[N]` bool.
      **options: of the filter, such as `fraction=0.1` of `top_fraction`.

    Raises:
      InputError: for an unknown name or option, a score that is missing, or if no episode is left.
    """
    choice = filters.choose(self, wanted, options)
    kept = np.flatnonzero(choice.mask)
    weights = self.weights if choice.weights is None else choice.weights
    view = Dataset(self.folder, self.schema, self.index.take(kept), self.scores)
    view.num_total = self.num_total
    view.dropped = [*self.dropped, Dropped(choice.name, len(kept), len(self) - len(kept))]
    view.weights = None if weights is None else weights[kept]
    return view

  def episode(
    self, i: int, names: Sequence[str] | None = None, frame_stack: int | None = None
  ) -> episode_lib.Episode:
    """Returns a whole episode of T+1 steps; its arrays may be read-only.

    Args:
      i: in [0, N).
      names: fields wanted; all by default.
      frame_stack: see `window`.
    """
    episode = episode_lib.join(self._segments(i, 0, None, names))
    if frame_stack is None:
      return episode
    return episode._replace(steps=self._stack(i, episode.steps, frame_stack))

  def episodes(
    self, names: Sequence[str] | None = None, frame_stack: int | None = None
  ) -> Iterator[episode_lib.Episode]:
    """Yields all episodes in order; see `episode`."""
    for i in range(len(self)):
      yield self.episode(i, names, frame_stack)

  def window(
    self,
    i: int,
    start: int,
    length: int,
    names: Sequence[str] | None = None,
    frame_stack: int | None = None,
  ) -> dict[str, np.ndarray]:
    """Returns consecutive steps of an episode, of which only the segments needed are read.

    Args:
      i: the episode, in [0, N).
      start: first step, in [0, T].
      length: steps wanted; fewer come at the end of the episode, as of a slice.
      names: fields wanted; all by default.
      frame_stack: frames to stack along the first axis of the observation, oldest first; before the
        first of an episode that one is repeated, as envpool's Atari does. `[H, W]` becomes
        `[frame_stack, H, W]`, and `[C, H, W]` that had not been stacked `[frame_stack * C, H, W]`.

    Returns:
      name of a field -> `[length, *shape]`.

    Raises:
      InputError: there is no such step or field, or a file is not as it was recorded.
    """
    self._check_episode(i)
    num_steps = int(self.index.place.num_steps[i])
    config.check(0 <= start < num_steps, f"no step {start} in an episode of {num_steps} steps")
    config.check_positive(length=length)
    stop = min(start + length, num_steps)
    lead = min(start, (frame_stack or 1) - 1)
    size, last = episode_lib.SEGMENT_STEPS, int(self.index.place.num_segments[i]) - 1
    # The last segment also has the final step, and so may be longer than the others.
    first_segment, last_segment = (min(t // size, last) for t in (start - lead, stop - 1))
    segments = self._segments(i, first_segment, last_segment + 1, names)
    begin = start - lead - first_segment * size
    steps = _cut(segments, begin, begin + lead + stop - start)
    if frame_stack is None:
      return steps
    steps = self._stack(i, steps, frame_stack)
    return {name: value[lead:] for name, value in steps.items()}

  def histories(self) -> list[str]:
    """Returns the ids of the learning histories, sorted."""
    return list(self.index.histories)

  def history(self, history_id: str) -> index_lib.History:
    """Returns which episodes of a history there are; those a filter has dropped are left out."""
    found = self.index.histories.get(history_id)
    if found is None:
      number = len(self.index.histories)
      raise config.InputError(f"no history {history_id} among the {number} of {self.task}")
    return found

  def history_window(
    self,
    history: str | index_lib.History,
    start: int,
    length: int,
    names: Sequence[str] | None = None,
    frame_stack: int | None = None,
  ) -> dict[str, np.ndarray]:
    """Returns consecutive steps of a history across its episodes; `is_first` marks the borders.

    Args:
      history: one of `histories()`, or a part of one (`History.strided`).
      start: first step, in [0, `history(history).ends[-1]`): T+1 of an episode count.
      length: steps wanted; fewer come at the end of the history.
      names: fields wanted; all by default.
      frame_stack: see `window`; a stack does not reach over the border of an episode.

    Returns:
      name of a field -> `[length, *shape]`.
    """
    episodes, ends = self.history(history) if isinstance(history, str) else history
    total = int(ends[-1])
    config.check(0 <= start < total, f"no step {start} in a history of {total} steps")
    config.check_positive(length=length)
    stop = min(start + length, total)
    parts = []
    for k in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
      if start == stop:
        break
      i, end = int(episodes[k]), int(ends[k])
      offset = start - end + int(self.index.place.num_steps[i])
      parts.append(self.window(i, offset, min(stop, end) - start, names, frame_stack))
      start = min(stop, end)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def check_names(self, names: Sequence[str]) -> None:
    """Raises InputError unless all of `names` are fields of a step."""
    valid = self.schema.names()
    unknown = [name for name in names if name not in valid]
    if unknown:
      raise config.InputError(
        f"no field {', '.join(unknown)} of a step (there is: {', '.join(valid)})"
      )

  @functools.cached_property
  def _shards(self) -> list[pathlib.Path]:
    return [self.folder / layout.SHARDS / name for name in self.index.shards]

  def _check_episode(self, i: int) -> None:
    config.check(0 <= i < len(self), f"no episode {i} among the {len(self)} of {self.task}")

  def _segments(
    self, i: int, first: int, end: int | None, names: Sequence[str] | None
  ) -> list[episode_lib.Episode]:
    """Reads segments [first, end) of an episode and makes sure that they are its own."""
    self._check_episode(i)
    self.check_names(names or ())
    place = self.index.place
    shard = self._shards[place.shard[i]]
    numbers = range(first, int(place.num_segments[i]) if end is None else end)
    records = reader.READERS.read(shard, [int(place.record[i]) + number for number in numbers])
    segments = [example.decode(record, self.schema, names) for record in records]
    episode_id = self.rows["episode_id"][i].as_py()
    for number, segment in zip(numbers, segments, strict=True):
      found = segment.metadata
      config.check(
        found["episode_id"] == episode_id and found["segment_index"] == number,
        f"{shard} does not hold segment {number} of {episode_id}; see `podracer data verify`",
      )
    return segments

  def _stack(self, i: int, steps: dict[str, np.ndarray], frame_stack: int) -> dict[str, np.ndarray]:
    config.check_positive(frame_stack=frame_stack)
    name = schema_lib.OBSERVATION
    config.check(
      name in self.schema.names(), f"frame_stack: {self.task} has no single observation to stack"
    )
    if name not in steps:
      return steps
    # What the recorder took apart had an axis of frames by itself.
    was_stacked = self.rows["frame_stack"][i].as_py() > 1
    return {**steps, name: frames.stack(steps[name], frame_stack, new_axis=was_stacked)}


def _cut(segments: Sequence[episode_lib.Episode], begin: int, end: int) -> dict[str, np.ndarray]:
  """Returns steps [begin, end) of consecutive segments, copied: a slice would keep all in memory."""
  cut, offset = [], 0
  for segment in segments:
    low, high = max(0, begin - offset), end - offset
    cut.append({name: value[low:high] for name, value in segment.steps.items()})
    offset += len(next(iter(segment.steps.values()), ()))
  return {name: np.concatenate([part[name] for part in cut]) for name in cut[0]}


class Collection:
  """The tasks of a directory.

  Attributes:
    root: the directory.
    tasks: their names, sorted.
    scores: task -> who -> score.
  """

  def __init__(
    self, root: pathlib.Path, scores: dict[str, Any], datasets: Mapping[str, Callable[[], Dataset]]
  ):
    """Makes a collection of what reads the index of each task, called when it is asked for."""
    self.root = root
    self.tasks = tuple(sorted(datasets))
    self.scores = scores
    self._make = dict(datasets)
    self._made: dict[str, Dataset] = {}

  def __len__(self) -> int:
    return len(self.tasks)

  def __getitem__(self, task: str) -> Dataset:
    if task not in self._make:
      close = config.nearest(task, self.tasks)
      hint = f"; nearest: {close[0]}" if close else ""
      raise config.InputError(f"no task {task}{hint} (there is: {', '.join(self.tasks)})")
    if task not in self._made:
      self._made[task] = self._make[task]()
    return self._made[task]

  def __iter__(self) -> Iterator[Dataset]:
    return (self[task] for task in self.tasks)

  def filter(self, wanted: str | Callable[..., Any], **options: Any) -> "Collection":
    """Returns the collection with a filter on each of its tasks; see `Dataset.filter`."""
    views = {dataset.task: dataset.filter(wanted, **options) for dataset in self}
    return Collection(
      self.root,
      self.scores,
      {task: functools.partial(views.__getitem__, task) for task in views},
    )


def open(path: layout.Path) -> Collection:
  """Opens a finalised collection, or one task of it.

  Args:
    path: the root of a collection, or the directory of a task.

  Raises:
    InputError: there is none, it is of another format version, or is not finalised.
  """
  root, tasks = _find(pathlib.Path(path))
  for task in tasks:
    is_finalised = (layout.task_dir(root, task) / layout.EPISODES).is_file()
    config.check(is_finalised, f"{task} in {root} is not finalised: podracer data finalise {root}")
  scores = layout.read_json(root / layout.SCORES)
  return Collection(
    root,
    scores,
    {task: functools.partial(_open_task, root, task, scores.get(task, {})) for task in tasks},
  )


def _find(path: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
  """Returns the root of the collection that a path means, and the tasks of it."""
  config.check(path.is_dir(), f"{path} is not a directory")
  if (path / layout.SHARDS).is_dir():
    path = path.resolve().parent
  found = [
    folder.parent for depth in ("*", "*/*") for folder in path.glob(f"{depth}/{layout.SHARDS}")
  ]
  config.check(
    bool(found), f"{path} holds no expert data: no <task>/{layout.VERSION}/{layout.SHARDS} in it"
  )
  for folder in found:
    config.check(
      folder.name == layout.VERSION,
      f"{folder.parent} has format version {folder.name}; this podracer reads {layout.VERSION}",
    )
  if (path / layout.VERSION).is_dir():
    return path.resolve().parent, [path.resolve().name]
  return path, layout.tasks(path)


def _open_task(root: pathlib.Path, task: str, scores: dict[str, Any]) -> Dataset:
  folder = layout.task_dir(root, task)
  return Dataset(
    folder, layout.read_schema(folder), index_lib.read(folder / layout.EPISODES), scores
  )
