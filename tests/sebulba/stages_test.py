import pytest

from podracer.sebulba import clock, stages, stop, watchdog


def make(actor, learner):
  return stages.Stages(actor=actor, learner=learner, seconds=2.0)


BLAMED = [
  ({"environment": 0.7, "inference": 0.2}, {"update": 0.3, "unrolls": 0.7}, "environment"),
  ({"environment": 0.2, "inference": 0.7}, {"update": 0.3, "unrolls": 0.7}, "inference"),
  ({"environment": 0.2, "transfer": 0.6}, {"update": 0.3, "unrolls": 0.7}, "transfer"),
  ({"environment": 0.2, "queue": 0.8}, {"update": 0.9, "publish": 0.1}, "update"),
  ({"environment": 0.2, "parameters": 0.8}, {"update": 0.3, "publish": 0.6}, "publish"),
]


@pytest.mark.parametrize(("actor", "learner", "expected"), BLAMED)
def test_the_busiest_stage_of_the_busier_side_is_blamed(actor, learner, expected):
  found = make(actor, learner)
  assert found.bottleneck() == expected
  assert f"bottleneck: {expected}, " in found.advice()


def test_taking_turns_is_named():
  found = make({"environment": 0.5, "parameters": 0.5}, {"update": 0.45, "unrolls": 0.55})
  assert "--lag=fixed:1" in found.advice()


def test_metrics_are_wall_seconds_a_step():
  found = make({"environment": 0.75, "queue": 0.25}, {"update": 1.0}).metrics(num_steps=100)
  assert found == {
    "stage/environment": pytest.approx(0.015),
    "stage/queue": pytest.approx(0.005),
    "stage/update": pytest.approx(0.02),
  }


def test_the_table_has_microseconds_a_step():
  made = make({"environment": 0.75, "queue": 0.25, "transfer": 0.001}, {"update": 1.0})
  assert made.table(num_steps=100) == (
    "µs of wall time a step, actors: environment 15000.0, queue 5000.0; learner: update 20000.0"
  )


def test_a_clock_adds_up_to_the_time_it_ran(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
  watch = clock.StageClock("actor 0")
  for stage, until in (("environment", 1.0), ("inference", 3.0), ("environment", 6.0)):
    watch.enter(stage)
    now[0] = until
  assert watch.seconds() == {"idle": 0.0, "environment": 4.0, "inference": 2.0}
  lap = stages.Stopwatch([watch], clock.StageClock("the learner"))
  now[0] = 10.0
  shares = lap.lap(4.0)
  assert shares.actor == {"environment": 1.0, "inference": 0.0} and shares.learner == {}


def test_the_watchdog_names_who_is_stuck_and_who_waits(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
  learner, actor = clock.StageClock("the learner"), clock.StageClock("actor 1", "Pong (0 .. 31)")
  learner.enter(clock.UNROLLS)
  actor.enter(clock.ENVIRONMENT)
  ending = stop.Stop()
  dog = watchdog.Watchdog([learner, actor], 60.0, ending)
  for second in range(61):
    now[0] = float(second)
    dog.look()
    assert not ending.requested
  now[0] = 61.0
  dog.look()
  assert str(ending.error) == (
    "stalled: actor 1 is stepping Pong (0 .. 31) for 61 s (meanwhile the learner is waiting for unrolls "
    "of the actors)"
  )


def test_a_process_that_was_suspended_is_not_stuck(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
  actor, ending = clock.StageClock("actor 0"), stop.Stop()
  actor.enter(clock.ENVIRONMENT)
  dog = watchdog.Watchdog([actor], 60.0, ending)
  # Seconds 3 .. 999 are slept through.
  for second in (1, 2, *range(1000, 1060)):
    now[0] = float(second)
    dog.look()
  assert not ending.requested
  for second in range(1060, 1062):
    now[0] = float(second)
    dog.look()
  assert ending.requested
