"""Expert data: what recording costs, how fast it is written and read, and whether memory grows.

All in turn in one process, as ratios to acting or training alone, to bare ArrayRecord with the bytes of
the same records, and to Minari's HDF5. Prints medians and ranges.

python benchmarks/data.py --quick
"""

import argparse
import contextlib
import functools
import itertools
import os
import pathlib
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from unittest import mock

import gymnasium
import jax
import jax.numpy as jnp
import minari
import numpy as np

from podracer import agent, anakin, config, data, environments, files, sebulba, types
from podracer.agents import impala
from podracer.anakin import machine as machine_lib
from podracer.anakin import recording as anakin_recording
from podracer.data import episode, layout, reader, recorder, schema, shards
from podracer.sebulba import recording as sebulba_recording

BREAKOUT, PONG = "gymnax:Breakout-MinAtar", "envpool:Pong-v5"
# With the step that resets, 256 ticks an episode: every measurement of Pong has as many ends.
PONG_STEPS, PONG_UNROLL, PONG_THREADS = 255, 32, 2
LENGTH, WINDOW = 128, 64
SIZES = {"num_environments": 64, "size": 4, "repetitions": 7, "memory_steps": 1_000_000}
QUICK = {"size": 1, "repetitions": 3, "memory_steps": 100_000}


class Task:
  """An agent in an environment, and what is needed to record it."""

  def __init__(self, env: str, hidden: tuple[int, ...] = (64, 64), torso: str = "auto", **options):
    network = config.NetworkConfig(torso=torso, hidden_sizes=hidden)
    self.environment, self.name = environments.make(env, **options), schema.task_id(env)
    self.config = impala.ImpalaConfig(network=network)
    self.agent = impala.make_agent(self.config, self.environment.spec)
    self.params = jax.jit(self.agent.init)(jax.random.key(0))
    self.stack = getattr(self.environment, "frame_stack", 1)
    output, _ = agent.output_shapes(self.agent, self.environment.spec, 1)
    fields = schema.make_schema(self.environment.spec, output, self.stack)
    self.writer = functools.partial(data.Writer, task=self.name, schema=fields, background=True)

  def recorder(self, sink, num_slots: int, quotas=None) -> recorder.Recorder:
    return recorder.Recorder(
      sink,
      recorder.common_metadata(task=self.name, teacher_checkpoint="0" * 64, frame_stack=self.stack),
      [recorder.Slot(i, i) for i in range(num_slots)],
      name=lambda slot, found: f"{self.name}-impala-sample-{slot.slot:05d}-{found.number:06d}",
      quotas=quotas,
      frame_stack=self.stack,
    )

  def unrolls(self, num_environments: int, length: int):
    module, devices = anakin_recording, jax.devices()
    machine_config = anakin.AnakinConfig(unroll_length=length)
    if hasattr(self.environment, "make"):
      module, devices = sebulba_recording, devices[:1]
      machine_config = sebulba.SebulbaConfig(unroll_length=length, environment_threads=1)
    arguments = (self.agent, self.environment, self.params, machine_config)
    seeds, key = range(num_environments), jax.random.key(1)
    return module.unrolls(*arguments, seeds=seeds, key=key, devices=devices)


def speed(call, work: float) -> float:
  begin = time.perf_counter()
  call()
  return work / (time.perf_counter() - begin)


def compare(calls, repetitions: int, unit: str) -> None:
  """Calls all in turn, each of which returns a speed; prints them, and the first over the others."""
  found = {name: [] for name in calls}
  for i in range(repetitions):
    # Every other time backwards, for what comes second may find the cores warm, or busy.
    for name in list(calls)[:: -1 if i % 2 else 1]:
      found[name].append(calls[name]())
  (first, speeds), *others = list(found.items())
  found |= {f"{first} / {n}": list(np.divide(speeds, limit)) for n, limit in others}
  for name, each in found.items():
    text = f"{statistics.median(each):12,.2f} ({min(each):,.2f} .. {max(each):,.2f})"
    print(f"  {name:24} {text} {'' if '/' in name else unit}")


