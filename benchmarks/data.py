"""Expert data: what recording costs, how fast it is written and read again, and whether memory grows.

Measured in turn in one process, as ratios to acting or training without recording, to the bytes of the
same records in bare ArrayRecord, and to Minari's HDF5. Prints medians and ranges.

python benchmarks/data.py --quick
"""

import argparse
import itertools
import os
import pathlib
import resource
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np

from podracer import agent as agent_lib
from podracer import anakin, data, environments, sebulba, types
from podracer import config as config_lib
from podracer.agents import impala
from podracer.anakin import machine as machine_lib
from podracer.anakin import recording as anakin_recording
from podracer.data import episode as episode_lib
from podracer.data import example, export, files, layout, reader, recorder, schema, shards
from podracer.sebulba import recording as sebulba_recording

WINDOW = 64
# With the step that resets, 256 ticks an episode: each measurement of Pong has the same number of ends.
PONG_STEPS, PONG_UNROLL = 255, 32


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
  parser.add_argument("--num_environments", type=int, default=64)
  parser.add_argument("--unroll_length", type=int, default=128, help="of Breakout")
  parser.add_argument("--unrolls", type=int, default=16, help="of Breakout in one measurement")
  parser.add_argument("--updates", type=int, default=16, help="of training in one measurement")
  parser.add_argument("--train_steps", type=int, default=0, help="before Breakout is played")
  parser.add_argument("--ticks", type=int, default=2, help="Pong's steps in one measurement / 256")
  parser.add_argument("--episodes", type=int, default=32, help="of Pong, whole, that are written")
  parser.add_argument("--memory_steps", type=int, default=1_000_000)
  parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of reading")
  parser.add_argument("--repetitions", type=int, default=7)
  parser.add_argument("--quick", action="store_true", help="about a minute, on two idle cores")
  flags = parser.parse_args()
  if flags.quick:
    flags.unrolls, flags.updates, flags.ticks, flags.episodes = 8, 4, 1, 4
    flags.memory_steps, flags.seconds, flags.repetitions = 100_000, 0.5, 3
  return flags


class Task:
  """An agent in an environment, and what is needed to record it."""

  def __init__(self, env: str, network: config_lib.NetworkConfig | None = None, **options):
    self.environment = environments.make(env, **options)
    self.config = impala.ImpalaConfig(network=network or config_lib.NetworkConfig())
    self.spec = self.environment.spec
    self.agent = impala.make_agent(self.config, self.spec)
    self.params = jax.jit(self.agent.init)(jax.random.key(0))
    self.name = schema.task_id(env)
    self.frame_stack = getattr(self.environment, "frame_stack", 1)
    output, _ = agent_lib.output_shapes(self.agent, self.spec, 1)
    self.schema = schema.make_schema(self.spec, output, self.frame_stack)
    self.metadata = recorder.common_metadata(
      **{"task": self.name, "env_id": env, "env_kwargs": "{}", "teacher_algo": "impala"},
      **{"teacher_id": "impala-0123456789ab", "teacher_checkpoint": "0" * 64},
      **{"phase": "eval", "policy_mode": "sample", "frame_stack": self.frame_stack},
    )

  def writer(self, root, background: bool = True) -> data.Writer:
    return data.Writer(root, self.name, self.schema, background=background)

  def recorder(self, sink, num_slots: int, quotas=None) -> recorder.Recorder:
    return recorder.Recorder(
      sink,
      self.metadata,
      [recorder.Slot(i, i) for i in range(num_slots)],
      name=lambda slot, found: f"{self.name}-sample-{slot.slot:05d}-{found.number:06d}",
      quotas=quotas,
      frame_stack=self.frame_stack,
    )

  def unrolls(self, module, machine_config, num_environments: int, devices=None):
    return module.unrolls(
      self.agent,
      self.environment,
      self.params,
      machine_config,
      seeds=range(num_environments),
      key=jax.random.key(1),
      devices=devices,
    )


def pong_unrolls(task: Task, num_environments: int):
  machine_config = sebulba.SebulbaConfig(
    num_environments=num_environments, unroll_length=PONG_UNROLL, environment_threads=1
  )
  return task.unrolls(sebulba_recording, machine_config, num_environments, jax.devices()[:1])


def say(name: str, values, unit: str = "") -> None:
  low, high = min(values), max(values)
  print(f"  {name:34} {statistics.median(values):12,.3f} ({low:,.3f} .. {high:,.3f}) {unit}")


def compare(calls, repetitions: int, unit: str, limits) -> dict[str, list[float]]:
  """Calls all in turn, each of which returns a speed, and prints them and their ratios to `limits`."""
  found: dict[str, list[float]] = {name: [] for name in calls}
  for i in range(repetitions):
    # Every other time backwards, for whoever is second may find the cores warm or busy.
    for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
      found[name].append(calls[name]())
  for name, values in found.items():
    say(name, values, unit)
  for name, limit in limits:
    say(f"{name} / {limit}", [a / b for a, b in zip(found[name], found[limit], strict=True)])
  return found


