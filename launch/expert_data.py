"""What a run tells of itself in the expert data that it records."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from podracer import agent as agent_lib
from podracer import data, environments, types
from podracer.data import card, collector, layout, recorder, schema

from . import experiment

DIRECTORY = "data"


class TrainingRecorder:
  """Records whole episodes of some environments of a run while it trains."""

  def __init__(
    self,
    saved: experiment.ExperimentConfig[Any, Any],
    agent: agent_lib.Agent,
    factory: Any,
    environments: Sequence[int],
    updates: int,
  ):
    """Opens `<workdir>/data`.

    Args:
      saved: configuration of the run.
      agent: that is trained.
      factory: of the environment.
      environments: numbers of those that are recorded, those of all seeds counted on.
      updates: that the run has done.
    """
    self.out = pathlib.Path(saved.workdir) / DIRECTORY
    output, _ = agent_lib.output_shapes(agent, factory.spec, 1)
    task = schema.task_id(factory.spec.name)
    # What a resumed run plays again has the same name, and is there once.
    described = json.dumps(experiment.identity(saved), sort_keys=True)
    self._name = f"{saved.agent}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    self._task = task
    self._writer = data.Writer(
      self.out,
      task,
      schema.make_schema(factory.spec, output, factory.frame_stack),
      background=True,
    )
    tick = updates * saved.machine.unroll_length
    seen = self._history_lengths(tick) if saved.record_histories else {}

    def make_slot(number: int) -> recorder.Slot:
      history_id = f"{task}-{self._name}-{number:05d}" if saved.record_histories else ""
      return recorder.Slot(
        slot=number,
        seed=saved.seed + number // saved.machine.num_environments,
        number=seen.get(history_id, 0),
        history_id=history_id,
      )

    self._recorder = recorder.Recorder(
      self._writer,
      make_metadata(
        saved,
        factory,
        task=task,
        teacher_id=self._name,
        phase="train",
        control=getattr(saved.config, "control", "teacher"),
        policy_mode="sample",
        writer_id="w000",
      ),
      [make_slot(number) for number in environments],
      name=self._episode_name,
      frame_stack=factory.frame_stack,
      tick=tick,
    )

  @property
  def num_episodes(self) -> int:
    """Episodes recorded since the run was begun or resumed."""
    return self._recorder.num_episodes

  def _history_lengths(self, tick: int) -> dict[str, int]:
    """Returns how many episodes of each history had ended when the run was at `tick`."""
    found: dict[str, int] = {}
    for manifest in layout.read_manifests(layout.task_dir(self.out, self._task)):
      for row in manifest.episodes:
        if row["history_id"] and row["lifetime_step"] < tick:
          name, number = row["history_id"], row["history_index"] + 1
          found[name] = max(found.get(name, 0), number)
    return found

  def add(self, trajectory: types.Trajectory, first_slot: int, env_steps: int) -> None:
    """Records an unroll; see `report.Record`."""
    self._recorder.add(trajectory, first_slot, teacher_step=env_steps)

  def commit(self) -> None:
    """Makes what was recorded so far survive a kill."""
    self._writer.commit()

  def close(self) -> None:
    """Commits, and makes the collection one that readers open."""
    self._writer.close()
    if layout.manifest_paths(layout.task_dir(self.out, self._task)):
      card.finalise(self.out)

  def _episode_name(self, slot: recorder.Slot, found: collector.Collected) -> str:
    return f"{self._task}-{self._name}-train-{slot.slot:05d}-{found.first_tick:09d}"


def make_metadata(
  saved: experiment.ExperimentConfig[Any, Any], factory: Any, **values: Any
) -> dict[str, Any]:
  """Returns the metadata that tells of the environment and of who plays in it.

  Args:
    saved: configuration of the run.
    factory: of the environment.
    **values: the rest of what is known, see `episode.METADATA`.
  """
  backend, _, _ = saved.env.partition(":")
  options = experiment.parse_options(saved.env_options)
  return recorder.common_metadata(
    env_id=saved.env,
    env_backend=backend,
    env_version=environments.version(backend),
    env_kwargs=json.dumps(options, sort_keys=True),
    teacher_algo=saved.agent,
    frame_skip=factory.frames_per_step,
    frame_stack=factory.frame_stack,
    sticky_actions=float(options.get("repeat_action_probability", 0.0)),
    **values,
  )


def digest(params: Any) -> str:
  """Returns the sha256 of parameters, in hexadecimal."""
  hashed = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    hashed.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
    hashed.update(array.tobytes())
  return hashed.hexdigest()
