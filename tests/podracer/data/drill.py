"""Writers that are killed, which a test starts as a process of its own: python drill.py <drill> <root> ...

They are forks of a process that has imported everything, and so start in milliseconds.
"""

import contextlib
import os
import pathlib
import random
import resource
import signal
import sys
import time

import numpy as np

from podracer import config, files
from podracer.data import episode, schema, shards, writer

TASK = "toy"
SCHEMA = schema.Schema(
  (
    schema.Field("action", (), "int32"),
    schema.Field("is_last", (), "bool"),
    schema.Field("observation", (8, 8), "uint8"),
    schema.Field("reward", (), "float32"),
  )
)


def make_episode(writer_id, number):
  """The same whenever it is played; every third is of two segments."""
  rng = np.random.default_rng([int(writer_id[1:]), number])
  length = 300 if number % 3 == 2 else 1 + number % 7
  steps = {
    "action": rng.integers(0, 4, length + 1).astype(np.int32),
    "is_last": np.arange(length + 1) == length,
    "observation": rng.integers(0, 256, (length + 1, 8, 8)).astype(np.uint8),
    "reward": rng.normal(size=length + 1).astype(np.float32),
  }
  metadata = {name: kind() for name, kind in episode.METADATA.items()}
  metadata |= {"episode_id": f"{writer_id}-{number}", "task": TASK, "episode_length": length}
  return episode.Episode(steps, metadata)


def fork(function, *args):
  """Runs a function in another process; returns its id."""
  pid = os.fork()
  if pid == 0:
    try:
      function(*args)
    except BaseException:
      import traceback

      traceback.print_exc()
      os._exit(1)
    os._exit(0)
  return pid


def record(root, writer_id, seed, enough):
  """Writes, with commits now and then, episodes 0, 1, 2, ... until the file `enough` is there."""
  rng = random.Random(seed)
  made = writer.Writer(root, TASK, SCHEMA, writer_id=writer_id, background=seed % 2 == 0)
  number = 0
  while not enough.exists() or number < 20:
    made.write(make_episode(writer_id, number))
    number += 1
    if rng.random() < 0.3:
      made.commit()
  made.close()


def random_kills(root, num_kills, name):
  """Three writers, killed at random moments and begun again, which then come to their end."""
  rng = random.Random(num_kills)
  enough = root.parent / "enough"
  writers = [f"w{i:03d}" for i in range(3)]
  running = {w: fork(record, root, w, rng.randrange(1000), enough) for w in writers}
  for _ in range(num_kills):
    time.sleep(rng.random() * 0.08)
    killed = rng.choice(writers)
    os.kill(running[killed], getattr(signal, name))
    _, status = os.waitpid(running[killed], 0)
    assert os.WTERMSIG(status) == getattr(signal, name), status
    running[killed] = fork(record, root, killed, rng.randrange(1000), enough)
  enough.touch()
  for pid in running.values():
    _, status = os.waitpid(pid, 0)
    assert status == 0


def write_some(root, numbers, writer_id="w000", **options):
  """Writes episodes in two commits."""
  made = writer.Writer(root, TASK, SCHEMA, writer_id=writer_id, **options)
  for i in numbers:
    made.write(make_episode(writer_id, i))
    if i == 2:
      made.commit()
  made.close()


def killed_at(root, point):
  """Writes and is killed right before the call number `point` of those that touch the disk."""
  count = 0

  def watch(module, name):
    original = getattr(module, name)

    def watched(*args, **kwargs):
      nonlocal count
      if count == point:
        os.kill(os.getpid(), signal.SIGKILL)
      count += 1
      return original(*args, **kwargs)

    setattr(module, name, watched)

  for module, name in (
    (os, "replace"),
    (os, "fsync"),
    (os, "link"),
    (files, "sha256"),
    (shards, "num_records"),
    (pathlib.Path, "unlink"),
    (pathlib.Path, "write_bytes"),
    (pathlib.Path, "mkdir"),
  ):
    watch(module, name)
  write_some(root, range(5))


def every_point(root):
  """Kills a writer before each of its calls in turn; each time another goes on from there."""
  point, status = 0, signal.SIGKILL
  while status == signal.SIGKILL:
    folder = root / f"{point:03d}"
    _, status = os.waitpid(fork(killed_at, folder, point), 0)
    assert status in (signal.SIGKILL, 0), status
    _, restarted = os.waitpid(fork(write_some, folder, range(5)), 0)
    assert restarted == 0
    point += 1
  print(point)


def full_disk(root, background):
  """Writes what does not fit; prints the exception; the limit is that of a file."""
  made = writer.Writer(root, TASK, SCHEMA, background=background == "background")
  for i in range(3):
    made.write(make_episode("w000", i))
  made.commit()
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
  for i in range(3, 40):
    made.write(make_episode("w000", i))
  for attempt in (made.commit, lambda: made.write(make_episode("w000", 50)), made.close):
    try:
      attempt()
    except writer.WriteError as error:
      print(error, "|", type(error.__cause__).__name__)
  print("w000-2" in made, "w000-3" in made)


def locked(root):
  """A writer id is that of one process; a fork of it that lives on does not keep it."""
  made = writer.Writer(root, TASK, SCHEMA)
  os.waitpid(fork(print_refusal, root), 0)
  read_end, write_end = os.pipe()
  orphan = fork(os.read, read_end, 1)
  made.close()
  writer.Writer(root, TASK, SCHEMA).close()
  os.write(write_end, b"x")
  os.waitpid(orphan, 0)


def print_refusal(root):
  """Prints why there can't be a second writer of an id."""
  writer._at_work.clear()  # As in a process that was started by itself.
  with contextlib.suppress(config.InputError):
    writer.Writer(root, TASK, SCHEMA)
    raise AssertionError("two writers have the same id")
  print("refused", flush=True)


if __name__ == "__main__":
  drill, folder, *arguments = sys.argv[1:]
  globals()[drill](pathlib.Path(folder), *(int(arg) if arg.isdigit() else arg for arg in arguments))
