"""Where the time of a run goes: seconds a step of each stage, and the stage that is to blame."""

from collections.abc import Sequence
from typing import NamedTuple

from . import clock

ACTING = (clock.ENVIRONMENT, clock.INFERENCE, clock.TRANSFER)
LEARNING = (clock.UPDATE, clock.PUBLISH, clock.RECORD)
_ADVICE = {
  clock.ENVIRONMENT: "more cores or --environment_threads, or --environment_mode=async",
  clock.INFERENCE: "more --num_environments a thread, more --actor_devices, or a smaller network",
  clock.TRANSFER: "actors and learners on the same or nearer devices, or smaller observations",
  clock.UPDATE: "more --learner_devices, or a smaller network",
  clock.PUBLISH: "a longer --unroll_length, or actors on the learner devices",
  clock.RECORD: "a smaller share of environments to --record",
}
_TURNS = "acting and learning take turns: --lag=fixed:1 lets them overlap"


class Stages(NamedTuple):
  """What the threads spent their time on between two reports.

  Attributes:
    actor: stage -> share of the time of an actor thread, their mean; about 1 together.
    learner: stage -> share of the time of the learner.
    seconds: between the reports.
  """

  actor: dict[str, float]
  learner: dict[str, float]
  seconds: float

  def metrics(self, num_steps: int) -> dict[str, float]:
    """Returns `stage/<name>`: wall seconds a step in each stage.

    An actor's stages together, and the learner's, make one step's wall seconds.
    """
    per_step = self.seconds / max(1, num_steps)
    return {
      f"stage/{name}": share * per_step for name, share in {**self.actor, **self.learner}.items()
    }

  def bottleneck(self) -> str:
    """Returns the stage that bounds the speed: the busiest of the busier side."""
    acting = sum(self.actor.get(name, 0.0) for name in ACTING)
    learning = sum(self.learner.get(name, 0.0) for name in LEARNING)
    shares, names = (self.learner, LEARNING) if learning > acting else (self.actor, ACTING)
    return max(names, key=lambda name: shares.get(name, 0.0))

  def advice(self) -> str:
    """Returns the bottleneck, its share, and what to change, for a person."""
    name = self.bottleneck()
    share = {**self.actor, **self.learner}.get(name, 0.0)
    who = "the learner's" if name in LEARNING else "the actors'"
    waits = self.actor.get(clock.PARAMETERS, 0.0) + self.actor.get(clock.QUEUE, 0.0)
    both_wait = min(waits, self.learner.get(clock.UNROLLS, 0.0)) > 0.25
    advice = _TURNS if both_wait else _ADVICE[name]
    return f"bottleneck: {name}, {share:.0%} of {who} time; what helps: {advice}"

  def table(self, num_steps: int) -> str:
    """Returns the time of each stage, for a person."""
    per_step = self.seconds / max(1, num_steps) * 1e6
    sides = []
    for who, shares in (("actors", self.actor), ("learner", self.learner)):
      largest_first = sorted(shares.items(), key=lambda entry: -entry[1])
      named = (f"{name} {share * per_step:.1f}" for name, share in largest_first if share >= 0.005)
      sides.append(f"{who}: {', '.join(named)}")
    return "µs of wall time a step, " + "; ".join(sides)


class Stopwatch:
  """Takes the differences of the threads' clocks between reports."""

  def __init__(self, actors: Sequence[clock.StageClock], learner: clock.StageClock):
    self._actors, self._learner = actors, learner
    self._before = self._read()

  def lap(self, seconds: float) -> Stages:
    """Returns the stages since the lap before, which took `seconds`."""
    now = self._read()
    actors = [_shares(a, b, seconds) for a, b in zip(self._before[0], now[0], strict=True)]
    stages = sorted({name for shares in actors for name in shares})
    mean = {name: sum(s.get(name, 0.0) for s in actors) / len(actors) for name in stages}
    learner = _shares(self._before[1], now[1], seconds)
    self._before = now
    return Stages(actor=mean, learner=learner, seconds=seconds)

  def _read(self) -> tuple[list[dict[str, float]], dict[str, float]]:
    return [clock.seconds() for clock in self._actors], self._learner.seconds()


def _shares(before: dict[str, float], now: dict[str, float], seconds: float) -> dict[str, float]:
  return {
    name: (value - before.get(name, 0.0)) / seconds
    for name, value in now.items()
    if name != clock.IDLE
  }
