"""One training run in its directory: reports, evaluations, checkpoints, signals."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from podracer import checkpoint, evaluation, group, host_environment, metrics, report
from podracer import config as config_lib

from . import (
  command_line,
  display,
  experiment,
  expert_data,
  guard,
  host,
  interrupts,
  run_files,
  search_cost,
  teachers,
)

Experiment = experiment.ExperimentConfig[Any, Any]
EVALUATION_STREAM = 1


def run(wanted: Experiment, start: float, signals: interrupts.Interrupts) -> int:
  """Trains until the run is complete or a signal ends it.

  Args:
    wanted: a checked configuration.
    start: `time.perf_counter()` at the beginning of the command.
    signals: entered; a signal it notes ends the run.

  Returns:
    The exit code.

  Raises:
    report.RunError: if training can't go on, or all checkpoints are bad.
  """
  devices = host.start_jax(wanted.num_devices, wanted.preferred_devices, wanted.group)
  if wanted.group.coordinator:
    signals.listen_again()
    guard.joined()
  # Resolved, so that the run goes on with as many wherever it is resumed.
  wanted = dataclasses.replace(wanted, num_devices=len(devices))
  _check_same(wanted)
  moved = group.from_first(lambda: _move_aside(wanted))
  if moved and group.is_first():
    print(f"moved the run that was there to {moved}")
  code = _Run(wanted, signals, start, devices).train()
  if group.size() > 1:
    jax.distributed.shutdown()
  return code


def _move_aside(wanted: Experiment) -> str:
  """Moves the run that is there out of the way of one begun anew; returns where to, or nothing."""
  is_there = wanted.restart and experiment.has_run(wanted.workdir)
  return str(run_files.move_aside(wanted.workdir)) if is_there else ""


def _check_same(wanted: Experiment) -> None:
  """Raises InputError, in every process, where one was started with another configuration."""
  own = [experiment.to_json(wanted), wanted.workdir, wanted.restart]
  first, *others = (
    dataclasses.replace(experiment.from_json(values, workdir), restart=restart)
    for values, workdir, restart in group.gather_json(own)
  )
  for i, other in enumerate(others, start=1):
    changed = experiment.differences(first, other, may_change=())
    if first.workdir != other.workdir:
      changed.append(f"workdir: {first.workdir} -> {other.workdir}")
    if first.restart != other.restart:
      changed.append(f"restart: {first.restart} -> {other.restart}")
    config_lib.check(
      not changed,
      f"process {i} was started with another configuration than process 0: {'; '.join(changed)}",
    )


class _Run:
  """The parts of one run, wired together."""

  def __init__(
    self,
    wanted: Experiment,
    signals: interrupts.Interrupts,
    start: float,
    devices: Sequence[jax.Device],
  ):
    self.signals, self.start = signals, start
    self.experiment = wanted
    self.is_stopped = False  # By a signal to any process.
    self.seen = "nothing to do"
    environment = self.experiment.make_environment()
    self.factory = host_environment.as_factory(environment)
    config = self.experiment.config
    config = config.for_recording() if wanted.record else config
    members = teachers.load(self.experiment)
    self.agent = self.experiment.make_agent(environment.spec, config, members)
    self.recorder: expert_data.TrainingRecorder | None = None
    self.machine = experiment.make_machine(self.experiment, self.agent, environment, devices)
    player = self.experiment.make_agent(environment.spec, config.for_evaluation())
    self.evaluate = evaluation.make_evaluator(
      player,
      environment,
      num_episodes=wanted.evaluate_episodes,
      greedy=wanted.evaluate_mode == "greedy",
    )
    with command_line.disk_errors(wanted.workdir):
      group.from_first(self._write_configuration)
      self.checkpointer = checkpoint.Checkpointer(
        pathlib.Path(wanted.workdir) / "checkpoints", max_to_keep=wanted.max_checkpoints
      )

  def _write_configuration(self) -> None:
    experiment.write(self.experiment)
    teachers.keep(self.experiment)

  def train(self) -> int:
    """See `run`."""
    wanted = self.experiment
    restored = self.checkpointer.restore(self.machine.to_checkpoint(self.machine.abstract_state()))
    counters = restored.metadata["counters"] if restored else None
    unevaluated = group.from_first(functools.partial(self._unevaluated, restored))
    done = min(counters["env_steps"]) if counters else 0
    with self._display(done) as screen:
      device = jax.local_devices()[0]
      processes = f" in {group.size()} processes" if group.size() > 1 else ""
      screen.say(
        f"{wanted.agent} in {wanted.env} on {wanted.architecture}, {wanted.num_devices} x "
        f"{device.device_kind}{processes}; workdir {wanted.workdir}"
      )
      for line in (*wanted.config.warnings(), *self._costs(device)):
        screen.say(line)
      if restored:
        screen.say(f"resumed at {done:,} environment steps")
        state = self.machine.from_checkpoint(restored.items)
      else:
        state = self.machine.init(wanted.seed)
      del restored
      # Rows of a run that was killed before its first checkpoint are written anew, too, and one
      # that awaits its evaluation.
      writer = self._writer(done - 1 if unevaluated else done)
      try:
        if wanted.record and done < wanted.num_env_steps:
          updates = counters["updates"] if counters else 0
          self.recorder = expert_data.TrainingRecorder(
            wanted, self.agent, self.factory, self.machine.recorded_slots, updates
          )
        self._loop(state, counters, done, unevaluated, screen, writer)
      finally:
        if self.recorder is not None:
          self.recorder.close()
        if writer is not None:
          writer.close()
        self.checkpointer.close()
    if self.is_stopped and not self.signals.requested:
      return guard.PEER_LOST
    return self.signals.exit_code

  def _display(self, done: int) -> display.Display:
    wanted = self.experiment
    return display.Display(wanted.num_env_steps, done, wanted.num_seeds, is_shown=group.is_first())

  def _writer(self, done: int) -> metrics.MetricsWriter | None:
    """Returns what writes the metrics, in the first process only."""
    wanted = self.experiment
    if not group.is_first():
      return None
    return metrics.MetricsWriter(
      wanted.workdir,
      tensorboard=wanted.tensorboard,
      wandb_project=wanted.wandb_project or None,
      config=experiment.to_json(wanted),
      resume_env_steps=done,
    )

  def _costs(self, device: jax.Device) -> list[str]:
    """Returns what is known of memory and time before training: of the replay and of a search."""
    lines = []
    if self.machine.replay_bytes:
      lines.append(f"replay: {self.machine.replay_bytes / 1e6:,.1f} MB on each learner device")
    if self.agent.act_by_prior is not None:
      spec, batch_size = self.machine.spec, self.machine.acting_batch_size
      lines.append(search_cost.measure(self.agent, spec, batch_size, device))
    return lines

  def _loop(
    self,
    state: Any,
    counters: dict[str, Any] | None,
    done: int,
    unevaluated: dict[str, Any] | None,
    screen: display.Display,
    writer: metrics.MetricsWriter | None,
  ) -> None:
    wanted = self.experiment
    last_save = time.monotonic()
    seconds = 0.0
    first_steps, env_steps, finished = done, done, done >= wanted.num_env_steps
    summary, note = None, ""
    if unevaluated:
      summary = self._evaluation(state.learner.params, done, unevaluated)
      if summary is None:
        return
      self._write(unevaluated, summary, writer, screen)
    reports = experiment.machine_module(wanted.architecture).run(
      self.machine,
      state,
      num_env_steps=wanted.num_env_steps,
      seed=wanted.seed,
      counters=counters,
      pause_every=wanted.evaluate_every,
      should_report=lambda: group.any_of(self.signals.requested),
      record=self.recorder.add if self.recorder is not None else None,
    )
    for news in reports:
      if env_steps == first_steps:
        screen.say(f"first update {time.perf_counter() - self.start:.1f} s after the command")
      seconds += (news.env_steps - env_steps) / news.metrics["steps_per_second"] * wanted.num_seeds
      finished = news.env_steps >= wanted.num_env_steps
      due = wanted.evaluate_every and (
        news.env_steps // wanted.evaluate_every > env_steps // wanted.evaluate_every
      )
      env_steps, note = news.env_steps, news.summary
      row = {"time": time.time(), **news.metrics, **_of_processes(news.metrics)}
      metadata: dict[str, Any] = {"counters": news.counters}
      if finished or due:
        summary = self._evaluation(news.params, env_steps, row)
        if summary is None:
          metadata["unevaluated"] = row
      self._write(row, summary if finished or due else None, writer, screen, news.summary)
      now = time.monotonic()
      is_late = now - last_save >= wanted.checkpoint_every_seconds
      asked = group.gather(np.array([self.signals.requested, is_late]))
      self.is_stopped, is_late = (bool(x) for x in np.any(asked, axis=0))
      if finished or self.is_stopped or is_late:
        # A run killed after it, and resumed from it, would lack a row that was still queued.
        if writer is not None:
          writer.flush()
        if self.recorder is not None:
          self.recorder.commit()
        self._check_replicas(news)
        self.checkpointer.save(news.updates, news.items, metadata)
        last_save = now
      if self.is_stopped:
        if self.checkpointer.wait():
          screen.say(
            f"saved at {env_steps:,} environment steps; the same command goes on from there"
          )
        else:
          screen.say("not saved: the same command goes on from the checkpoint before")
        return
    self.checkpointer.wait()
    if env_steps == first_steps and not unevaluated:
      screen.say(
        f"nothing to do: the run already has {env_steps:,} of {wanted.num_env_steps:,} environment "
        "steps; more with --num_env_steps"
      )
    if group.size() > 1:
      numbers = ", ".join(str(device.id) for device in jax.local_devices())
      print(f"process {group.rank()} of {group.size()}: devices {numbers}; {self.seen}", flush=True)
    self._say_end(screen, env_steps, env_steps - first_steps, seconds, summary, note)

  def _check_replicas(self, news: report.Report) -> None:
    """Raises RunError where the processes' parameters are not the same, to the last bit."""
    own = jax.tree.map(lambda x: x.addressable_data(0), news.params)
    digest = sum(jax.tree.leaves(checkpoint.compute_digests(own))) if group.size() > 1 else 0
    digests = [f"{x:08x}" for x in group.gather(np.uint32(digest % 2**32))]
    if len(set(digests)) > 1:
      raise report.RunError(
        f"the processes' parameters differ after {news.updates} updates: {', '.join(digests)}"
      )
    self.seen = (
      f"{news.env_steps:,} environment steps, {news.updates:,} updates, parameters {digests[0]}"
    )

  def _evaluation(self, params: Any, env_steps: int, row: dict[str, Any]) -> dict[str, Any] | None:
    """Evaluates every seed and adds the results to `row`; returns None where a signal stopped it."""
    summary: dict[str, Any] | None = group.from_first(lambda: self._played(params, env_steps))
    if summary is None:
      self.is_stopped = True
      return None
    names = ("return_mean", "return_std", "return_min", "return_max", "length_mean")
    row.update({f"evaluation/{name}": summary[name] for name in names})
    for task, values in summary.get("tasks", {}).items():
      row[metrics.of_task(task, "evaluation/return_mean")] = values["return_mean"]
    if "seeds/return_mean" in summary:
      row["seeds/evaluation/return_mean"] = summary["seeds/return_mean"]
    return summary

  def _played(self, params: Any, env_steps: int) -> dict[str, Any] | None:
    """Returns what an evaluation of every seed found, or None where a signal stopped it."""
    wanted = self.experiment
    key = jax.random.fold_in(jax.random.key(wanted.seed), EVALUATION_STREAM)
    key = jax.random.fold_in(key, env_steps % 2**32)
    # One device plays; the parameters are the same on each.
    params = jax.tree.map(lambda x: x.addressable_data(0), params)
    results = []
    for i in range(wanted.num_seeds):
      one = params if wanted.num_seeds == 1 else jax.tree.map(lambda x, i=i: x[i], params)
      result = self.evaluate(one, key, lambda: self.signals.requested)
      if result is None:
        return None
      results.append(result)
    summary = evaluation.together(results).summary()
    if wanted.num_seeds > 1:
      summary["seeds/return_mean"] = [float(np.mean(r.returns)) for r in results]
    return summary

  def _unevaluated(self, restored: checkpoint.Restored | None) -> dict[str, Any] | None:
    """Returns the row of metrics whose evaluation a signal stopped, if it is still to be done."""
    row = restored.metadata.get("unevaluated") if restored else None
    if row and run_files.evaluated_env_steps(self.experiment.workdir) == row["env_steps"]:
      return None
    return row

  def _write(
    self,
    row: dict[str, Any],
    summary: dict[str, Any] | None,
    writer: metrics.MetricsWriter | None,
    screen: display.Display,
    note: str = "",
  ) -> None:
    """Writes and shows a report, and evaluation.json last: it tells that an evaluation is done."""
    screen.update(row, note)
    if writer is None:
      return
    writer.write(row)
    if summary is None:
      return
    writer.flush()
    try:
      run_files.write_evaluation(self.experiment.workdir, row["env_steps"], summary)
    except OSError as error:
      logging.warning("evaluation.json can't be written: %s. Training goes on.", error)

  def _say_end(
    self,
    screen: display.Display,
    env_steps: int,
    new_steps: int,
    seconds: float,
    summary: dict[str, Any] | None,
    note: str,
  ) -> None:
    workdir = self.experiment.workdir
    if new_steps:
      screen.say(
        f"done: {env_steps:,} environment steps, {new_steps:,} of them in {seconds:.1f} s of training"
      )
    for line in filter(None, note.split("; ")):
      screen.say(f"  {line}")
    if summary:
      screen.say(evaluation_line(summary))
    if self.recorder is not None:
      screen.say(f"recorded {self.recorder.num_episodes:,} whole episodes in {self.recorder.out}/")
    screen.say(f"results: {workdir}/  learning_curve.png  metrics.jsonl  checkpoints/")
    screen.say("next:")
    if self.factory.can_render:
      screen.say(f"  podracer watch --workdir={workdir} --out={pathlib.Path(workdir).name}.mp4")
    screen.say(f"  podracer evaluate --workdir={workdir} --episodes=1000")
    screen.say(f"  podracer plot {workdir}")


