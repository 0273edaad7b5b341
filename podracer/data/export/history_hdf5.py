"""`history-hdf5`: learning histories, as in XLand-100B (Nikulin et al. 2024), a file a task.

A history is a group "0", "1", ... of arrays `[1, L, ...]` over its L transitions, without cuts between
episodes: `states`, `actions`, `rewards`, `dones`, where there are any `expert_actions`, and beside these
`truncations`. The leading axis counts the histories of a group in XLand's files, and is 1 here, for ours
differ in length. A state is one that was acted in: the last observation of an episode is left out, as
where the environment resets by itself. Row t of `rewards` and `dones` follows `actions` of row t.
"""

import pathlib
from collections.abc import Iterable

import h5py
import numpy as np

from podracer import config
from podracer.data import dataset as dataset_lib
from podracer.data import index
from podracer.data import schema as schema_lib

from . import Counts, _hdf5

TEACHER_ACTION = "teacher_action"


def write(datasets: Iterable[dataset_lib.Dataset], folder: pathlib.Path) -> dict[str, Counts]:
  """Writes all tasks that have histories; see `export.export`."""
  found = [dataset for dataset in datasets if dataset.histories()]
  config.check(bool(found), "history-hdf5 needs learning histories: no episode has a history_id")
  return {dataset.task: _write_task(dataset, folder) for dataset in found}


def _write_task(dataset: dataset_lib.Dataset, folder: pathlib.Path) -> Counts:
  counts = Counts()
  with _hdf5.create(folder / f"{dataset.task}.hdf5") as (file, check):
    # XLand's readers take the length of group 0 for that of all: the shortest comes first.
    ids = sorted(dataset.histories(), key=lambda i: (_length(dataset.history(i)), i))
    for number, history_id in enumerate(ids):
      history = dataset.history(history_id)
      group = file.create_group(str(number))
      _write_history(group, dataset, history)
      check()
      group.attrs.update({"task": dataset.task, "history_id": history_id})
      counts = Counts(counts.episodes + len(history.episodes), counts.steps + _length(history))
  return counts


def _length(history: index.History) -> int:
  """Returns the transitions of a history, of whose episodes each has a step more."""
  return int(history.ends[-1]) - len(history.episodes)


def _write_history(group: h5py.Group, dataset: dataset_lib.Dataset, history: index.History) -> None:
  length = _length(history)
  arrays: dict[str, h5py.Dataset] = {}
  for field in dataset.schema.fields:
    if name := _name(field.name):
      arrays[field.name] = _make_array(group, name, (length, *field.shape), field.dtype)
  dones = _make_array(group, "dones", (length,), "bool")
  truncations = _make_array(group, "truncations", (length,), "bool")
  start = 0
  for i in history.episodes:
    episode = dataset.episode(int(i))
    stop = start + episode.num_steps - 1
    for field_name, array in arrays.items():
      array[0, start:stop] = episode.steps[field_name][:-1]
    is_last = episode.steps[schema_lib.IS_LAST][1:]
    dones[0, start:stop] = is_last
    truncations[0, start:stop] = is_last & ~episode.steps[schema_lib.IS_TERMINAL][1:]
    start = stop
  # XLand's names, and what its readers look for.
  group.attrs["benchmark-id"] = episode.metadata["env_backend"]
  group.attrs["env-id"] = episode.metadata["env_id"]
  group.attrs["ruleset-id"] = dataset.task
  group.attrs["teacher_algo"] = episode.metadata["teacher_algo"]
  group.attrs["seed"] = episode.metadata["seed"]


def _name(field: str) -> str:
  """Returns the name of a field in a history, "" where it has none."""
  root, *keys = field.split("/")
  if root == schema_lib.OBSERVATION:
    return "/".join(["states", *keys])
  return {
    schema_lib.ACTION: "actions",
    schema_lib.REWARD: "rewards",
    TEACHER_ACTION: "expert_actions",
  }.get(field, "")


def _make_array(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
  chunks = (1, *_hdf5.chunk_shape(shape, np.dtype(dtype).itemsize))
  return group.create_dataset(
    name, (1, *shape), dtype, chunks=chunks, compression="gzip", compression_opts=1
  )