def recording(task: Task, flags: argparse.Namespace, length: int, count: int, skipped: int) -> None:
  """Times `count` unrolls that are recorded, to the commit, and as many that stay where they are."""
  with tempfile.TemporaryDirectory() as root, contextlib.closing(task.writer(root)) as writer:
    writing = task.recorder(writer, flags.num_environments)
    recorded, bare = (task.unrolls(flags.num_environments, length) for _ in range(2))

    def play(unrolls, use, finish) -> float:
      for n, (first_slot, trajectory) in enumerate(itertools.islice(unrolls, skipped + count)):
        if n == skipped:  # Those before were there before the clock was.
          finish()
          begin = time.perf_counter()
        use(trajectory, first_slot)
      finish()
      return count * trajectory.timesteps.reward[1:].size / (time.perf_counter() - begin)

    def act() -> float:
      # The same program, waited for: nobody takes what it makes to the host.
      wait = jax.block_until_ready
      with mock.patch.object(jax, "device_get", wait), mock.patch.object(types, "to_numpy", wait):
        return play(bare, lambda *_: None, lambda: None)

    calls = {"recording": lambda: play(recorded, writing.add, writer.commit), "acting": act}
    for call in calls.values():
      call()  # Compiles.
    compare(calls, flags.repetitions, "steps/s")
    recorded.close()
    bare.close()
    mean = writing.num_steps / max(1, writing.num_episodes)
    print(f"  {writing.num_episodes:,} episodes of {mean:.0f} steps; goal 0.9")


def follow_ball(act):
  """Returns `act` with the action of a player of Breakout who never loses the ball."""

  def act_and_follow(params, key, timestep, *arguments):
    output, state = act(params, key, timestep, *arguments)
    paddle, ball, trail = (
      timestep.observation[..., i].max(axis=1).argmax(axis=-1) for i in range(3)
    )
    left_or_right = jnp.sign(2 * ball - trail - paddle)
    action = jnp.where(left_or_right < 0, 1, 2 * left_or_right)
    return output._replace(action=action.astype(output.action.dtype)), state

  return act_and_follow


def breakout(flags: argparse.Namespace) -> None:
  """Records short episodes, of a policy that knows nothing, and then long ones, at the same cost to act."""
  task = Task(BREAKOUT)
  recording(task, flags, LENGTH, 8 * flags.size, skipped=2)
  task.agent = task.agent._replace(act=follow_ball(task.agent.act))
  recording(task, flags, LENGTH, 8 * flags.size, skipped=2)


def pong(flags: argparse.Namespace) -> None:
  task = Task(PONG, (16,), "mlp", max_episode_steps=PONG_STEPS)
  count = flags.size * PONG_THREADS * (PONG_STEPS + 1) // PONG_UNROLL
  # Of each thread, one may wait and one be under way.
  recording(task, flags, PONG_UNROLL, count, skipped=2 * PONG_THREADS)


def training(flags: argparse.Namespace) -> None:
  task = Task(BREAKOUT)
  machine_config = anakin.AnakinConfig(flags.num_environments, LENGTH, 4 * flags.size)
  arguments = (task.agent, task.environment, task.config, machine_config)
  with tempfile.TemporaryDirectory() as root, contextlib.closing(task.writer(root)) as writer:

    def speeds(share: float):
      machine = machine_lib.Anakin(*arguments, num_env_steps=10**9, record=share)
      taking = task.recorder(writer, len(machine.recorded_slots))
      add = (lambda trajectory, slot, _: taking.add(trajectory, slot)) if share else None
      reports = machine_lib.run(machine, machine.init(0), num_env_steps=10**9, record=add)
      done = 0
      while True:
        begin, before = time.perf_counter(), done
        done = next(reports).env_steps
        writer.commit()  # As at a checkpoint.
        yield (done - before) / (time.perf_counter() - begin)

    shares = {"record=0.05": speeds(0.05), "record=0": speeds(0.0)}
    calls = {name: functools.partial(next, found) for name, found in shares.items()}
    for call in calls.values():
      call()  # Compiles.
    compare(calls, flags.repetitions, "steps/s")


