"""`jat-parquet`: one row an episode, as in JAT's data set (Gallouédec et al. 2024).

`<task>/train-IIIII-of-NNNNN.parquet`, and a card that names every task as a configuration. Columns have
JAT's names and hold T entries: `<kind>_observations`, `<kind>_actions`, `rewards`, where the kind is
`image` (PNG), `continuous` or `discrete`. Of a dict of observations, an entry that is the only one of
its kind has that name, others end in their key. Beside JAT's there are `final_<observations>`,
`terminated`, `truncated`, what the agent said, and the metadata.
"""

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from podracer.data import dataset as dataset_lib
from podracer.data import episode as episode_lib
from podracer.data import png
from podracer.data import schema as schema_lib

from . import Counts
from . import _jat_columns as jat

# The viewer of the Hugging Face hub reads row groups of at most 100 MB. A row is never cut.
ROW_GROUP_BYTES = 50_000_000
SHARD_BYTES = 500_000_000


def write(datasets: Iterable[dataset_lib.Dataset], folder: pathlib.Path) -> dict[str, Counts]:
  """Writes all tasks and the card; see `export.export`."""
  cards = [
    jat.Card(d.task, jat.columns(d.schema), _write_task(d, folder / d.task)) for d in datasets
  ]
  (folder / "README.md").write_text(jat.readme(cards), encoding="utf-8")
  return {card.task: card.counts for card in cards}


def _write_task(dataset: dataset_lib.Dataset, folder: pathlib.Path) -> Counts:
  folder.mkdir(parents=True)
  columns = jat.columns(dataset.schema)
  schema = jat.arrow_schema(columns)
  counts = Counts()
  # Named by their numbers; the last part of a shard's name is how many there are.
  paths: list[pathlib.Path] = []
  writer = None
  for rows in _row_groups(dataset.episodes(), columns, schema):
    if writer is None:
      paths.append(folder / str(len(paths)))
      writer = parquet.ParquetWriter(paths[-1], schema, compression="zstd")
    writer.write_table(rows, row_group_size=rows.num_rows)
    num_steps = sum(rows["episode_length"].to_pylist())
    counts = Counts(counts.episodes + rows.num_rows, counts.steps + num_steps)
    if paths[-1].stat().st_size >= SHARD_BYTES:
      writer.close()
      writer = None
  if writer is not None:
    writer.close()
  for i, path in enumerate(paths):
    path.rename(folder / f"train-{i:05d}-of-{len(paths):05d}.parquet")
  return counts


def _row_groups(
  episodes: Iterable[episode_lib.Episode], columns: list[jat.Column], schema: pa.Schema
) -> Iterator[pa.Table]:
  rows: list[pa.Table] = []
  num_bytes = 0
  for episode in episodes:
    row = _row(episode, columns, schema)
    if rows and num_bytes + row.nbytes > ROW_GROUP_BYTES:
      yield pa.concat_tables(rows)
      rows, num_bytes = [], 0
    rows.append(row)
    num_bytes += row.nbytes
  if rows:
    yield pa.concat_tables(rows)


def _row(episode: episode_lib.Episode, columns: list[jat.Column], schema: pa.Schema) -> pa.Table:
  """Returns an episode as a table of one row."""
  arrays: dict[str, pa.Array] = {}
  for column in columns:
    value = episode.steps[column.field.name]
    arrays[column.name] = _lists(_entries(value[:-1], column), 1, len(value) - 1)
    if column.final_name:
      arrays[column.final_name] = _entries(value[-1:], column)
  terminated = bool(episode.steps[schema_lib.IS_TERMINAL][-1])
  arrays["terminated"] = pa.array([terminated])
  arrays["truncated"] = pa.array([not terminated])
  for name in jat.METADATA:
    arrays[name] = pa.array([episode.metadata[name]], schema.field(name).type)
  return pa.table([arrays[name] for name in schema.names], schema=schema)


def _entries(value: np.ndarray, column: jat.Column) -> pa.Array:
  """Returns `[T, ...]` as an array of T entries."""
  if column.kind == jat.IMAGE:
    files = pa.array([png.encode(frame) for frame in value], pa.binary())
    paths = pa.nulls(len(files), pa.string())
    return pa.StructArray.from_arrays([files, paths], fields=list(jat.PICTURE))
  entries = pa.array(value.astype(column.dtype).reshape(-1))
  for axis in range(value.ndim - 1, 0, -1):
    entries = _lists(entries, int(np.prod(value.shape[:axis])), value.shape[axis])
  return entries


def _lists(values: pa.Array, num: int, size: int) -> pa.Array:
  """Returns `num` lists of `size` values each."""
  return pa.ListArray.from_arrays(pa.array(np.arange(num + 1) * size, pa.int32()), values)
