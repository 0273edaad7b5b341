"""What a machine says of itself while it trains: the one thing its loop yields."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # A command line takes its errors from here before JAX starts.
  from podracer import types

Record = Callable[["types.Trajectory", int, int], None]
"""What a machine calls with what it records: (unroll `[T+1, K, ...]` on the host, number of its first
recorded environment, environment steps that its actor was trained for). The unrolls of an environment
follow one on the other; their arrays may be written again afterwards."""


class Report(NamedTuple):
  """The news since the report before.

  Attributes:
    env_steps: environment steps since the run began, resets not counted; of the seed that has fewest.
    updates: trajectories learnt from since the run began.
    metrics: name -> number, in the names of `metrics.jsonl`; with several seeds their mean, and
      `seeds/<name>` -> a list.
    params: the agent's parameters, leading axis of seeds where there are several. Like `items` they
      are donated to the next step of the loop: take what you need before you go on.
    items: the whole state of the machine as the items of a checkpoint.
    counters: exact counts that belong to it, plain JSON values.
    summary: what else the machine has to say to a person, in a line: where its time goes.
  """

  env_steps: int
  updates: int
  metrics: dict[str, Any]
  params: Any
  items: dict[str, Any]
  counters: dict[str, Any]
  summary: str = ""


class RunError(RuntimeError):
  """A run can't go on as it is, by no fault of the program: a command prints only the message."""


class TrainingError(RunError):
  """Training cannot go on; the message says why in one line."""
