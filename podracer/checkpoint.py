"""Checkpoints by Orbax: asynchronous, atomic, and verified leaf by leaf when read.

Orbax alone restores a flipped bit without a word, offers an empty directory as the newest step, and
leaves a temporary directory behind whenever a save fails or is killed. So a digest of every leaf is
saved in the same atomic step, a restore falls back to the newest step that verifies, and what was
left behind is removed. A save that fails is reported and training goes on.

A step is a directory `<step>/` with one Orbax item for each saved item, in which the leaves are
numbered in the order of `jax.tree_util`, and the JSON item `manifest`: the path, shape, dtype and
digest of every leaf, the caller's metadata, and a hash of all that. Nothing is pickled.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import logging as standard_logging
import math
import os
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from podracer import config as config_lib
from podracer import group, report

try:
  import fcntl
except ImportError:  # Not on Windows; see _WriterLock.
  fcntl = None  # type: ignore[assignment]

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
    _quieten_orbax()
    _wait_at_exit()
    self._directory = epath.Path(directory).absolute()
    self._max_to_keep = max_to_keep
    self._lock = _WriterLock(self._directory)
    # Numbered by `save`, which all processes call: a Checkpointer may be made by one alone, to read.
    self._work: group.Work | None = None
    self._orbax = self._make_orbax()
    # Its restore without the barrier of a Checkpointer, at which a process would wait for one that could not
    # read: whether all could is agreed on here.
    self._reader = ocp.CompositeCheckpointHandler()
    self._saving: _Saving | None = None
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
    leaves = {name: _leaves_by_path(name, tree) for name, tree in items.items()}
    config_lib.check(MANIFEST not in leaves, f"no item may be called {MANIFEST}")
    data = {name: [_to_data(leaf) for leaf in item.values()] for name, item in leaves.items()}
    digests = compute_digests(data)
    descriptions = {
      name: [
        {**_describe(path, leaf), "digest": digest}
        for (path, leaf), digest in zip(item.items(), digests[name], strict=True)
      ]
      for name, item in leaves.items()
    }
    manifest = _sealed({"step": step, "items": descriptions, "metadata": dict(metadata)})
    numbered = {name: _numbered(_snapshot(item)) for name, item in data.items()}
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
    self._saving = _Saving(step, self._orbax.wait_until_finished, self._remove_old, work.fail)

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
      manifest = _unsealed(saved[MANIFEST])
      if manifest["step"] != step:
        raise ValueError(f"it says it is of step {manifest['step']}")

    leaves = {name: _leaves_by_path(name, tree) for name, tree in targets.items()}
    for name, item in leaves.items():
      difference = _difference(name, item, manifest["items"])
      if difference:
        raise _FaultError(f"does not fit what is asked for: {difference}", is_corrupt=False)

    wanted = {
      name: _numbered([_data_target(x) for x in item.values()]) for name, item in leaves.items()
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
        restored[name][_number(i)]
        if math.prod(target.shape)
        else jnp.zeros(target.shape, target.dtype)
        for i, target in enumerate(map(_data_target, item.values()))
      ]
      for name, item in leaves.items()
    }
    digests = compute_digests(data)
    items = {}
    for name, item in leaves.items():
      descriptions = manifest["items"][name]
      bad = [
        f"{name}/{description['path']}"
        for description, digest in zip(descriptions, digests[name], strict=True)
        if description["digest"] != digest
      ]
      if group.any_of(bool(bad)):
        named = _first_of(bad) if bad else f"what another process reads of {name}"
        raise _FaultError(f"is corrupt: {named} differs from what was saved")
      finished = [
        _from_data(array, target, description["key_impl"])
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


class _Saving:
  """A save under way: a thread waits for it, so that nobody else has to."""

  def __init__(
    self,
    step: int,
    wait: Callable[[], None],
    then: Callable[[int], None],
    fail: Callable[[], None],
  ):
    self.step = step
    self.error: BaseException | None = None
    self._wait = wait
    self._then = then
    self._fail = fail
    self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
    self._thread.start()
    _under_way.add(self)

  def has_ended(self, timeout_seconds: float | None) -> bool:
    self._thread.join(timeout_seconds)
    return not self._thread.is_alive()

  def _run(self) -> None:
    try:
      self._wait()
      self._then(self.step)
    except BaseException as error:
      self.error = error
      with contextlib.suppress(Exception):  # Nobody to tell is left.
        self._fail()


_under_way: "weakref.WeakSet[_Saving]" = weakref.WeakSet()


@functools.cache
def _wait_at_exit() -> None:
  """Lets a script that ends with an error, or without `close`, end its saves first.

  Orbax's threads can start nothing once the interpreter shuts down, and would be waited for five minutes.
  """

  def wait() -> None:
    for saving in list(_under_way):
      saving.has_ended(None)

  # `atexit` comes after the executors that Orbax needs are gone; only the thread pools' own hook is early.
  getattr(threading, "_register_atexit", atexit.register)(wait)


class _WriterLock:
  """Tells whether a run is saving into a directory, by an advisory lock on it that dies with it.

  A second run that removed temporary directories without it would break a save under way. Where locks
  are missing (Windows, object stores), or are of one host only (NFS), it is as if it were always had.
  """

  def __init__(self, directory: epath.Path):
    self._directory = directory
    self._descriptor: int | None = None
    self.is_held = False

  def acquire(self) -> bool:
    if self.is_held:
      return True
    if fcntl is None or not os.path.isdir(self._directory):
      self.is_held = True
      return True
    descriptor = os.open(self._directory, os.O_RDONLY)
    for attempt in range(10):
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if attempt < 9:
          time.sleep(0.1)
        continue
      except OSError:  # A file system without locks.
        pass
      self._descriptor = descriptor
      self.is_held = True
      return True
    os.close(descriptor)
    return False

  def release(self) -> None:
    if self._descriptor is not None:
      os.close(self._descriptor)
    self._descriptor = None
    self.is_held = False


def compute_digests(tree: Any) -> Any:
  """Returns a pytree of ints: for every array a digest of its bits that depends on their places.

  A single change is always found; of others one in 2^32 is missed. The sum wraps around, so the
  sharding does not matter.
  """
  # A program for each shape, of which an optimiser's state repeats most, compiles faster than one. Each is
  # awaited, since of a sharded array it is a collective. XLA's CPU client lets 32 programs a device wait; the
  # next blocks a thread of the pool that the collectives need, which has as many as there are cores.
  return jax.tree.map(lambda x: int(_digest(x)), tree)


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
  words = _to_words(array)
  # The place is computed axis by axis: a flattened copy would gather a sharded array.
  place = jnp.zeros(words.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(words.ndim)):
    iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place += iota * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return jnp.sum(_mixed(words ^ _mixed(place + jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)


def _to_words(array: jax.Array) -> jax.Array:
  """Returns the bits of the elements as uint32, several to an element wider than that."""
  if jnp.issubdtype(array.dtype, jnp.complexfloating):
    return jnp.stack([_to_words(jnp.real(array)), _to_words(jnp.imag(array))], axis=-1)
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  info = jnp.finfo if jnp.issubdtype(array.dtype, jnp.floating) else jnp.iinfo
  num_bits = info(array.dtype).bits
  if num_bits > 32:
    return jax.lax.bitcast_convert_type(array, jnp.uint32)
  return jax.lax.bitcast_convert_type(array, f"uint{num_bits}").astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
  """Scrambles uint32 one to one, by the finaliser of MurmurHash3."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _leaves_by_path(item: str, tree: Any) -> dict[str, Any]:
  """Returns the leaves by path; host arrays become JAX's. Raises TypeError for other leaves."""
  leaves: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if isinstance(leaf, np.ndarray | np.generic | bool | int | float):
      leaf = jnp.asarray(leaf)
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
      raise TypeError(f"{item}/{name} must be an array, got {type(leaf).__name__}")
    config_lib.check(name not in leaves, f"{item} has two leaves called {name}")
    leaves[name] = leaf
  return leaves


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(path: str, leaf: jax.Array) -> dict[str, Any]:
  key_impl = str(jax.random.key_impl(leaf)) if _is_key(leaf) else None
  return {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype), "key_impl": key_impl}


