"""What a thread spends its time on: one stage at a time, told apart by name."""

import time

ENVIRONMENT = "environment"
INFERENCE = "inference"
TRANSFER = "transfer"
QUEUE = "queue"
PARAMETERS = "parameters"
UPDATE = "update"
PUBLISH = "publish"
UNROLLS = "unrolls"
RECORD = "record"
COMPILE = "compile"
IDLE = "idle"

PATIENT = (QUEUE, PARAMETERS, UNROLLS, COMPILE, IDLE)
"""Stages that may last: a thread waits for another, which is the one to blame, or for the compiler."""


class StageClock:
  """The stages of one thread. Only that thread writes; others read `stage` and `since`.

  Attributes:
    owner: name of the thread, for messages.
    where: what it works on, for messages.
    stage: the present stage.
    since: `time.perf_counter()` when it began.
  """

  def __init__(self, owner: str, where: str = ""):
    self.owner = owner
    self.where = where
    self.stage = IDLE
    self.since = time.perf_counter()
    self._seconds: dict[str, float] = {}

  def enter(self, stage: str) -> None:
    """Ends the present stage and begins another."""
    now = time.perf_counter()
    self._seconds[self.stage] = self._seconds.get(self.stage, 0.0) + now - self.since
    self.stage, self.since = stage, now

  def seconds(self) -> dict[str, float]:
    """Returns the seconds spent in each stage since the thread began, the present one included."""
    found = dict(self._seconds)
    found[self.stage] = found.get(self.stage, 0.0) + time.perf_counter() - self.since
    return found
