"""The watchdog: sees that a thread is stuck, and says which, where, and who waits for it."""

import threading
import time
from collections.abc import Sequence

from podracer import report

from . import clock, stop

_DOING = {
  clock.ENVIRONMENT: "stepping {where}",
  clock.INFERENCE: "in inference",
  clock.TRANSFER: "moving data between devices",
  clock.QUEUE: "waiting for room in the channel to the learner",
  clock.PARAMETERS: "waiting for parameters of the learner",
  clock.UPDATE: "updating",
  clock.PUBLISH: "publishing parameters",
  clock.UNROLLS: "waiting for unrolls of the actors",
  clock.RECORD: "recording episodes",
  clock.COMPILE: "compiling",
  clock.IDLE: "idle",
}


_PERIOD_SECONDS = 1.0
_SUSPENDED_SECONDS = 5.0
"""The watchdog itself not having run for so long means that the whole process was suspended."""


class Watchdog:
  """Ends a run in which a thread stays in one stage for too long."""

  def __init__(self, clocks: Sequence[clock.StageClock], timeout_seconds: float, ending: stop.Stop):
    """Watches nothing yet.

    Args:
      clocks: of all threads.
      timeout_seconds: for which a thread may stay in a stage that should be short.
      ending: told of a stall.
    """
    self._clocks = clocks
    self._timeout_seconds = timeout_seconds
    self._ending = ending
    self._last_look = self._resumed = time.perf_counter()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def start(self) -> None:
    """Starts watching."""
    self._thread.start()

  def look(self) -> None:
    """Ends the run if a thread is stuck now."""
    now = time.perf_counter()
    if now - self._last_look > _SUSPENDED_SECONDS:
      self._resumed = now
    self._last_look = now
    stuck = [
      c
      for c in self._clocks
      if c.stage not in clock.PATIENT and now - max(c.since, self._resumed) > self._timeout_seconds
    ]
    if stuck:
      self._ending.fail(report.TrainingError(self.describe(stuck)))

  def describe(self, stuck: Sequence[clock.StageClock]) -> str:
    """Returns who is stuck where, and what the others do, in one line."""
    now = time.perf_counter()
    blamed = ", ".join(f"{c.owner} is {_doing(c)} for {now - c.since:.0f} s" for c in stuck)
    others = ", ".join(f"{c.owner} is {_doing(c)}" for c in self._clocks if c not in stuck)
    return f"stalled: {blamed}" + (f" (meanwhile {others})" if others else "")

  def _watch(self) -> None:
    while not self._ending.wait(min(_PERIOD_SECONDS, self._timeout_seconds / 4)):
      self.look()


def _doing(thread: clock.StageClock) -> str:
  return _DOING[thread.stage].format(where=thread.where or "its environments")
