"""Reads an `rlds-tfrecord` export with TensorFlow, and compares it with what was recorded, bit by bit.

Needs TensorFlow and TensorFlow Datasets beside podracer's core:

  python benchmarks/tfrecord_check.py <collection> [--repeats 3]

Prints, for each task, the speed of `tfds.as_dataset` beside that of podracer's own decoder over the same
files, as steps a second, interleaved: median, and range in parentheses.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np
import tensorflow_datasets as tfds

from podracer.data import dataset as dataset_lib
from podracer.data import example, export
from podracer.data.export import rlds_tfrecord, tfrecord


def read_with_tfds(folder):
  for item in tfds.as_numpy(tfds.builder_from_directory(folder).as_dataset(split="train")):
    steps = list(item["steps"])
    yield item["episode_id"].decode(), lambda name, steps=steps: stack(steps, name)


def stack(steps, name):
  for key in name.split("/"):
    steps = [step[key] for step in steps]
  return np.stack(steps)


def read_with_podracer(folder, schema):
  for path in sorted(folder.glob("*.tfrecord-*")):
    for record in tfrecord.read(path):
      episode = example.decode(record, schema, encoding=rlds_tfrecord.encoding)
      yield episode.metadata["episode_id"], episode.steps.__getitem__


def check(dataset, found):
  by_id = {episode.metadata["episode_id"]: episode for episode in dataset.episodes()}
  num_episodes = 0
  for episode_id, get in found:
    for name, value in by_id[episode_id].steps.items():
      array = get(name).reshape(value.shape)
      assert array.dtype == value.dtype and array.tobytes() == value.tobytes(), (episode_id, name)
    num_episodes += 1
  assert num_episodes == len(by_id) == len(dataset)


def seconds(found):
  start = time.perf_counter()
  for _ in found:
    pass
  return time.perf_counter() - start


def speeds(num_steps, times):
  rates = [num_steps / t for t in times]
  return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("collection")
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  collection = dataset_lib.open(args.collection)
  with tempfile.TemporaryDirectory() as root:
    print(export.export("rlds-tfrecord", collection, pathlib.Path(root) / "out"))
    for dataset in collection:
      folder = pathlib.Path(root) / "out" / dataset.task / "1.0.0"
      check(dataset, read_with_tfds(folder))
      check(dataset, read_with_podracer(folder, dataset.schema))
      stock, own = [], []
      for _ in range(args.repeats):
        stock.append(seconds(read_with_tfds(folder)))
        own.append(seconds(read_with_podracer(folder, dataset.schema)))
      print(
        f"{dataset.task}: {len(dataset)} episodes identical; steps/s: as_dataset "
        f"{speeds(dataset.num_steps, stock)}, podracer {speeds(dataset.num_steps, own)}"
      )


if __name__ == "__main__":
  main()
