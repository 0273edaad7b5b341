"""One training run of a generalist in its directory: data, reports, evaluations, checkpoints, signals."""

import dataclasses
import functools
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

import jax
import rich.console

from podracer import checkpoint, config, metrics, offline, plotting
from podracer.agents.generalist import agent as generalist_agent
from podracer.agents.generalist import batches

from . import display, generalist_evaluation, generalist_tasks, host, interrupts, run_files
from . import generalist as command

if TYPE_CHECKING:
  from .generalist import TrainConfig

CURVE_METRIC = "loss/total"


def run(wanted: "TrainConfig", start: float, signals: interrupts.Interrupts) -> int:
  """Trains until the run is complete or a signal ends it.

  Args:
    wanted: a checked configuration.
    start: `time.perf_counter()` at the beginning of the command.
    signals: entered; a signal it notes ends the run.

  Returns:
    The exit code.

  Raises:
    config.InputError: for data that can't be learnt from.
    report.RunError: if training can't go on, or all checkpoints are bad.
  """
  return _Run(wanted, start, signals).train()


class _Run:
  """The parts of one run, wired together."""

  def __init__(self, wanted: "TrainConfig", start: float, signals: interrupts.Interrupts):
    self.start, self.signals = start, signals
    self.table: Any = None
    rows = wanted.config.sequences_per_task
    # The data first: what is wrong with it is said before anything is begun.
    datasets = generalist_tasks.select(wanted.data, wanted.tasks, wanted.resolved_filters())
    self.tasks = {
      name: generalist_tasks.describe(dataset, wanted.config) for name, dataset in datasets.items()
    }
    self.samplers = {
      name: batches.Sampler(dataset, self.tasks[name].layout, wanted.config)
      for name, dataset in datasets.items()
    }
    devices = host.start_jax(wanted.num_devices, functools.partial(config.even_shares, rows))
    config.check(
      rows % len(devices) == 0,
      f"config.sequences_per_task={rows} is not divisible by the {len(devices)} devices",
    )
    self.wanted = wanted = dataclasses.replace(wanted, num_devices=len(devices))
    layouts = {name: task.layout for name, task in self.tasks.items()}
    self.agent = generalist_agent.make_agent(wanted.config, layouts)
    self.machine = offline.OfflineLearner(
      self.agent, wanted.config, num_updates=wanted.num_updates, devices=devices
    )
    path = pathlib.Path(wanted.workdir)
    if (path / generalist_tasks.TASKS_FILE).is_file() and not wanted.restart:
      generalist_tasks.check_same(wanted.workdir, self.tasks)
    else:
      if wanted.restart and path.is_dir() and any(path.iterdir()):
        print(f"moved the run that was there to {run_files.move_aside(wanted.workdir)}")
      for name, dataset in datasets.items():
        generalist_tasks.write_prompts(
          wanted.workdir, dataset, self.samplers[name], wanted.config.max_prompts
        )
      generalist_tasks.write(wanted.workdir, self.tasks)
    command.write(wanted)
    self.checkpointer = checkpoint.Checkpointer(
      path / "checkpoints", max_to_keep=wanted.max_checkpoints
    )

  def train(self) -> int:
    """See `run`."""
    wanted, machine = self.wanted, self.machine
    restored = self.checkpointer.restore(machine.to_checkpoint(machine.abstract_state()))
    counters = restored.metadata["counters"] if restored else None
    done = counters["updates"] if counters else 0
    with display.Display(wanted.num_updates, done) as screen:
      screen.say(
        f"generalist of {len(self.tasks)} tasks, {self._num_parameters():,} parameters, on "
        f"{wanted.num_devices} x {jax.devices()[0].device_kind}; workdir {wanted.workdir}"
      )
      for name, task in self.tasks.items():
        screen.say(f"  {name}: {task.episodes:,} episodes, {task.layout.step_tokens} tokens a step")
      if restored:
        screen.say(f"resumed at {done:,} updates")
      state = machine.from_checkpoint(restored.items) if restored else machine.init(wanted.seed)
      writer = metrics.MetricsWriter(
        wanted.workdir,
        tensorboard=wanted.tensorboard,
        config=command.to_json(wanted),
        resume_env_steps=counters["env_steps"][0] if counters else 0,
        # There is no return to draw until something is played.
        draw_curve=False,
      )
      try:
        self._loop(state, counters, screen, writer)
      finally:
        writer.close()
        self.checkpointer.close()
    return self.signals.exit_code

  def _loop(
    self,
    state: Any,
    counters: dict[str, Any] | None,
    screen: display.Display,
    writer: metrics.MetricsWriter,
  ) -> None:
    wanted = self.wanted
    first = done = counters["updates"] if counters else 0
    clock = _Clock(wanted, self.signals, done)
    last_save, begin = time.monotonic(), time.perf_counter()
    params = state.learner.params
    reports = offline.learn(
      self.machine,
      state,
      functools.partial(self._batches, wanted.num_updates),
      # The run ends by its updates.
      num_env_steps=sys.maxsize if done < wanted.num_updates else 0,
      count=batches.num_steps,
      updates_per_report=wanted.updates_per_report,
      counters=counters,
      should_report=clock.tick,
    )
    news = None
    for news in reports:
      if done == first:
        screen.say(f"first report {time.perf_counter() - self.start:.1f} s after the command")
      finished = news.updates >= wanted.num_updates
      due = wanted.evaluate_every and news.updates % wanted.evaluate_every == 0
      params, done = news.params, news.updates
      row = {"time": time.time(), **news.metrics}
      if finished or due:
        self._evaluate(params, news.env_steps, news.updates, row)
      writer.write(row)
      self._show(screen, row)
      now = time.monotonic()
      if finished or self.signals.requested or now - last_save >= wanted.checkpoint_every_seconds:
        writer.flush()
        self.checkpointer.save(news.updates, news.items, {"counters": news.counters})
        last_save = now
      if finished or self.signals.requested:
        break
    self.checkpointer.wait()
    if self.signals.requested:
      screen.say(f"saved at {done:,} updates; the same command goes on from there")
      return
    if news is None:
      screen.say(
        f"nothing to do: the run already has {done:,} of {wanted.num_updates:,} updates; more with "
        "--num_updates"
      )
      if self._unevaluated(counters):
        self._evaluate(params, counters["env_steps"][0] if counters else 0, done, {})
    self._say_end(screen, done - first, time.perf_counter() - begin, writer)

  def _batches(self, num_updates: int, start: int) -> Any:
    wanted = self.wanted
    rows = wanted.config.sequences_per_task
    return batches.batches(self.samplers, rows, wanted.seed, num_updates, start)

  def _num_parameters(self) -> int:
    shapes = jax.eval_shape(self.agent.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  def _unevaluated(self, counters: dict[str, Any] | None) -> bool:
    """Returns True where a signal ended the evaluation of the newest checkpoint."""
    if counters is None:
      return False
    return run_files.evaluated_env_steps(self.wanted.workdir) != counters["env_steps"][0]

  def _evaluate(self, params: Any, env_steps: int, updates: int, row: dict[str, Any]) -> None:
    """Plays all tasks, adds the results to `row` and writes evaluation.json, unless a signal comes."""
    wanted = self.wanted
    if not wanted.evaluate_episodes:
      return
    # One device plays; the parameters are the same on each.
    params = jax.tree.map(lambda x: x.addressable_data(0), params)
    by_task = {}
    for name, task in self.tasks.items():
      actors = [
        generalist_evaluation.make_actor(wanted, self.tasks, name, params, variant=variant)
        for variant in generalist_evaluation.some(task.variants)
      ]
      played = generalist_evaluation.play(
        actors,
        wanted.evaluate_episodes,
        1,
        jax.random.fold_in(jax.random.key(wanted.seed), updates),
        not wanted.config.histories,
        lambda: self.signals.requested,
      )
      if played is None:
        return
      by_task[name] = generalist_evaluation.summary(task, played)
    for name, found in by_task.items():
      row[f"evaluation/{name}/return_mean"] = found["return_mean"]
      row[f"evaluation/{name}/percent_of_expert"] = found["percent_of_expert"]
    found = generalist_evaluation.together(by_task)
    row["evaluation/percent_of_expert_mean"] = found["percent_of_expert_mean"]
    mode = "sample" if wanted.config.histories else "greedy"
    run_files.write_evaluation(
      wanted.workdir, env_steps, {"updates": updates, "mode": mode, **found}
    )
    self.table = generalist_evaluation.make_table(by_task)

  def _show(self, screen: display.Display, row: dict[str, Any]) -> None:
    """Shows a report, in updates in place of environment steps."""
    speed = row["steps_per_second"] * row["updates"] / max(1, row["env_steps"])
    note = f"loss {row[CURVE_METRIC]:.3f}  {row['steps_per_second']:,.0f} recorded steps/s"
    screen.update({"env_steps": row["updates"], "steps_per_second": speed}, note)

  def _say_end(
    self, screen: display.Display, updates: int, seconds: float, writer: metrics.MetricsWriter
  ) -> None:
    workdir = self.wanted.workdir
    if updates:
      screen.say(f"done: {updates:,} updates in {seconds:.1f} s, the evaluation with them")
    if self.table is not None:
      rich.console.Console(highlight=False).print(self.table)
    writer.flush()
    try:
      curve = pathlib.Path(workdir) / plotting.CURVE_FILE
      plotting.plot_runs([workdir], curve, CURVE_METRIC)
    except (OSError, plotting.NoPointsError) as error:
      screen.say(f"no learning curve: {error}")
    screen.say(f"results: {workdir}/  {plotting.CURVE_FILE}  metrics.jsonl  checkpoints/")
    screen.say("next:")
    screen.say(f"  podracer generalist evaluate --workdir={workdir} --episodes=1000")


class _Clock:
  """Says after each update whether a report is due: at evaluations, at the end, and on a signal."""

  def __init__(self, wanted: "TrainConfig", signals: interrupts.Interrupts, updates: int):
    self._wanted, self._signals, self._updates = wanted, signals, updates

  def tick(self) -> bool:
    """Counts an update; see `offline.learn`."""
    self._updates += 1
    every = self._wanted.evaluate_every
    is_due = bool(every) and self._updates % every == 0
    return is_due or self._updates >= self._wanted.num_updates or self._signals.requested