def _of_processes(own: dict[str, Any]) -> dict[str, Any]:
  """Returns the metrics of a machine that differ between processes: `processes/<name>` -> a list."""
  if group.size() == 1:
    return {}
  names = [name for name, value in own.items() if isinstance(value, int | float)]
  values = group.gather(np.array([own[name] for name in names], np.float32))
  differ = [i for i in range(len(names)) if len(set(map(float, values[:, i]))) > 1]
  return {f"processes/{names[i]}": values[:, i].tolist() for i in differ}


def evaluation_line(summary: dict[str, Any]) -> str:
  """Returns what an evaluation found, for a person."""
  text = (
    f"evaluation ({summary['mode']}, {summary['episodes']} whole episodes): return "
    f"{summary['return_mean']:.2f} ± {summary['return_std']:.2f} "
    f"(min {summary['return_min']:.2f}, max {summary['return_max']:.2f}), "
    f"length {summary['length_mean']:.1f}"
  )
  if "seeds/return_mean" in summary:
    means = ", ".join(f"{mean:.2f}" for mean in summary["seeds/return_mean"])
    text += f"; by seed {means}"
  if "tasks" in summary:
    parts = (f"{name} {values['return_mean']:.2f}" for name, values in summary["tasks"].items())
    text += f"; by task {', '.join(parts)}"
  return text
