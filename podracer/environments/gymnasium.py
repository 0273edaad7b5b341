"""gymnasium: any registered environment, or a function of your own that makes one, in processes.

Towers et al. (2024), *Gymnasium: A Standard Interface for Reinforcement Learning Environments*. A batch
is shared out over worker processes, each of which steps its share as a `gymnasium.vector.SyncVectorEnv`
with resets on the step after the last. Observations come back through shared memory.
"""

import contextlib
import importlib
import importlib.util
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import shared_memory
from typing import Any

import numpy as np

from podracer import config

LIBRARY = "gymnasium"
EXTRA = "gymnasium"
IS_HOST = True
TAKES_FUNCTIONS = True
"""`gymnasium:package.module:function` is an environment too."""
_POLL_SECONDS = 1.0


def __getattr__(name: str) -> Any:
  if name == "NAMES":
    return _names()
  raise AttributeError(f"module {__name__} has no attribute {name}")


def _names() -> tuple[str, ...]:
  if importlib.util.find_spec(LIBRARY) is None:
    return ()
  import gymnasium

  # The plug-ins of gymnasium that are no environments of their own.
  return tuple(sorted(name for name in gymnasium.registry if not name.startswith("GymV")))


def make(name: str, **options: Any) -> Any:
  """Builds the factory of a gymnasium environment.

  Args:
    name: a registered id; `package.module:id` where importing the module registers it; or
      `package.module:function` of a function that returns a `gymnasium.Env`.
    **options: arguments of the environment, or of the function.

  Returns:
    A `host_environment.HostFactory`.

  Raises:
    InputError: for an environment that can't be made, and spaces that are not supported.
  """
  from podracer import host_environment, types
  from podracer.environments import _spaces

  full_name = f"gymnasium:{name}"
  try:
    made = _make_one(name, options, None)
  except config.InputError:
    raise
  except Exception as error:
    reason = (str(error).splitlines() or [""])[0]
    raise config.InputError(
      f"environment {full_name} cannot be made: {type(error).__name__}: {reason}"
    ) from error
  space, action_space = made.observation_space, made.action_space
  can_render = "rgb_array" in made.metadata.get("render_modes", ())
  frames_per_second = int(made.metadata.get("render_fps") or 30)
  made.close()
  spec = types.EnvironmentSpec(
    name=full_name,
    observation=_spaces.observation_spec(full_name, space),
    action=_spaces.action_spec(full_name, action_space),
  )

  def make_batch(seeds: Sequence[int], host: host_environment.HostOptions) -> GymnasiumEnvironment:
    return GymnasiumEnvironment(spec, action_space, name, options, seeds, host)

  return host_environment.HostFactory(
    spec=spec,
    make=make_batch,
    can_render=can_render,
    frames_per_second=frames_per_second,
  )


def _make_one(name: str, options: dict[str, Any], render_mode: str | None) -> Any:
  """Makes one environment, in whichever process."""
  import gymnasium

  extra: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
  if name in gymnasium.registry or ":" not in name:
    return gymnasium.make(name, **options, **extra)
  module_name, _, function_name = name.rpartition(":")
  module = importlib.import_module(module_name)
  if function_name in gymnasium.registry:
    # gymnasium's own `module:id`: importing the module has registered it.
    return gymnasium.make(function_name, **options, **extra)
  function = getattr(module, function_name, None)
  if not callable(function):
    raise config.InputError(f"module {module_name} has no function {function_name}")
  made = function(**options)
  if not isinstance(made, gymnasium.Env):
    raise config.InputError(
      f"environment gymnasium:{name}: {function_name}() returned {type(made).__name__}, not a "
      "gymnasium.Env"
    )
  return made


