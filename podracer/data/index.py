"""The index of a task, `episodes.parquet`: one row an episode, and what is computed from it."""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from podracer import config

from . import episode as episode_lib
from . import layout

try:
  import pyarrow
  import pyarrow.parquet
except ImportError as error:
  raise config.InputError(
    "reading expert data needs pyarrow: pip install 'podracer-rl[data]'"
  ) from error

SHARD = "shard"
RECORD = "record"
_CACHED = ("shards", "place", "histories")


class Place(NamedTuple):
  """Where N episodes are, an array `[N]` of each.

  Attributes:
    shard: number of the shard among `Index.shards`.
    record: number of the first segment in it; the others follow.
    num_segments: of the episode.
    num_steps: stored, the final one included.
  """

  shard: np.ndarray
  record: np.ndarray
  num_segments: np.ndarray
  num_steps: np.ndarray


class History(NamedTuple):
  """The episodes of one history in order.

  Attributes:
    episodes: `[N]` their rows.
    ends: `[N]` steps stored of the history up to and with each episode.
  """

  episodes: np.ndarray
  ends: np.ndarray

  def strided(self, stride: int) -> list["History"]:
    """Returns a history of every stride-th episode for each of the first `stride` to begin with."""
    steps = np.diff(self.ends, prepend=0)
    return [
      History(self.episodes[first::stride], np.cumsum(steps[first::stride]))
      for first in range(min(stride, len(steps)))
    ]


class Index:
  """Rows of the index; what is computed from them is kept, and not pickled."""

  def __init__(self, rows: pyarrow.Table):
    """Takes rows as `read` returns them, or some of them."""
    self.rows = rows

  def __len__(self) -> int:
    return int(self.rows.num_rows)

  def __getstate__(self) -> dict[str, Any]:
    return {name: value for name, value in self.__dict__.items() if name not in _CACHED}

  def take(self, kept: np.ndarray) -> "Index":
    """Returns the index of some of the rows."""
    return self if len(kept) == len(self) else Index(self.rows.take(kept))

  def column(self, name: str) -> np.ndarray:
    """Returns `[N]` values; strings are objects. Raises InputError where there is no such column."""
    names = self.rows.column_names
    config.check(name in names, f"no column {name} of the index (there is: {', '.join(names)})")
    values = self.rows[name]
    if not pyarrow.types.is_dictionary(values.type):
      return values.to_numpy()
    encoded = values.combine_chunks()
    return np.array(encoded.dictionary.to_pylist(), object)[encoded.indices.to_numpy()]

  @functools.cached_property
  def shards(self) -> list[str]:
    """Names of the shards that `place` counts."""
    names: list[str] = self.rows[SHARD].combine_chunks().dictionary.to_pylist()
    return names

  @functools.cached_property
  def place(self) -> Place:
    """Where the episodes are."""
    return Place(
      shard=self.rows[SHARD].combine_chunks().indices.to_numpy(),
      record=self.column(RECORD),
      num_segments=self.column("num_segments"),
      num_steps=self.column("episode_length") + 1,
    )

  @functools.cached_property
  def histories(self) -> dict[str, History]:
    """The histories by their ids, in order of these; an episode without an id is in none."""
    encoded = self.rows["history_id"].combine_chunks()
    codes, ids = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    # A run that goes on has counted its episodes anew, but not its steps.
    order = np.lexsort((self.column("history_index"), self.column("lifetime_step"), codes))
    starts = np.searchsorted(codes[order], np.arange(len(ids) + 1))
    found = {}
    for k in sorted(range(len(ids)), key=ids.__getitem__):
      episodes = order[starts[k] : starts[k + 1]]
      if ids[k] and len(episodes):
        found[ids[k]] = History(episodes, np.cumsum(self.place.num_steps[episodes]))
    return found


def read(path: pathlib.Path) -> Index:
  """Reads `episodes.parquet`; raises InputError where it is not an index of this format version."""
  # Names that many episodes share are kept once: of a million episodes the index is then 0.2 GB.
  shared = [name for name, kind in episode_lib.METADATA.items() if kind is str]
  shared = [*(name for name in shared if name != "episode_id"), SHARD]
  try:
    rows = pyarrow.parquet.read_table(path, read_dictionary=shared)
  except (OSError, pyarrow.ArrowException) as error:
    reason = str(error).splitlines()[0]
    raise config.InputError(f"{path} cannot be read ({reason}); podracer data finalise") from error
  missing = sorted({*episode_lib.METADATA, SHARD, RECORD} - set(rows.column_names))
  config.check(not missing, f"{path} is no index of episodes: it lacks {', '.join(missing)}")
  config.check(rows.num_rows > 0, f"{path} has no episodes")
  versions = set(rows["format_version"].unique().to_pylist()) - {layout.VERSION}
  config.check(
    not versions,
    f"{path} has format version {', '.join(sorted(versions))}; this podracer reads {layout.VERSION}",
  )
  return Index(rows.unify_dictionaries().combine_chunks())
