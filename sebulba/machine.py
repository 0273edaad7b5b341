"""The Sebulba machine: actor threads feed a learner, and the loop that drives them.

Hessel et al. (2021), section 3.2. The learner runs in the thread of whoever asks for reports; every
actor has a thread of its own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import episodes, group, host_environment, learner, multitask, report, sharding, types

from . import actor, async_collector, clock, config, inference, stages
from . import learner as learner_lib
from . import stop as stop_lib
from . import threads as threads_lib
from . import topology as topology_lib


class Sebulba:
  """Runs one agent in one host environment."""

  def __init__(
    self,
    agent: agent_lib.Agent,
    environment: Any,
    learner_config: config_lib.LearnerConfig,
    machine_config: config.SebulbaConfig,
    *,
    num_env_steps: int,
    devices: Sequence[jax.Device] | None = None,
    record: float = 0.0,
  ):
    """Compiles nothing yet.

    Args:
      agent: the agent.
      environment: a `HostFactory`, or a JAX-native `Environment` to be driven as one.
      learner_config: of the learner.
      machine_config: of the machine.
      num_env_steps: of the whole run, over which a learning-rate schedule runs.
      devices: of all processes, of each as many; all there are by default.
      record: share of the environments whose unrolls are recorded, in [0, 1].

    Raises:
      config.InputError: if devices, threads, environments, tasks and minibatches can't be shared out,
        and for a recording of several tasks.
    """
    devices = jax.devices() if devices is None else devices
    self.config = machine_config = machine_config.of_process(group.size())
    self.factory = host_environment.as_factory(environment)
    self.spec = self.factory.spec
    self.task_names = multitask.task_names(self.spec)
    multitask.check_recording(self.spec, record)
    config_lib.check(
      machine_config.environment_mode == "sync" or self.factory.can_be_async,
      f"environment {self.factory.spec.name} cannot be run with environment_mode=async",
    )
    self.topology = topology_lib.make_topology(
      machine_config, devices, learner_config.num_minibatches, max(1, len(self.task_names))
    )
    batch = self.topology.environments_per_actor * self.topology.unrolls_per_update
    self.steps_per_update = group.size() * batch * machine_config.unroll_length
    self.max_refused_updates = learner_config.max_refused_updates
    self.learner = learner_lib.ShardedLearner(
      agent,
      learner_config,
      self.topology.all_learners,
      -(-num_env_steps // self.steps_per_update),
      self.topology.unrolls_per_update,
      agent_lib.trajectory_shapes(
        agent,
        self.factory.spec,
        machine_config.unroll_length,
        batch // len(self.topology.learners),
      ),
    )
    self.replay_bytes = self.learner.replay_bytes
    self.acting_batch_size = size = self.topology.environments_per_actor
    # Of each actor thread the first ones, and no more than the first learner device gets.
    shard = size // len(self.topology.learners)
    self.recorded_per_actor = min(shard, max(1, round(record * size))) if record else 0
    self.recorded_slots = tuple(
      actor * size + i
      for actor in range(len(self.topology.actors))
      for i in range(self.recorded_per_actor)
    )
    self.programs = inference.make_programs(
      agent,
      self.factory.spec,
      self.topology.environments_per_actor,
      machine_config.unroll_length,
      len(self.topology.learners),
    )
    self.async_programs = None
    if machine_config.environment_mode == "async":
      self.async_programs = async_collector.make_programs(
        agent,
        self.factory.spec,
        self.topology.environments_per_actor,
        machine_config.unroll_length,
      )

  def init(self, seed: int) -> learner_lib.SebulbaState:
    """Returns the state at the beginning of a run."""
    return self.learner.init(seed)

  def abstract_state(self) -> learner_lib.SebulbaState:
    """Returns shapes, dtypes and shardings of the state, for a checkpoint to be restored onto."""
    return self.learner.abstract_state()

  def to_checkpoint(self, state: learner_lib.SebulbaState) -> dict[str, Any]:
    """See `sharding.to_checkpoint`."""
    return sharding.to_checkpoint(state)

  def from_checkpoint(self, items: dict[str, Any]) -> learner_lib.SebulbaState:
    """Returns the state of which `to_checkpoint` made the items."""
    state: learner_lib.SebulbaState = sharding.from_checkpoint(items)
    return state


def make_machine(
  agent: agent_lib.Agent,
  environment: Any,
  learner_config: config_lib.LearnerConfig,
  machine_config: config.SebulbaConfig,
  *,
  num_env_steps: int,
  num_seeds: int = 1,
  devices: Sequence[jax.Device] | None = None,
  record: float = 0.0,
) -> Sebulba:
  """Builds the machine as every architecture does; the arguments are those of `Sebulba`.

  Raises:
    config.InputError: also for several seeds.
  """
  config_lib.check(num_seeds == 1, f"num_seeds={num_seeds}: Sebulba runs one seed at a time")
  return Sebulba(
    agent,
    environment,
    learner_config,
    machine_config,
    num_env_steps=num_env_steps,
    devices=devices,
    record=record,
  )


def train(
  agent: agent_lib.Agent,
  environment: Any,
  learner_config: config_lib.LearnerConfig,
  machine_config: config.SebulbaConfig,
  *,
  num_env_steps: int,
  seed: int = 0,
  devices: Sequence[jax.Device] | None = None,
) -> Iterator[report.Report]:
  """Trains an agent, yielding a report every `updates_per_report` updates and at the end.

  The run ends with the first update at which `num_env_steps` environment steps have been learnt from.

  Args:
    agent: the agent.
    environment: a `HostFactory`, or a JAX-native `Environment` to be driven as one.
    learner_config: of the learner.
    machine_config: of the machine.
    num_env_steps: environment steps of the run.
    seed: of everything random.
    devices: of this host; all by default.

  Yields:
    Reports; what of their arrays is not the parameters is donated when the next one is asked for.

  Raises:
    config.InputError: for a configuration that can't work.
    report.TrainingError: if updates in a row were not finite, or a thread is stuck.
    Exception: whatever an actor thread raised.
  """
  machine = make_machine(
    agent,
    environment,
    learner_config,
    machine_config,
    num_env_steps=num_env_steps,
    devices=devices,
  )
  yield from run(machine, machine.init(seed), num_env_steps=num_env_steps, seed=seed)


def run(
  machine: Sebulba,
  state: learner_lib.SebulbaState,
  *,
  num_env_steps: int,
  seed: int = 0,
  counters: dict[str, Any] | None = None,
  pause_every: int = 0,
  should_report: Callable[[], bool] = lambda: False,
  record: report.Record | None = None,
) -> Iterator[report.Report]:
  """Runs a machine from a state: `train` with the state in the caller's hands.

  Args:
    machine: the machine.
    state: from `machine.init` or a checkpoint; donated, but for the parameters.
    num_env_steps: where the run ends, counted from its very beginning.
    seed: of the environments.
    counters: those of the report that `state` belongs to; None at the beginning.
    pause_every: also report at the first update at or past each multiple of this many environment
      steps; 0 does not.
    should_report: asked after each update; True reports at once.
    record: is given what the machine records, before it is learnt from.

  Yields:
    Reports.
  """
  counts = _Counts(machine.task_names, counters)
  if counts.env_steps >= num_env_steps:
    return
  threads = threads_lib.Threads(
    machine.topology,
    machine.config,
    machine.factory,
    machine.programs,
    machine.async_programs,
  )
  keys = machine.learner.actor_keys(state, len(machine.topology.actors))
  # The environments of a resumed run begin anew, and not as the run itself began.
  num_environments = machine.topology.environments_per_actor * len(machine.topology.actors)
  seeds = host_environment.make_seeds(seed, group.size() * num_environments, counts.updates)
  seeds = seeds[group.rank() * num_environments :][:num_environments]
  try:
    threads.start(state.learner.params, keys, counts.updates, seeds)
    yield from _learn(
      machine, state, threads, counts, num_env_steps, pause_every, should_report, record
    )
  except stop_lib.Stopped:
    assert threads.stop.error is not None  # Nobody but the loop below asks for an end without one.
    raise threads.stop.error from None
  finally:
    threads.close()


def _learn(
  machine: Sebulba,
  state: learner_lib.SebulbaState,
  threads: threads_lib.Threads,
  counts: "_Counts",
  num_env_steps: int,
  pause_every: int,
  should_report: Callable[[], bool],
  record: report.Record | None,
) -> Iterator[report.Report]:
  """The learner's loop: a batch, an update, new parameters."""
  per_report = machine.config.resolved_updates_per_report(num_env_steps, machine.steps_per_update)
  watch = threads.clock
  # What comes before, building environments and programs, is not training.
  first: list[actor.Unroll] | None = threads.take_batch(counts.updates)
  assert first is not None
  watch.enter(clock.COMPILE)
  machine.learner.compile(state, machine.learner.batch([unroll.shards for unroll in first]))
  num_recorded = machine.recorded_per_actor
  cut = jax.jit(lambda trajectory: types.first_environments(trajectory, num_recorded))
  while True:
    begin = time.perf_counter()
    stopwatch = stages.Stopwatch([a.clock for a in threads.actors], watch)
    boundary = (counts.updates // per_report + 1) * per_report
    target = num_env_steps
    if pause_every:
      target = min(target, (counts.env_steps // pause_every + 1) * pause_every)
    since = _Since(max(1, len(machine.task_names)))
    while counts.updates < boundary and counts.env_steps < target:
      unrolls = first or threads.take_batch(counts.updates)
      first = None
      if record is not None:
        watch.enter(clock.RECORD)
        for unroll in unrolls:
          recorded = jax.device_get(cut(unroll.shards[0]))
          record(recorded, unroll.actor * num_recorded, counts.env_steps)
      watch.enter(clock.UPDATE)
      batch = machine.learner.batch([unroll.shards for unroll in unrolls])
      lags = [counts.updates - unroll.version for unroll in unrolls]
      state, since.sums = machine.learner.update(state, since.sums, batch)
      jax.block_until_ready(state.learner.params)
      del batch
      watch.enter(clock.PUBLISH)
      counts.add(unrolls)
      since.add(unrolls, lags, threads.channel.depth)
      for unroll in unrolls:
        unroll.release()
      threads.store.publish(counts.updates, state.learner.params)
      del unrolls
      watch.enter(clock.UNROLLS)
      if should_report():
        break
    laps = stopwatch.lap(time.perf_counter() - begin)
    watch.enter(clock.IDLE)
    metrics = _metrics(machine, counts, since, laps)
    yield report.Report(
      env_steps=counts.env_steps,
      updates=counts.updates,
      metrics=metrics,
      params=state.learner.params,
      items=machine.to_checkpoint(state),
      counters=counts.to_json(),
      summary=(
        f"{laps.advice()}; {laps.table(since.num_steps)}; lag {metrics['lag/min']} .. "
        f"{metrics['lag/mean']:.2f} .. {metrics['lag/max']}; {metrics['queue/depth']:.2f} unrolls waiting"
      ),
    )
    num_refused = int(jax.device_get(state.learner.num_refused))
    if num_refused >= machine.max_refused_updates:
      raise report.TrainingError(learner.refusal_message(num_refused, metrics))
    if counts.env_steps >= num_env_steps:
      return


class _Counts:
  """Exact counts of a run."""

  def __init__(self, task_names: Sequence[str] = (), counters: dict[str, Any] | None = None):
    counters = counters or {"updates": 0, "env_steps": [0]}
    self.updates = int(counters["updates"])
    self.env_steps = int(counters["env_steps"][0])
    self.episodes = episodes.Counts(task_names, counters)

  def add(self, unrolls: list[actor.Unroll]) -> None:
    self.updates += 1
    self.env_steps += group.total(sum(unroll.num_steps for unroll in unrolls))

  def to_json(self) -> dict[str, Any]:
    return {
      "updates": self.updates,
      "env_steps": [self.env_steps],
      **self.episodes.to_json(),
    }


class _Since:
  """What has come together since the report before."""

  def __init__(self, num_tasks: int = 1) -> None:
    self.sums: Any = None
    self.num_steps = 0
    self.lags: list[int] = []
    self.depths: list[int] = []
    self.episodes = np.zeros((3, num_tasks))

  def add(self, unrolls: list[actor.Unroll], lags: list[int], depth: int) -> None:
    self.num_steps += sum(unroll.num_steps for unroll in unrolls)
    self.lags += lags
    self.depths.append(depth)
    for unroll in unrolls:
      self.episodes += np.asarray(unroll.episodes).reshape(self.episodes.shape)


def _metrics(
  machine: Sebulba, counts: _Counts, since: _Since, laps: stages.Stages
) -> dict[str, Any]:
  """Returns the metrics of a report."""
  ended = np.sum(group.gather_json(since.episodes.tolist()), axis=0)
  totals = episodes.EpisodeTotals(*(ended if machine.task_names else ended[:, 0]))
  counts.episodes.add(totals.num_episodes)
  # Of all processes, as is what was counted; where the time goes is of this one.
  num_steps = group.total(since.num_steps)
  steps_per_second = num_steps / laps.seconds
  frames = machine.factory.frames_per_step
  means = {
    **episodes.mean_metrics(totals, machine.task_names),
    **learner.mean_metrics(jax.device_get(since.sums)),
  }
  return {
    "env_steps": counts.env_steps,
    "updates": counts.updates,
    "steps_per_second": steps_per_second,
    "frames": counts.env_steps * frames,
    "frames_per_second": steps_per_second * frames,
    **counts.episodes.metrics(),
    **{name: float(value) for name, value in means.items()},
    "lag/min": min(since.lags),
    "lag/mean": float(np.mean(since.lags)),
    "lag/max": max(since.lags),
    "queue/depth": float(np.mean(since.depths)),
    **laps.metrics(since.num_steps),
  }
