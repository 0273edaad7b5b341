"""The processes that train together, and what they agree on.

JAX's own runtime joins them (`jax.distributed`). Every function here but the first three is a collective:
all processes call it, in the same order. A process alone talks to nobody.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import report

AXIS = "processes"
_POLL_SECONDS = 0.1
P = jax.sharding.PartitionSpec


def size() -> int:
  """Returns how many processes there are."""
  return jax.process_count()


def rank() -> int:
  """Returns the number of this one."""
  return jax.process_index()


def is_first() -> bool:
  """Returns True in the process that writes what is written once."""
  return jax.process_index() == 0


def gather(values: Any) -> np.ndarray:
  """Returns what every process gave, `[size, ...]`.

  Args:
    values: an array or a number, of the same shape and dtype in each; 64 bits become 32.
  """
  own = np.asarray(values)[None]
  if size() == 1:
    return own
  mesh, device, replicate = _connection()
  shard = jax.device_put(own, device)
  shape = (size(), *own.shape[1:])
  sharding = jax.sharding.NamedSharding(mesh, P(AXIS))
  return np.asarray(replicate(jax.make_array_from_single_device_arrays(shape, sharding, [shard])))


def total(number: int) -> int:
  """Returns the sum of a number, below 2^31 in each process."""
  return int(np.sum(gather(np.int32(number)), dtype=np.int64))


def any_of(flag: bool) -> bool:
  """Returns True where any process says so."""
  return bool(gather(np.int32(flag)).any())


def gather_json(value: Any) -> list[Any]:
  """Returns what every process gave, JSON values of any length; a number comes back to the last bit."""
  if size() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = gather(np.int32(text.size))
  texts = gather(np.pad(text, (0, int(lengths.max()) - text.size)))
  return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def from_first(work: Callable[[], Any]) -> Any:
  """Returns, in every process, what the first one gets from `work`; the others wait for it.

  Args:
    work: returns JSON values.

  Raises:
    report.RunError: in the others, where it raised in the first.
  """
  if size() == 1:
    return work()
  value, error = None, None
  if is_first():
    try:
      value = work()
    except Exception as raised:
      error = raised
  value, failure = gather_json([value, None if error is None else f"{error}"])[0]
  if error is not None:
    raise error
  if failure is not None:
    raise report.RunError(f"process 0 failed: {failure}")
  return value


def make_mesh(devices: Sequence[jax.Device], axis: str) -> jax.sharding.Mesh:
  """Returns a mesh over devices whose processes have met.

  The first collective over a set of devices connects their processes, and on CPUs that waits half a minute for
  the last one: not long enough where another must still compile what comes before. So it is done here, by all
  at the same time.

  Args:
    devices: of all processes in the same order in each, or of one process alone.
    axis: name of the one axis.
  """
  mesh = jax.sharding.Mesh(np.asarray(devices), (axis,))
  if len({device.process_index for device in devices}) > 1:
    any_of(False)  # Nobody is ahead of the others.
    sharding = jax.sharding.NamedSharding(mesh, P(axis))
    ones = jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.ones(1, np.float32))
    meet = jax.jit(jnp.sum, out_shardings=jax.sharding.NamedSharding(mesh, P()))
    jax.block_until_ready(meet(ones))
  return mesh


class Work:
  """Work of several stages that a thread of every process does beside its main thread.

  They wait for each other by JAX's coordination service, not by a collective, whose order is that of the main
  threads; and where one fails all others learn of it at once. All processes make these in the same order.
  """

  _numbers = itertools.count()

  def __init__(self) -> None:
    self._name = f"podracer/work/{next(self._numbers)}"
    self._stage = 0

  def wait(self, timeout_seconds: float) -> None:
    """Ends a stage: returns when every process has.

    Raises:
      RuntimeError: another process failed.
      TimeoutError: it takes longer than this.
    """
    if size() == 1:
      return
    self._stage += 1
    deadline = time.monotonic() + timeout_seconds
    self._set(f"{self._stage}/{rank()}")
    while True:
      ended = {key for key, _ in _client().key_value_dir_get(self._name)}
      if f"{self._name}/failed" in ended:
        raise RuntimeError("another process failed")
      if len([key for key in ended if key.startswith(f"{self._name}/{self._stage}/")]) == size():
        return
      if time.monotonic() > deadline:
        raise TimeoutError(f"another process takes longer than {timeout_seconds:.0f} s")
      time.sleep(_POLL_SECONDS)

  def fail(self) -> None:
    """Tells all that this process has failed."""
    if size() > 1:
      self._set("failed")

  def _set(self, key: str) -> None:
    _client().key_value_set(f"{self._name}/{key}", "", allow_overwrite=True)


def _client() -> Any:
  """Returns the connection to the coordination service, for which there is no public name."""
  from jax._src import distributed

  return distributed.global_state.client


@functools.cache
def _connection() -> tuple[jax.sharding.Mesh, jax.Device, Any]:
  """Returns a mesh of one device a process, this one's, and the program that tells all to each."""
  firsts = [
    next(device for device in jax.devices() if device.process_index == i) for i in range(size())
  ]
  mesh = jax.sharding.Mesh(np.asarray(firsts), (AXIS,))
  replicate = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, P()))
  return mesh, jax.local_devices()[0], replicate