class GymnasiumEnvironment:
  """Worker processes as a `host_environment.HostEnvironment`."""

  def __init__(
    self,
    spec: Any,
    action_space: Any,
    name: str,
    options: dict[str, Any],
    seeds: Sequence[int],
    host: Any,
  ):
    """Starts the workers.

    Args:
      spec: of one environment.
      action_space: gymnasium's.
      name: as in `make`.
      options: as in `make`.
      seeds: one an environment.
      host: `host_environment.HostOptions`.
    """
    self.spec = spec
    self.num_environments = len(seeds)
    self._action_space = action_space
    self._timeout_seconds = host.timeout_seconds
    num_workers = min(host.num_threads or os.cpu_count() or 1, len(seeds))
    # [B] -> shares that differ by one at most
    bounds = np.linspace(0, len(seeds), num_workers + 1).astype(int)
    self._shares = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    layout = _layout(spec.observation)
    self._was_last = np.zeros((len(seeds),), bool)
    # Not forked: a child of a process in which JAX runs threads may hang.
    context = multiprocessing.get_context("spawn")
    self._workers: list[Any] = []
    self._pipes: list[multiprocessing.connection.Connection] = []
    self._arena = _Arena.create(layout, len(seeds))
    try:
      for share in self._shares:
        job = (name, options, layout, self._arena.name, len(seeds), share, list(seeds[share]))
        self._start(context, pickle.dumps(job), render=host.render and share.start == 0)
    except BaseException:
      self.close()
      raise

  def _start(self, context: Any, job: bytes, render: bool) -> None:
    ours, theirs = context.Pipe()
    self._pipes.append(ours)
    try:
      worker = context.Process(target=_work, args=(theirs, job, render), daemon=True)
      worker.start()
    finally:
      theirs.close()
    self._workers.append(worker)

  def reset(self) -> Any:
    """See HostEnvironment; the seeds are for the first one, a second goes on from there."""
    for worker in range(len(self._pipes)):
      self._send(worker, "reset", None)
    for worker in range(len(self._pipes)):
      self._receive(worker)
    everywhere = np.ones((self.num_environments,), bool)
    self._was_last = ~everywhere
    zeros = np.zeros((self.num_environments,), np.float32)
    return self._timestep(everywhere, zeros, ~everywhere, ~everywhere)

  def step(self, action: np.ndarray) -> Any:
    """See HostEnvironment."""
    from podracer.environments import _spaces

    action = _spaces.to_action(self.spec.action, self._action_space, action)
    for worker, share in enumerate(self._shares):
      self._send(worker, "step", action[share])
    parts = [self._receive(worker) for worker in range(len(self._pipes))]
    reward, terminated, truncated = (np.concatenate(part) for part in zip(*parts, strict=True))
    timestep = self._timestep(self._was_last, reward, terminated, truncated)
    self._was_last = terminated | truncated
    return timestep

  def render(self) -> np.ndarray:
    """See HostEnvironment."""
    self._send(0, "render", None)
    picture = self._receive(0)
    if picture is None:
      raise config.InputError(f"environment {self.spec.name} cannot be rendered")
    return np.asarray(picture)

  def close(self) -> None:
    """Ends the workers, by force those that don't end by themselves."""
    for pipe in self._pipes:
      with contextlib.suppress(OSError):
        pipe.send(("close", None))
    deadline = time.monotonic() + 1.0
    for worker in self._workers:
      worker.join(max(0.0, deadline - time.monotonic()))
      if worker.is_alive():
        worker.kill()
        worker.join(1.0)
    for pipe in self._pipes:
      pipe.close()
    self._arena.close(unlink=True)

  def _timestep(
    self, was_last: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
  ) -> Any:
    from podracer import host_environment

    # A copy: the workers write the arena again.
    observation = self._arena.copy()
    return host_environment.make_timestep(was_last, reward, terminated, truncated, observation)

  def _send(self, worker: int, command: str, value: Any) -> None:
    # Of a worker that has ended, `_receive` finds what it said last.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self._pipes[worker].send((command, value))

  def _receive(self, worker: int) -> Any:
    """Returns a worker's answer; raises what it raised, that it died, or that it is stuck."""
    pipe = self._pipes[worker]
    deadline = time.monotonic() + self._timeout_seconds
    try:
      while not pipe.poll(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic()))):
        if time.monotonic() >= deadline:
          raise TimeoutError(
            f"environment {self.spec.name}: {self._who(worker)} did not answer for "
            f"{self._timeout_seconds:g} s"
          )
      kind, value = pipe.recv()
    except (EOFError, ConnectionResetError):
      self._say_died(worker)
    if kind == "error":
      raise RuntimeError(f"environment {self.spec.name}: {self._who(worker)} raised:\n{value}")
    return value

  def _say_died(self, worker: int) -> None:
    process = self._workers[worker]
    process.join(1.0)
    code = process.exitcode
    how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
    raise RuntimeError(
      f"environment {self.spec.name}: the process of {self._who(worker)} ended {how}"
    ) from None

  def _who(self, worker: int) -> str:
    share = self._shares[worker]
    if share.stop - share.start == 1:
      return f"environment {share.start}"
    return f"environments {share.start} .. {share.stop - 1}"


