"""The files that tell readers what a task holds: two of TFDS, and the index of episodes."""

import pathlib
from collections.abc import Sequence
from typing import Any

from podracer import config

from . import episode as episode_lib
from . import example, layout
from . import schema as schema_lib

_FEATURES = "tensorflow_datasets.core.features"


def features_json(
  schema: schema_lib.Schema, encoding: example.Encoding = example.default_encoding
) -> dict[str, Any]:
  """Returns what `features.json` holds: a `Dataset` of steps, and the metadata of the episode."""
  steps: dict[str, Any] = {}
  for field in schema.fields:
    *parents, name = field.name.split("/")
    folder = steps
    for parent in parents:
      folder = folder.setdefault(parent, {})
    folder[name] = _tensor(field, encoding(field))
  metadata = {name: _metadata(kind) for name, kind in episode_lib.METADATA.items()}
  dataset = {
    "pythonClassName": f"{_FEATURES}.dataset_feature.Dataset",
    "sequence": {"feature": _dict(steps), "length": "-1"},
  }
  return _dict({**metadata, example.STEPS: dataset})


def dataset_info_json(
  task: str,
  manifests: Sequence[layout.Manifest],
  file_format: str = "array_record",
  records: str = f"segments of at most {episode_lib.SEGMENT_STEPS} steps",
) -> dict[str, Any]:
  """Returns what `dataset_info.json` holds: the name, and the number of records of each shard."""
  split = {
    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    "name": "train",
    "numBytes": str(sum(manifest.num_bytes for manifest in manifests)),
    "shardLengths": [str(manifest.num_records) for manifest in manifests],
  }
  return {
    "description": f"Episodes of {task}, in {records}.",
    "fileFormat": file_format,
    "moduleName": "podracer.data",
    "name": task,
    "splits": [split] if manifests else [],
    "version": layout.VERSION,
  }


def index_parquet(manifests: Sequence[layout.Manifest]) -> bytes:
  """Returns what `episodes.parquet` holds: the rows of all manifests, in their order."""
  pyarrow, parquet = _pyarrow()
  types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
  kinds = {**episode_lib.METADATA, "shard": str, "record": int}
  rows = [row for manifest in manifests for row in manifest.episodes]
  schema = pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])
  sink = pyarrow.BufferOutputStream()
  parquet.write_table(pyarrow.Table.from_pylist(rows, schema), sink)
  data: bytes = sink.getvalue().to_pybytes()
  return data


def is_index_of(path: pathlib.Path, manifests: Sequence[layout.Manifest]) -> bool:
  """Returns whether a file tells where the episodes of these manifests are."""
  pyarrow, parquet = _pyarrow()
  names = ["episode_id", "shard", "record"]
  try:
    # Its bytes may be those of another pyarrow.
    rows = parquet.read_table(path, columns=names).to_pylist()
  except (OSError, pyarrow.ArrowException):
    return False
  return bool(rows == [{n: row[n] for n in names} for m in manifests for row in m.episodes])


def indexed_shards(path: pathlib.Path) -> set[str]:
  """Returns the shards of which the index of a task tells; none where it can't be read."""
  pyarrow, parquet = _pyarrow()
  try:
    return set(parquet.read_table(path, columns=["shard"])["shard"].to_pylist())
  except (OSError, KeyError, pyarrow.ArrowException):
    return set()


def _pyarrow() -> tuple[Any, Any]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise config.InputError("expert data needs pyarrow: pip install 'podracer-rl[data]'") from error
  return pyarrow, parquet


def _dict(features: dict[str, Any]) -> dict[str, Any]:
  """Returns a FeaturesDict, and those below it."""
  return {
    "featuresDict": {
      "features": {
        name: value if "pythonClassName" in value else _dict(value)
        for name, value in features.items()
      }
    },
    "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
  }


def _tensor(field: schema_lib.Field, encoding: str) -> dict[str, Any]:
  shape = {"dimensions": [str(size) for size in field.shape]} if field.shape else {}
  if encoding == example.PNG:
    # TFDS has no pictures without channels.
    picture = {"dimensions": [str(size) for size in (*field.shape, 1)[:3]]}
    return {
      "pythonClassName": f"{_FEATURES}.image_feature.Image",
      "image": {"dtype": field.dtype, "encodingFormat": "png", "shape": picture},
    }
  is_bytes = encoding == example.RAW
  kind = "tensor_feature.Tensor" if is_bytes or shape else "scalar.Scalar"
  return {
    "pythonClassName": f"{_FEATURES}.{kind}",
    "tensor": {"dtype": field.dtype, "encoding": "bytes" if is_bytes else "none", "shape": shape},
  }


def _metadata(kind: type) -> dict[str, Any]:
  if kind is str:
    return {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}
  scalar = schema_lib.Field("", (), "float32" if kind is float else "int64")
  return _tensor(scalar, example.NUMBERS)
