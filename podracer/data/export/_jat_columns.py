"""The columns of `jat-parquet`: which field is in which, of what type, and how the card tells of them."""

import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from podracer.data import episode as episode_lib
from podracer.data import png
from podracer.data import schema as schema_lib

from . import Counts

IMAGE = "image"
CONTINUOUS = "continuous"
DISCRETE = "discrete"

# What `datasets` calls a picture.
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# Columns of one value an episode: those of an episode that is not cut into segments.
METADATA = {
  name: {str: "string", int: "int64", float: "float64"}[kind]
  for name, kind in episode_lib.METADATA.items()
  if name not in ("segment_index", "num_segments", "start_step", "writer_id", "format_version")
}
_LEFT_OUT = (schema_lib.IS_FIRST, schema_lib.IS_LAST, schema_lib.IS_TERMINAL)
_NAMES = {schema_lib.REWARD: "rewards", schema_lib.DISCOUNT: "discounts"}


class Column(NamedTuple):
  """A column with a list for each episode.

  Attributes:
    name: in the table.
    field: of the steps.
    kind: IMAGE, CONTINUOUS or DISCRETE.
    dtype: of the entries.
  """

  name: str
  field: schema_lib.Field
  kind: str
  dtype: str

  @property
  def final_name(self) -> str:
    """Name of the column of the last observation; "" where the field is none."""
    return f"final_{self.name}" if is_observation(self.field) else ""


def columns(schema: schema_lib.Schema) -> list[Column]:
  """Returns the columns that hold the fields of a schema."""
  observed = [_kind(field) for field in schema.fields if is_observation(field)]
  found = []
  for field in schema.fields:
    kind, name = _kind(field), _NAMES.get(field.name, field.name)
    if is_observation(field):
      name = f"{kind}_observations"
      if observed.count(kind) > 1:
        name += field.name.removeprefix(schema_lib.OBSERVATION).replace("/", "_")
    elif field.name == schema_lib.ACTION:
      name = f"{kind}_actions"
    if field.name not in _LEFT_OUT:
      found.append(Column(name, field, kind, _dtype(field)))
  return found


def is_observation(field: schema_lib.Field) -> bool:
  """Returns whether a field is the observation or a part of it."""
  return field.name.split("/")[0] == schema_lib.OBSERVATION


def _kind(field: schema_lib.Field) -> str:
  if is_observation(field) and png.is_picture(field):
    return IMAGE
  return CONTINUOUS if np.dtype(field.dtype).kind == "f" else DISCRETE


def _dtype(field: schema_lib.Field) -> str:
  # JAT's integers are of 64 bits. Bytes that are no actions are often many, and stay.
  is_integer = np.dtype(field.dtype).kind in "iu" and field.dtype != "uint64"
  is_small = field.dtype in ("int8", "uint8") and field.name != schema_lib.ACTION
  return "int64" if is_integer and not is_small else field.dtype


def arrow_schema(of: list[Column]) -> pa.Schema:
  """Returns the schema of the table, with what tells `datasets` which columns are pictures."""
  fields: dict[str, tuple[pa.DataType, dict[str, Any]]] = {}
  for column in of:
    kind, feature = PICTURE, {"_type": "Image"}
    if column.kind != IMAGE:
      kind, feature = pa.from_numpy_dtype(np.dtype(column.dtype)), _value(column.dtype)
      for _ in column.field.shape:
        kind, feature = pa.list_(kind), _sequence(feature)
    fields[column.name] = pa.list_(kind), _sequence(feature)
    if column.final_name:
      fields[column.final_name] = kind, feature
  for name, dtype in {"terminated": "bool", "truncated": "bool", **METADATA}.items():
    fields[name] = pa.type_for_alias(dtype), _value(dtype)
  features = {name: feature for name, (_, feature) in fields.items()}
  metadata = {"huggingface": json.dumps({"info": {"features": features}})}
  return pa.schema([(name, kind) for name, (kind, _) in fields.items()], metadata=metadata)


def _value(dtype: str) -> dict[str, Any]:
  return {"dtype": dtype, "_type": "Value"}


def _sequence(feature: dict[str, Any]) -> dict[str, Any]:
  # `datasets` 4 and later call it List, and read both names.
  return {"feature": feature, "_type": "Sequence"}


class Card(NamedTuple):
  """What the card tells of a task."""

  task: str
  columns: list[Column]
  counts: Counts


def readme(cards: list[Card]) -> str:
  """Returns the card; by its head `load_dataset` knows the tasks."""
  lines = ["---", "task_categories:", "- reinforcement-learning", "configs:"]
  for card in cards:
    lines += [f"- config_name: {card.task}", "  data_files:", "  - split: train"]
    lines += [f"    path: {card.task}/train-*"]
  lines += ["---", "", "# Expert data recorded with podracer", ""]
  lines += [
    "A row is an episode. Its lists have an entry for each transition: entry t of `rewards`"
  ]
  lines += [
    "follows entry t of the actions. Pictures are PNG of the frames, bit by bit, one by one:"
  ]
  lines += ["`frame_stack` tells how many the teacher saw at once.", ""]
  for card in cards:
    lines += [f"## {card.task}", ""]
    lines += [f"{card.counts.episodes:,} episodes, {card.counts.steps:,} transitions.", ""]
    lines += ["| column | field | shape | recorded as |", "|---|---|---|---|"]
    for column in card.columns:
      shape = list(column.field.shape) or "scalar"
      lines += [f"| `{column.name}` | {column.field.name} | {shape} | {column.field.dtype} |"]
    lines += [""]
  return "\n".join(lines)