class _Arena:
  """The observations of a batch in shared memory.

  Its layout is nested dicts of (shape, dtype), plain values, so that a worker need not import JAX.
  """

  def __init__(self, block: shared_memory.SharedMemory, layout: Any, batch_size: int):
    self.name = block.name
    self._block = block
    self._layout = layout
    self._arrays: list[np.ndarray] = []
    offset = 0
    for shape, dtype in _leaves(layout, layout):
      array: np.ndarray = np.ndarray((batch_size, *shape), dtype, buffer=block.buf, offset=offset)
      self._arrays.append(array)
      offset += _aligned(array.nbytes)

  @classmethod
  def create(cls, layout: Any, batch_size: int) -> "_Arena":
    sizes = (
      _aligned(batch_size * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
      for shape, dtype in _leaves(layout, layout)
    )
    block = shared_memory.SharedMemory(create=True, size=max(1, sum(sizes)))
    return cls(block, layout, batch_size)

  @classmethod
  def attach(cls, name: str, layout: Any, batch_size: int) -> "_Arena":
    return cls(shared_memory.SharedMemory(name=name), layout, batch_size)

  def write(self, share: slice, observation: Any) -> None:
    for array, leaf in zip(self._arrays, _leaves(self._layout, observation), strict=True):
      leaf = np.asarray(leaf)
      if leaf.shape[1:] != array.shape[1:]:
        raise ValueError(f"an observation has shape {leaf.shape[1:]}, not {array.shape[1:]}")
      array[share] = leaf

  def copy(self) -> Any:
    return _unflatten(self._layout, iter([array.copy() for array in self._arrays]))

  def close(self, unlink: bool = False) -> None:
    self._arrays = []
    # A view that someone still holds keeps the memory; it goes with the process.
    with contextlib.suppress(BufferError):
      self._block.close()
    if unlink:
      with contextlib.suppress(FileNotFoundError):
        self._block.unlink()


def _aligned(num_bytes: int) -> int:
  return -(-num_bytes // 64) * 64


def _layout(spec: Any) -> Any:
  if isinstance(spec, dict):
    return {key: _layout(part) for key, part in spec.items()}
  return (spec.shape, np.dtype(spec.dtype).str)


def _leaves(layout: Any, tree: Any) -> list[Any]:
  """Returns the leaves of a tree in the order of the layout; a tuple stands for a dict of "0", "1"."""
  if not isinstance(layout, dict):
    return [tree]
  by_name = tree if isinstance(tree, dict) else dict(zip(layout, tree, strict=True))
  return [leaf for key, part in layout.items() for leaf in _leaves(part, by_name[key])]


def _unflatten(layout: Any, leaves: Any) -> Any:
  if isinstance(layout, dict):
    return {key: _unflatten(part, leaves) for key, part in layout.items()}
  return next(leaves)


def _work(pipe: Any, job: bytes, render: bool) -> None:
  """A worker process: answers until it is told to close, or its parent is gone."""
  # Ctrl-C goes to the whole group; the parent saves and then closes its workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # An environment that is stuck reads no pipe, so would outlive a parent that was killed.
  threading.Thread(target=_end_with_parent, daemon=True).start()
  arena = vector = None
  try:
    name, options, layout, arena_name, batch_size, share, seeds = pickle.loads(job)
    arena = _Arena.attach(arena_name, layout, batch_size)
    vector = _make_vector(name, options, len(seeds), render)
    while True:
      command, value = pipe.recv()
      if command == "close":
        return
      pipe.send(("ok", _answer(vector, command, value, seeds, arena, share)))
      if command == "reset":
        seeds = None
  except (EOFError, BrokenPipeError, KeyboardInterrupt):
    return  # The parent is gone.
  except Exception:
    with contextlib.suppress(OSError):
      pipe.send(("error", traceback.format_exc()))
  finally:
    with contextlib.suppress(Exception):
      if vector is not None:
        vector.close()
    if arena is not None:
      arena.close()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _make_vector(name: str, options: dict[str, Any], num_environments: int, render: bool) -> Any:
  import gymnasium

  def maker(index: int) -> Callable[[], Any]:
    mode = "rgb_array" if render and index == 0 else None
    return lambda: _make_one(name, options, mode)

  return gymnasium.vector.SyncVectorEnv(
    [maker(i) for i in range(num_environments)],
    autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP,
    copy=False,
  )


def _answer(
  vector: Any, command: str, value: Any, seeds: list[int] | None, arena: _Arena, share: slice
) -> Any:
  if command == "render":
    # Only the first has a picture to show.
    return vector.envs[0].render()
  if command == "reset":
    observation, _ = vector.reset(seed=seeds)
    arena.write(share, observation)
    return None
  observation, reward, terminated, truncated, _ = vector.step(value)
  arena.write(share, observation)
  return np.asarray(reward, np.float32), np.array(terminated, bool), np.array(truncated, bool)
