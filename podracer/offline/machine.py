"""The machine that learns from a collection of expert data instead of environments."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import report

from . import config, updates, windows

NUM_REPORTS = 100
MAX_UPDATES_PER_REPORT = 1000


class OfflineMachine(updates.OfflineLearner):
  """Trains an agent on the recorded episodes of one environment.

  Attributes:
    spec: of the environment.
    recorded_slots: (), for nothing is played.
    replay_bytes: 0.
    acting_batch_size: 1, of whoever asks what acting costs.
  """

  recorded_slots: tuple[int, ...] = ()
  replay_bytes = 0
  acting_batch_size = 1

  def __init__(
    self,
    agent: agent_lib.Agent,
    spec: Any,
    learner_config: config_lib.LearnerConfig,
    machine_config: config.OfflineConfig,
    *,
    num_env_steps: int,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Opens the data; nothing is compiled before the first update.

    Raises:
      config.InputError: there is no such data, or it is not what the agent learns from.
    """
    self.spec, self.config = spec, machine_config
    replay = getattr(learner_config, "replay", None)
    config_lib.check(
      replay is None or not replay.capacity,
      "replay.capacity: what is learnt from recorded data needs no replay, take 0",
    )
    fields = learner_config.recorded_fields()
    tasks = spec.tasks or (spec,)
    self.datasets = [
      windows.select(machine_config.data, task, machine_config.filters, fields) for task in tasks
    ]
    length = machine_config.unroll_length
    mean = sum(windows.mean_transitions(one, length) for one in self.datasets) / len(tasks)
    num_updates = max(1, round(num_env_steps / (machine_config.num_windows * mean)))
    self.updates_per_report = machine_config.updates_per_report or min(
      MAX_UPDATES_PER_REPORT, max(1, num_updates // NUM_REPORTS)
    )

    def prepare(batches: Any) -> Any:
      trajectory = windows.to_trajectory(spec, batches)
      state = agent.initial_state(trajectory.actor_outputs.action.shape[1])
      return trajectory._replace(initial_state=state)

    super().__init__(
      agent, learner_config, num_updates=num_updates, prepare=prepare, devices=devices
    )

  def batches(self, seed: int) -> Callable[[int], Iterator[Any]]:
    """Returns number of the first batch -> batches from there on, each a tuple of one a task."""
    size = self.config.num_windows // len(self.datasets)
    of_tasks = [
      windows.make_batches(dataset, self.config.unroll_length, size, seed + i)
      for i, dataset in enumerate(self.datasets)
    ]
    return lambda start: zip(*(make(start) for make in of_tasks), strict=True)


def make_machine(
  agent: agent_lib.Agent,
  environment: Any,
  learner_config: config_lib.LearnerConfig,
  machine_config: config.OfflineConfig,
  *,
  num_env_steps: int,
  num_seeds: int = 1,
  devices: Sequence[jax.Device] | None = None,
  record: float = 0.0,
) -> OfflineMachine:
  """Builds the machine as every architecture does.

  Raises:
    config.InputError: also where something is to be recorded: nothing is played.
  """
  del num_seeds
  config_lib.check(not record, "record: what is learnt from recorded data plays nothing to record")
  return OfflineMachine(
    agent,
    environment.spec,
    learner_config,
    machine_config,
    num_env_steps=num_env_steps,
    devices=devices,
  )


def run(
  machine: OfflineMachine,
  state: updates.OfflineState,
  *,
  num_env_steps: int,
  seed: int = 0,
  counters: dict[str, Any] | None = None,
  pause_every: int = 0,
  should_report: Callable[[], bool] = lambda: False,
  record: report.Record | None = None,
) -> Iterator[report.Report]:
  """Runs a machine from a state; environment steps are recorded ones that were learnt from.

  Args:
    machine: the machine.
    state: from `machine.init` or a checkpoint; donated.
    num_env_steps: where the run ends, counted from its very beginning.
    seed: of the order of the data.
    counters: those of the report that `state` belongs to; None at the beginning.
    pause_every: see `updates.learn`.
    should_report: see `updates.learn`.
    record: not called.

  Yields:
    Reports.
  """
  del record
  yield from updates.learn(
    machine,
    state,
    machine.batches(seed),
    num_env_steps=num_env_steps,
    count=windows.num_transitions,
    updates_per_report=machine.updates_per_report,
    counters=counters,
    pause_every=pause_every,
    should_report=should_report,
  )
