"""`rlds-tfrecord`: whole episodes as RLDS in TFRecord, which `tfds.as_dataset` reads.

Unlike the recorded files, a record is an episode, pictures are PNG, and vectors are lists of numbers, so
that readers which don't decode by the features (those of Octo and OpenVLA) understand them too. A picture
`[H, W]` comes back `[H, W, 1]`, for TFDS has none without channels.
"""

import pathlib
from collections.abc import Iterable

from podracer.data import dataset as dataset_lib
from podracer.data import example, features, layout, png
from podracer.data import schema as schema_lib

from . import Counts, tfrecord

SHARD_BYTES = 200_000_000


def encoding(field: schema_lib.Field) -> str:
  """Returns how a field is stored."""
  if png.is_picture(field):
    return example.PNG
  # A list has 64-bit integers or 32-bit floats: too small for some, and too large for many bytes.
  if field.dtype in ("float64", "uint64") or (field.shape and field.dtype in ("uint8", "int8")):
    return example.RAW
  return example.NUMBERS


def write(datasets: Iterable[dataset_lib.Dataset], folder: pathlib.Path) -> dict[str, Counts]:
  """Writes all tasks; see `export.export`."""
  return {dataset.task: _write_task(dataset, folder) for dataset in datasets}


def _write_task(dataset: dataset_lib.Dataset, root: pathlib.Path) -> Counts:
  folder = layout.task_dir(root, dataset.task)
  folder.mkdir(parents=True)
  # Named by their numbers; the last part of a shard's name is how many there are.
  shards: list[layout.Manifest] = []
  counts = Counts()
  file = None
  for episode in dataset.episodes():
    record = example.encode(episode, dataset.schema, encoding)
    if file is None:
      shards.append(layout.Manifest(layout.VERSION, str(len(shards)), 0, 0, "", ()))
      file = (folder / shards[-1].shard).open("wb")
    file.write(tfrecord.frame(record))
    num_records, num_bytes = shards[-1].num_records + 1, shards[-1].num_bytes + len(record)
    shards[-1] = shards[-1]._replace(num_records=num_records, num_bytes=num_bytes)
    counts = Counts(counts.episodes + 1, counts.steps + episode.num_steps - 1)
    if num_bytes >= SHARD_BYTES:
      file.close()
      file = None
  if file is not None:
    file.close()
  for i, shard in enumerate(shards):
    name = f"{dataset.task}-train.tfrecord-{i:05d}-of-{len(shards):05d}"
    (folder / shard.shard).rename(folder / name)
  info = features.dataset_info_json(dataset.task, shards, "tfrecord", "whole episodes")
  layout.write_json(folder / layout.FEATURES, features.features_json(dataset.schema, encoding))
  layout.write_json(folder / layout.DATASET_INFO, info)
  return counts