def _to_data(leaf: Any) -> jax.Array:
  if not isinstance(leaf, jax.Array):
    raise TypeError(f"only arrays can be saved, got {type(leaf).__name__}")
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _data_target(target: Any) -> jax.ShapeDtypeStruct:
  """Returns what to read from disk for a target."""
  sharding = target.sharding
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  if _is_key(target):
    struct = jax.ShapeDtypeStruct(target.shape, target.dtype)
    target = jax.eval_shape(jax.random.key_data, struct)
  return jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=sharding)


def _from_data(array: jax.Array, target: Any, key_impl: str | None) -> jax.Array:
  """Gives what was read the placement and type of its target."""
  is_committed = target.sharding is not None and getattr(target, "committed", True)
  if not is_committed:
    # Orbax's arrays are committed, and would then refuse to meet a mesh of several devices.
    array = jnp.array(np.asarray(array))
  if key_impl is not None:
    array = jax.random.wrap_key_data(array, impl=key_impl)
  return jax.device_put(array, target.sharding) if is_committed else array


def _snapshot(arrays: list[jax.Array]) -> list[jax.Array]:
  """Copies the arrays where Orbax would not: on CPU it writes from the very buffers."""
  return [
    jax.device_put(array, array.sharding, may_alias=False)
    if next(iter(array.sharding.device_set)).platform == "cpu"  # type: ignore[attr-defined]
    else array
    for array in arrays
  ]


