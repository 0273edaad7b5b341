"""`minari`: a data set a task, `<out>/<task>-v0`, which `minari.load_dataset` reads.

MINARI_DATASETS_PATH is `<out>`. The folder and its metadata are Minari's own. The episodes are written
here, in the layout of its HDF5 storage, for Minari opens the file anew for each and does not compress.

Pictures stay arrays: Minari's JPEG is lossy. A bool becomes a byte, as for Gymnasium's spaces and
TorchRL. Spaces are those of what was recorded: an integer is Discrete up to the largest seen, and boxes
have the bounds of their dtype.
"""

import copy
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np

from podracer.data import dataset as dataset_lib
from podracer.data import episode as episode_lib
from podracer.data import schema as schema_lib
from podracer.data import scores as scores_lib

from . import Counts, _hdf5

_STEP_TYPE = (schema_lib.IS_FIRST, schema_lib.IS_LAST, schema_lib.IS_TERMINAL)


def write(datasets: Iterable[dataset_lib.Dataset], folder: pathlib.Path) -> dict[str, Counts]:
  """Writes all tasks; see `export.export`."""
  return {d.task: _write_task(d, folder / f"{d.task}-v0") for d in datasets}


def _write_task(dataset: dataset_lib.Dataset, folder: pathlib.Path) -> Counts:
  from minari.dataset.minari_storage import MinariStorage

  data = folder / "data"
  data.mkdir(parents=True)
  largest: dict[str, int] = {}
  counts = Counts()
  metadata: dict[str, Any] = {}
  with _hdf5.create(data / "episodes") as (file, check):
    for episode in dataset.episodes():
      _write_episode(file, counts.episodes, episode, dataset.schema)
      check()
      counts = Counts(counts.episodes + 1, counts.steps + episode.num_steps - 1)
      metadata = episode.metadata
      for name, value in episode.steps.items():
        if value.ndim == 1 and value.dtype.kind in "iu":
          largest[name] = max(largest.get(name, 0), int(value.max()))
  observation_space, action_space = _spaces(dataset.schema, largest)
  storage = MinariStorage.new(
    data,
    observation_space=observation_space,
    action_space=action_space,
    env_spec=_env_spec(metadata),
    jpeg_encoding=False,
  )
  # In place of the empty file that `new` has made.
  (data / "episodes").replace(data / "main_data.hdf5")
  about = _about(dataset, metadata)
  storage.update_metadata({**about, "total_episodes": counts.episodes, "total_steps": counts.steps})
  storage.update_metadata({"dataset_size": float(storage.get_size())})
  return counts


def _write_episode(
  file: h5py.File, index: int, episode: episode_lib.Episode, schema: schema_lib.Schema
) -> None:
  """Writes T transitions: T+1 observations and infos, and T of all else."""
  steps = episode.steps
  group = file.create_group(f"episode_{index}")
  # One attribute for all metadata: from nine on, HDF5 takes some kilobytes for those of a group.
  metadata = json.dumps(episode.metadata)
  seed, length = episode.metadata["seed"], episode.num_steps - 1
  group.attrs.update({"id": index, "seed": seed, "total_steps": length, "metadata": metadata})
  for field in schema.fields:
    value = steps[field.name]
    if value.dtype == bool:
      value = value.astype(np.uint8)
    root, *keys = field.name.split("/")
    if root == schema_lib.OBSERVATION:
      _hdf5.write_array(group, "/".join(["observations", *keys]), value)
    elif root == schema_lib.ACTION:
      _hdf5.write_array(group, "actions", value[:-1])
    elif root == schema_lib.REWARD:
      _hdf5.write_array(group, "rewards", value[:-1])
    elif root not in _STEP_TYPE:
      # TorchRL stacks them with arrays that have a second axis.
      info = value[:, None] if value.ndim == 1 else value
      _hdf5.write_array(group, f"infos/{field.name}", info)
  ends = steps[schema_lib.IS_LAST][1:]
  is_terminal = steps[schema_lib.IS_TERMINAL][1:]
  _hdf5.write_array(group, "terminations", ends & is_terminal)
  _hdf5.write_array(group, "truncations", ends & ~is_terminal)


def _spaces(schema: schema_lib.Schema, largest: dict[str, int]) -> tuple[Any, Any]:
  """Returns the spaces of the observations and of the actions.

  Args:
    schema: of the task.
    largest: name of a scalar integer -> the largest that was seen.
  """
  from gymnasium import spaces

  num_actions = max(
    (f.shape[-1] for f in schema.fields if f.name in _PER_ACTION and f.shape), default=1
  )

  def space(field: schema_lib.Field) -> Any:
    dtype = np.dtype(field.dtype)
    if dtype.kind in "iu" and not field.shape:
      seen = largest.get(field.name, 0) + 1
      return spaces.Discrete(max(seen, num_actions) if field.name == schema_lib.ACTION else seen)
    if dtype.kind == "f":
      return spaces.Box(-np.inf, np.inf, field.shape, dtype.type)
    if dtype.kind == "b":
      return spaces.Box(0, 1, field.shape, np.uint8)
    info = np.iinfo(dtype)
    return spaces.Box(info.min, info.max, field.shape, dtype.type)

  tree: dict[str, Any] = {}
  for field in schema.fields:
    *parents, name = field.name.split("/")
    folder = tree
    for parent in parents:
      folder = folder.setdefault(parent, {})
    folder[name] = space(field)

  def nested(node: Any) -> Any:
    is_dict = isinstance(node, dict)
    return spaces.Dict({key: nested(value) for key, value in node.items()}) if is_dict else node

  return nested(tree[schema_lib.OBSERVATION]), tree[schema_lib.ACTION]


_PER_ACTION = (schema_lib.POLICY_LOGITS, schema_lib.SEARCH_VISITS)


def _env_spec(metadata: dict[str, Any]) -> Any:
  """Returns the registered environment by which Minari's readers make it anew, or None."""
  import gymnasium

  name = metadata["env_id"].removeprefix("gymnasium:")
  if metadata["env_backend"] != "gymnasium" or name not in gymnasium.registry:
    return None
  spec = copy.deepcopy(gymnasium.spec(name))
  spec.kwargs.update(json.loads(metadata["env_kwargs"] or "{}"))
  return spec


def _about(dataset: dataset_lib.Dataset, metadata: dict[str, Any]) -> dict[str, Any]:
  import minari

  about: dict[str, Any] = {
    "dataset_id": f"{dataset.task}-v0",
    "minari_version": minari.__version__,
    "algorithm_name": metadata["teacher_algo"],
    "description": f"Episodes of {dataset.task}, recorded by podracer.",
  }
  for key, who in (("ref_min_score", scores_lib.RANDOM), ("ref_max_score", scores_lib.EXPERT)):
    if who in dataset.scores:
      about[key] = float(dataset.scores[who]["mean"])
      about["num_episodes_average_score"] = int(dataset.scores[who]["n"])
  return about