def memory(flags: argparse.Namespace) -> None:
  task, peaks, begin = Task("gymnax:CartPole-v1"), [], time.perf_counter()
  number = flags.memory_steps // (64 * flags.num_environments)
  with tempfile.TemporaryDirectory() as root, contextlib.closing(task.writer(root)) as writer:
    writing = task.recorder(writer, flags.num_environments)
    unrolls = itertools.islice(task.unrolls(flags.num_environments, 64), number)
    for n, (_, trajectory) in enumerate(unrolls, 1):
      writing.add(trajectory)
      if n in (number // 10, number):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
  seconds = time.perf_counter() - begin
  low, high = peaks
  print(f"  {flags.memory_steps:,} steps, {writing.num_episodes:,} episodes, {seconds:.0f} s")
  print(f"  peak RSS {low:.1f} MiB at 10 %, {high:.1f} at 100 %: {high / low:.4f}")


class Kept(list):
  write = list.append


def to_minari(steps: dict[str, np.ndarray]):
  names = ("observation", "action", "reward", "is_first", "is_last", "is_terminal")
  observation, action, reward, _, last, terminal = (steps[name] for name in names)
  infos = {name: value for name, value in steps.items() if name not in names}
  arrays = (observation, action[:-1], reward[:-1], (last & terminal)[1:], (last & ~terminal)[1:])
  return minari.data_collector.EpisodeBuffer(None, None, None, *arrays, infos)


def storage(flags: argparse.Namespace) -> None:
  """Writes and reads whole episodes of Pong."""
  task, kept, number = Task(PONG, (16,), "mlp"), Kept(), 4 * flags.size
  playing, unrolls = task.recorder(kept, number, [1] * number), task.unrolls(number, PONG_UNROLL)
  while not playing.is_done:
    first_slot, trajectory = next(unrolls)
    playing.add(trajectory, first_slot)
  unrolls.close()
  lengths = [one.num_steps for one in kept]
  megabytes = sum(value.nbytes for one in kept for value in one.steps.values()) / 1e6
  print(f"  {number} episodes of Pong, {sum(lengths):,} steps, {megabytes:.0f} MB of arrays")
  buffers = [to_minari(one.steps) for one in kept]
  pictures = gymnasium.spaces.Box(0, 255, buffers[0].observations.shape[1:], np.uint8)
  actions = gymnasium.spaces.Discrete(task.environment.spec.action.num_actions)
  spaces = {"observation_space": pictures, "action_space": actions}
  warnings.filterwarnings("ignore", module="minari")  # It wants an author.
  folder = tempfile.TemporaryDirectory()
  root = pathlib.Path(folder.name)
  os.environ["MINARI_DATASETS_PATH"] = folder.name

  def write(out: pathlib.Path) -> None:
    with contextlib.closing(task.writer(out, background=False)) as writer:
      [writer.write(one) for one in kept]

  write(root / "read")
  data.finalise(root / "read")
  dataset = data.open(root / "read")[task.name]
  place, rng = dataset.index.place, np.random.default_rng(0)
  opened = [reader.open_shard(dataset.folder / layout.SHARDS / s) for s in dataset.index.shards]
  records = [record for file in opened for record in file.read(range(file.num_records()))]

  def write_raw(out: pathlib.Path) -> None:
    out.mkdir()
    file = shards.array_record().ArrayRecordWriter(str(out / "raw"), shards.OPTIONS)
    [file.write(record) for record in records]
    file.close()
    files.sync(out / "raw")

  def write_minari(out: pathlib.Path) -> None:
    minari.create_dataset_from_buffers(out.name, buffers, **spaces, jpeg_encoding=False)
    files.sync(out / "data" / "main_data.hdf5")

  print(" writing; array_record has its records made, minari compresses nothing")
  writes = {"podracer": write, "array_record": write_raw, "minari-v0": write_minari}

  def write_anew(name: str) -> float:
    shutil.rmtree(root / name, ignore_errors=True)
    return speed(lambda: writes[name](root / name), megabytes)

  compare({name: functools.partial(write_anew, name) for name in writes}, flags.repetitions, "MB/s")
  for name in writes:
    size = sum(path.stat().st_size for path in (root / name).rglob("*") if path.is_file())
    print(f"  {name}: {size / sum(lengths):,.0f} bytes a step on the disk")
  loaded = minari.load_dataset("minari-v0")

  def read_raw(i: int, start: int) -> None:
    last = int(place.num_segments[i]) - 1
    first, end = (min(t // episode.SEGMENT_STEPS, last) for t in (start, start + WINDOW - 1))
    opened[place.shard[i]].read([int(place.record[i]) + n for n in range(first, end + 1)])

  print(f" reading {WINDOW} steps at random; array_record decodes nothing")
  reads = {
    "podracer": lambda i, start: dataset.window(i, start, WINDOW)["observation"],
    "array_record": read_raw,
    "minari": lambda i, start: loaded[i].observations[start : start + WINDOW],
  }
  assert np.array_equal(reads["podracer"](1, 230), reads["minari"](1, 230))
  chosen = rng.integers(number, size=32 * flags.size).tolist()
  windows = [(i, int(rng.integers(lengths[i] - WINDOW))) for i in chosen]
  compare(
    {n: lambda n=n: speed(lambda: [reads[n](*w) for w in windows], len(windows)) for n in reads},
    *(flags.repetitions, "windows/s"),
  )
  folder.cleanup()


# Memory first: a peak is that of the process.
PARTS = {part.__name__: part for part in (memory, breakout, training, pong, storage)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
  parser.add_argument("--quick", action="store_true", help="about a minute on two idle cores")
  for name, default in SIZES.items():
    parser.add_argument(f"--{name}", type=int, default=default)
  flags = parser.parse_args()
  if flags.quick:
    vars(flags).update(QUICK)
  print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
  for name in [name for name in PARTS if name in flags.only]:
    print(f"{name}; load {os.getloadavg()[0]:.1f}", flush=True)
    PARTS[name](flags)


if __name__ == "__main__":
  main()
