"""How the threads of a run end together: one asks, all see it within a moment."""

import threading

POLL_SECONDS = 0.2
"""The longest any wait lasts before it looks whether the run has ended."""


class Stopped(Exception):  # noqa: N818  (no error: the run was asked to end)
  """The run has ended; a thread that sees it leaves."""


class Stop:
  """The end of a run, and the error that caused it, if one did."""

  def __init__(self) -> None:
    self.error: BaseException | None = None
    self._lock = threading.Lock()
    self._event = threading.Event()

  @property
  def requested(self) -> bool:
    """True once the run is to end."""
    return self._event.is_set()

  def request(self) -> None:
    """Ends the run without a fault."""
    self._event.set()

  def fail(self, error: BaseException) -> None:
    """Ends the run because of an error; the first one is kept."""
    with self._lock:
      if self.error is None and not self._event.is_set():
        self.error = error
    self._event.set()

  def check(self) -> None:
    """Raises Stopped once the run is to end."""
    if self._event.is_set():
      raise Stopped

  def wait(self, seconds: float) -> bool:
    """Waits; returns True once the run is to end."""
    return self._event.wait(seconds)
