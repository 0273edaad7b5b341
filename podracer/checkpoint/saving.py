"""A save that is under way, and the lock of who saves."""

import atexit
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable

from etils import epath

try:
  import fcntl
except ImportError:  # Not on Windows; see WriterLock.
  fcntl = None  # type: ignore[assignment]


class Saving:
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
    """Waits so long at most, or as long as it takes, and returns whether it has ended."""
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


_under_way: "weakref.WeakSet[Saving]" = weakref.WeakSet()


@functools.cache
def wait_at_exit() -> None:
  """Lets a script that ends with an error, or without `close`, end its saves first.

  Orbax's threads can start nothing once the interpreter shuts down, and would be waited for five minutes.
  """

  def wait() -> None:
    for saving in list(_under_way):
      saving.has_ended(None)

  # `atexit` comes after the executors that Orbax needs are gone; only the thread pools' own hook is early.
  getattr(threading, "_register_atexit", atexit.register)(wait)


class WriterLock:
  """Tells whether a run is saving into a directory, by an advisory lock on it that dies with it.

  A second run that removed temporary directories without it would break a save under way. Where locks
  are missing (Windows, object stores), or are of one host only (NFS), it is as if it were always had.
  """

  def __init__(self, directory: epath.Path):
    self._directory = directory
    self._descriptor: int | None = None
    self.is_held = False

  def acquire(self) -> bool:
    """Returns whether this process has the lock, for which it waits a second at most."""
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
    """Lets another process have it."""
    if self._descriptor is not None:
      os.close(self._descriptor)
    self._descriptor = None
    self.is_held = False