def recording(task: Task, make_unrolls, flags, count: int, skipped: int) -> None:
  """Times `count` unrolls that are recorded, to the commit, and as many that stay where they are."""
  with tempfile.TemporaryDirectory() as root:
    writer = task.writer(root)
    writing = task.recorder(writer, flags.num_environments)
    recorded, bare = make_unrolls(), make_unrolls()

    def play(unrolls, num_unrolls: int, use) -> int:
      steps = 0
      for first_slot, trajectory in itertools.islice(unrolls, num_unrolls):
        use(trajectory, first_slot)
        steps += trajectory.timesteps.reward[1:].size
      return steps

    def record() -> float:
      play(recorded, skipped, writing.add)  # What was there before the clock was.
      writer.commit()
      begin = time.perf_counter()
      steps = play(recorded, count, writing.add)
      writer.commit()
      return steps / (time.perf_counter() - begin)

    def act() -> float:
      # The same program, waited for: nothing else asks for what it makes.
      waits = mock.patch.object(jax, "device_get", jax.block_until_ready)
      waits_too = mock.patch.object(types, "to_numpy", jax.block_until_ready)
      with waits, waits_too:
        play(bare, skipped, lambda *_: None)
        begin = time.perf_counter()
        steps = play(bare, count, lambda *_: None)
        return steps / (time.perf_counter() - begin)

    record(), act()
    calls = {"acting, not fetched": act, "recording, committed": record}
    compare(calls, flags.repetitions, "steps/s", [("recording, committed", "acting, not fetched")])
    recorded.close(), bare.close()
    writer.close()
    length = writing.num_steps / max(1, writing.num_episodes)
    print(f"  {writing.num_episodes:,} episodes of {length:.0f} steps; goal 0.9")


def record_anakin(flags: argparse.Namespace) -> None:
  task = Task("gymnax:Breakout-MinAtar")
  machine_config = anakin.AnakinConfig(flags.num_environments, flags.unroll_length)
  if flags.train_steps:
    machine = make_machine(task, flags, 0.0)
    for news in machine_lib.run(machine, machine.init(0), num_env_steps=flags.train_steps):
      task.params = jax.device_get(news.params)
  recording(
    task,
    lambda: task.unrolls(anakin_recording, machine_config, flags.num_environments),
    flags,
    flags.unrolls,
    skipped=2,
  )


def record_sebulba(flags: argparse.Namespace) -> None:
  network = config_lib.NetworkConfig(torso="mlp", hidden_sizes=(16,))
  task = Task("envpool:Pong-v5", network, max_episode_steps=PONG_STEPS)
  count = flags.ticks * 2 * (PONG_STEPS + 1) // PONG_UNROLL  # Of two actor threads.
  # Of each thread one may wait and one be under way.
  recording(task, lambda: pong_unrolls(task, flags.num_environments), flags, count, skipped=4)


def make_machine(task: Task, flags: argparse.Namespace, record: float) -> machine_lib.Anakin:
  machine_config = anakin.AnakinConfig(flags.num_environments, flags.unroll_length, flags.updates)
  return machine_lib.Anakin(
    task.agent,
    task.environment,
    task.config,
    machine_config,
    num_env_steps=10**9,
    record=record,
  )


def training(flags: argparse.Namespace) -> None:
  task = Task("gymnax:Breakout-MinAtar")
  with tempfile.TemporaryDirectory() as root:
    writer = task.writer(root)

    def make(share: float):
      machine = make_machine(task, flags, share)
      add = None
      if share:
        writing = task.recorder(writer, machine.recorded_slots)
        add = lambda trajectory, slot, steps: writing.add(trajectory, slot, teacher_step=steps)  # noqa: E731
      reports = machine_lib.run(machine, machine.init(0), num_env_steps=10**9, record=add)
      last = [next(reports).env_steps]

      def call() -> float:
        begin = time.perf_counter()
        steps = next(reports).env_steps
        writer.commit()  # As at a checkpoint.
        last.append(steps)
        return (steps - last[-2]) / (time.perf_counter() - begin)

      return call

    calls = {"record=0": make(0.0), "record=0.05": make(0.05)}
    compare(calls, flags.repetitions, "steps/s", [("record=0.05", "record=0")])
    writer.close()


class Kept(list):
  """A sink that keeps episodes."""

  def write(self, episode: episode_lib.Episode) -> bool:
    self.append(episode)
    return True


def storage(flags: argparse.Namespace) -> None:
  """Writes and reads the same whole episodes of Pong in four ways."""
  raise NotImplementedError
