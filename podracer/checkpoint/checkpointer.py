"""Saving and restoring the steps of a directory."""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from podracer import config as config_lib
from podracer import group, report

from . import digests as digests_lib
from . import leaves as leaves_lib
from . import manifest as manifest_lib
from . import orbax_noise
from . import saving as saving_lib

MANIFEST = "manifest"
TEMPORARY = "*.orbax-checkpoint-tmp*"


class CheckpointError(report.RunError):
  """No checkpoint, or not the one asked for, can be restored; the message says why for each step."""


class Restored(NamedTuple):
  """What `Checkpointer.restore` found.

  Attributes:
    step: the step it was saved at.
    items: the items asked for.
    metadata: what the caller of `save` gave.
  """

  step: int
  items: dict[str, Any]
  metadata: dict[str, Any]


class Checkpointer:
  """Saves and restores the steps of one directory.

  Only one thread may save. Reading while another process saves is safe. With several processes all
  must call `save` and `restore` in the same order, on a file system they share.
  """

  def __init__(self, directory: str | os.PathLike[str], max_to_keep: int = 3):
    """Touches nothing: what a killed run left in the directory goes at the first save.

    Args:
      directory: made by the first `save`.
      max_to_keep: steps kept, at least 2, so that one which turns out bad has a predecessor.
    """
    config_lib.check(max_to_keep >= 2, f"max_to_keep must be at least 2, got {max_to_keep}")
    orbax_noise.quieten()
    saving_lib.wait_at_exit()
    self._directory = epath.Path(directory).absolute()
    self._max_to_keep = max_to_keep
    self._lock = saving_lib.WriterLock(self._directory)
    # Numbered by `save`, which all processes call: a Checkpointer may be made by one alone, to read.
    self._work: group.Work | None = None
    self._orbax = self._make_orbax()
    # Its restore without the barrier of a Checkpointer, at which a process would wait for one that could not
    # read: whether all could is agreed on here.
    self._reader = ocp.CompositeCheckpointHandler()
    self._saving: saving_lib.Saving | None = None
    self._last_failed = False
    self._good: set[int] = set()
    self._corrupt: set[int] = set()

  def steps(self) -> list[int]:
    """Returns the steps on disk in ascending order; they are verified only by `restore`."""
    if not self._directory.exists():
      return []
    entries = self._directory.iterdir()
    return sorted(int(entry.name) for entry in entries if entry.name.isdecimal() and entry.is_dir())

  def save(self, step: int, items: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Starts to save; waits for the save before, and for the arrays to be copied.

    An error of this save is logged by the next `save`, `poll` or `wait`; training goes on. A step
    that this object has already saved or restored is not written again.

    Args:
      step: number of the step, at least 0.
      items: pytrees of arrays, of any sharding, by name. Their buffers may be donated on return.
      metadata: JSON values.

    Raises:
      TypeError: if a leaf is no array, or the metadata no JSON.
    """
    self.wait()
    is_there = step in self._good and (self._directory / str(step)).exists()
    if not group.any_of(not is_there):
      return
    leaves = {name: leaves_lib.by_path(name, tree) for name, tree in items.items()}
    config_lib.check(MANIFEST not in leaves, f"no item may be called {MANIFEST}")
    data = {
      name: [leaves_lib.to_data(leaf) for leaf in item.values()] for name, item in leaves.items()
    }
    digests = digests_lib.compute_digests(data)
    descriptions = {
      name: [
        {**manifest_lib.describe(path, leaf), "digest": digest}
        for (path, leaf), digest in zip(item.items(), digests[name], strict=True)
      ]
      for name, item in leaves.items()
    }
    manifest = manifest_lib.sealed(
      {"step": step, "items": descriptions, "metadata": dict(metadata)}
    )
    numbered = {name: leaves_lib.numbered(leaves_lib.snapshot(item)) for name, item in data.items()}
    work = self._work = group.Work()
    try:
      self._prepare_directory()
      self._orbax.save(
        self._directory / str(step),
        args=ocp.args.Composite(
          # Orbax refuses a tree without leaves.
          **{name: ocp.args.StandardSave(item) for name, item in numbered.items() if item},
          **{MANIFEST: ocp.args.JsonSave(manifest)},
        ),
        force=True,
      )
    except Exception as error:
      work.fail()
      self._report_failure(step, error)
      return
    self._saving = saving_lib.Saving(
      step, self._orbax.wait_until_finished, self._remove_old, work.fail
    )

  def poll(self) -> bool:
    """Looks, without waiting, whether the last save has ended; see `wait`."""
    return self.wait(timeout_seconds=0)

  def wait(self, timeout_seconds: float | None = None) -> bool:
    """Waits until the last save has ended, and logs its error if it has failed.

    Args:
      timeout_seconds: None waits as long as it takes.

    Returns:
      True if nothing is being saved any more and the last save, if any, succeeded.
    """
    saving = self._saving
    if saving is not None:
      if not saving.has_ended(timeout_seconds):
        return False
      self._saving = None
      if saving.error is not None:
        self._report_failure(saving.step, saving.error)
      else:
        self._last_failed = False
        self._good.add(saving.step)
        self._corrupt.discard(saving.step)
    return not self._last_failed

  def close(self) -> None:
    """Waits for the last save and lets another process save here. May be called twice."""
    self.wait()
    self._orbax.close()
    self._lock.release()

  def restore(self, targets: Mapping[str, Any], step: int | None = None) -> Restored | None:
    """Restores the newest step whose leaves all verify; logs one warning for each it had to skip.

    Args:
      targets: pytrees of arrays or `jax.ShapeDtypeStruct` by name; any of the saved items. What is
        restored has their structure, shapes, dtypes and shardings. An array that is not committed to
        its device, or a struct without a sharding, gives one that is not either.
      step: this one and no other.

    Returns:
      The restored items, or None if there is no checkpoint at all.

    Raises:
      CheckpointError: if no step can be restored, or if `step` can't be; names each and its fault.
    """
    self.wait()
    steps = group.from_first(self.steps)
    if step is not None and step not in steps:
      there = ", ".join(map(str, steps)) or "none"
      raise CheckpointError(
        f"{self._directory} has no checkpoint of step {step}; there are: {there}"
      )
    faults: dict[int, _FaultError] = {}
    for candidate in reversed(steps if step is None else [step]):
      try:
        restored = self._restore_step(candidate, targets)
      except _FaultError as error:
        faults[candidate] = error
        continue
      for bad, fault in faults.items():
        logging.warning(
          "Checkpoint of step %d is skipped: it %s. Fell back to step %d.", bad, fault, candidate
        )
      self._good.add(candidate)
      self._corrupt.update(bad for bad, fault in faults.items() if fault.is_corrupt)
      return restored
    if not faults:
      return None
    lines = "".join(f"\n  step {bad} {fault}" for bad, fault in faults.items())
    raise CheckpointError(f"no checkpoint in {self._directory} can be restored:{lines}")

  def _restore_step(self, step: int, targets: Mapping[str, Any]) -> Restored:
    """Restores one step. Raises _FaultError."""
    path = self._directory / str(step)
    with _reading("manifest"):
      saved = self._reader.restore(
        path, args=ocp.args.Composite(**{MANIFEST: ocp.args.JsonRestore()})
      )
      manifest = manifest_lib.unsealed(saved[MANIFEST])
      if manifest["step"] != step:
        raise ValueError(f"it says it is of step {manifest['step']}")

    leaves = {name: leaves_lib.by_path(name, tree) for name, tree in targets.items()}
    for name, item in leaves.items():
      difference = manifest_lib.difference(name, item, manifest["items"])
      if difference:
        raise _FaultError(f"does not fit what is asked for: {difference}", is_corrupt=False)

    wanted = {
      name: leaves_lib.numbered([leaves_lib.data_target(x) for x in item.values()])
      for name, item in leaves.items()
    }
    restored: Mapping[str, Any] = {}
    if any(wanted.values()):
      with _reading("arrays"):
        restored = self._reader.restore(
          path,
          args=ocp.args.Composite(
            **{name: ocp.args.StandardRestore(item) for name, item in wanted.items() if item}
          ),
        )
    data = {
      # Orbax stores no array without elements.
      name: [
        restored[name][leaves_lib.number(i)]
        if math.prod(target.shape)
        else jnp.zeros(target.shape, target.dtype)
        for i, target in enumerate(map(leaves_lib.data_target, item.values()))
      ]
      for name, item in leaves.items()
    }
    digests = digests_lib.compute_digests(data)
    items = {}
    for name, item in leaves.items():
      descriptions = manifest["items"][name]
      bad = [
        f"{name}/{description['path']}"
        for description, digest in zip(descriptions, digests[name], strict=True)
        if description["digest"] != digest
      ]
      if group.any_of(bool(bad)):
        named = manifest_lib.first_of(bad) if bad else f"what another process reads of {name}"
        raise _FaultError(f"is corrupt: {named} differs from what was saved")
      finished = [
        leaves_lib.from_data(array, target, description["key_impl"])
        for array, target, description in zip(data[name], item.values(), descriptions, strict=True)
      ]
      items[name] = jax.tree.unflatten(jax.tree.structure(targets[name]), finished)
    return Restored(step=step, items=items, metadata=manifest["metadata"])

  def _make_orbax(self) -> ocp.AsyncCheckpointer:
    def wait_for_others(*, key: str, timeout_ms: int) -> None:
      # By itself a process would wait ten minutes for one that has failed.
      del key
      assert self._work is not None
      self._work.wait(timeout_ms / 1000)

    options = ocp.options.AsyncOptions(barrier_sync_fn=wait_for_others)
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

  def _prepare_directory(self) -> None:
    self._directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0 and not self._lock.acquire():
      logging.log_first_n(
        logging.WARNING, "Another process, too, saves checkpoints in %s.", 1, self._directory
      )
    self._remove_temporary()

  def _report_failure(self, step: int, error: BaseException) -> None:
    self._last_failed = True
    on_disk: set[int] = set()
    with contextlib.suppress(OSError):  # The disk may be gone altogether.
      on_disk = set(self.steps())
    newest = max(self._good & on_disk, default=max(on_disk - self._corrupt, default=None))
    logging.error(
      "Saving the checkpoint of step %d in %s failed: %s. Training goes on; the newest good "
      "checkpoint is %s.",
      step,
      self._directory,
      _first_line(error),
      "that of no step" if newest is None else f"that of step {newest}",
    )
    with contextlib.suppress(OSError):
      # A write still under way makes its directory anew.
      for _ in range(20):
        self._remove_temporary()
        time.sleep(0.05)
        if not any(self._directory.glob(TEMPORARY)):
          break
    # Orbax promises nothing about the state of the old one.
    self._orbax = self._make_orbax()

  def _remove_temporary(self) -> None:
    """Removes what failed and killed saves left, which else keeps a full disk full."""
    if jax.process_index() == 0 and self._lock.is_held and self._directory.exists():
      for path in self._directory.glob(TEMPORARY):
        _remove(path)

  def _remove_old(self, newest: int) -> None:
    """Removes corrupt steps, which a good one has now replaced, and those beyond `max_to_keep`."""
    if jax.process_index() != 0:
      return
    steps = self.steps()
    corrupt = [step for step in steps if step in self._corrupt and step != newest]
    sound = [step for step in steps if step not in corrupt and step != newest]
    for step in [*corrupt, *sound[: max(0, len(sound) + 1 - self._max_to_keep)]]:
      _remove(self._directory / str(step))


class _FaultError(Exception):
  """Why a step can't be restored; reads on after "step 3"."""

  def __init__(self, message: str, is_corrupt: bool = True):
    super().__init__(message)
    self.is_corrupt = is_corrupt


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
  """Turns whatever a damaged file makes Orbax raise into a fault, in every process."""
  fault: Exception | None = None
  try:
    yield
  except Exception as error:
    fault = error
  if group.any_of(fault is not None):
    reason = _first_line(fault) if fault is not None else "another process says so"
    raise _FaultError(f"is corrupt: its {what} can't be read ({reason})") from fault


def _first_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines() or [""]
  # TensorStore appends its whole specification.
  line = f"{type(error).__name__}: {lines[0].partition(' [tensorstore_spec')[0]}"
  # The cause stands at the end of a long one.
  return line if len(line) <= 300 else f"{line[:100]} ... {line[-190:]}"


def _remove(path: epath.Path) -> None:
  # What can't be removed now is tried again at the next save.
  with contextlib.suppress(OSError):
    path.rmtree()