def _number(index: int) -> str:
  return f"{index:05d}"


def _numbered(leaves: list[Any]) -> dict[str, Any]:
  """Names leaves for the disk: by number, as paths may hold what a file system or Orbax dislikes."""
  return {_number(i): leaf for i, leaf in enumerate(leaves) if math.prod(leaf.shape)}


def _difference(name: str, target: dict[str, Any], saved: Mapping[str, Any]) -> str | None:
  """Says how a target differs from the item of that name in a manifest."""
  if name not in saved:
    return f"it has no item {name}, only {', '.join(sorted(saved))}"
  kind = lambda shape, dtype: f"{dtype}[{','.join(map(str, shape))}]"  # noqa: E731
  there = {leaf["path"]: kind(leaf["shape"], leaf["dtype"]) for leaf in saved[name]}
  wanted = {path: kind(leaf.shape, leaf.dtype) for path, leaf in target.items()}
  differences = [
    f"{name}/{path} is {there.get(path, 'absent')} there and {wanted.get(path, 'absent')} here"
    for path in {**wanted, **there}
    if there.get(path) != wanted.get(path)
  ]
  if not differences and list(there) != list(wanted):
    return f"the leaves of {name} are in another order"
  return _first_of(differences) if differences else None


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
  # Through JSON once, so that keys are strings and tuples lists when they are hashed.
  manifest = json.loads(json.dumps(manifest))
  return {"manifest": manifest, "sha256": _hash(manifest)}


def _unsealed(sealed: Any) -> dict[str, Any]:
  if _hash(sealed["manifest"]) != sealed["sha256"]:
    raise ValueError("its hash is wrong")
  return sealed["manifest"]


def _hash(manifest: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


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


def _first_of(texts: list[str]) -> str:
  more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
  return texts[0] + more


def _remove(path: epath.Path) -> None:
  # What can't be removed now is tried again at the next save.
  with contextlib.suppress(OSError):
    path.rmtree()


@functools.cache
def _quieten_orbax() -> None:
  """Keeps off the console what Orbax says: every failure is reported here, in one line."""
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    # Reads and writes that a failure left behind call back, from C++, into its closed event loop.
    is_closed_loop = str(unraisable.exc_value) == "Event loop is closed"
    if not is_closed_loop or not _files(unraisable.exc_traceback)[0].endswith("base_events.py"):
      previous(unraisable)

  sys.unraisablehook = hook
  logging.get_absl_logger().addFilter(_is_not_orbax_noise)
  standard_logging.getLogger("asyncio").addFilter(_is_not_orbax_noise)


def _is_not_orbax_noise(record: standard_logging.LogRecord) -> bool:
  _, error, trace = record.exc_info or (None, None, None)
  files = [record.pathname, *_files(trace)]
  is_orbax = any("/orbax/checkpoint/" in file.replace(os.sep, "/") for file in files)
  # An error from TensorStore, which Orbax stopped waiting for at the first.
  is_orbax |= record.name == "asyncio" and "OCDBT" in str(error)
  return not is_orbax or logging.vlog_is_on(1)


def _files(trace: types.TracebackType | None) -> list[str]:
  return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)] or [""]
