"""How fast environment, inference and learner are alone: the limits of a machine on this computer."""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from podracer import host_environment, types

from . import inference
from . import machine as machine_lib
from . import threads as threads_lib


class Limits(NamedTuple):
  """Steps/s of each part alone, with the threads and devices that it has in the whole.

  Attributes:
    environment: stepping with random actions.
    inference: acting, on the actor devices.
    learner: updating, on the learner devices.
    predicted: of the whole, from the three.
  """

  environment: float
  inference: float
  learner: float
  predicted: float


def limits(machine: machine_lib.Sebulba, seconds: float, seed: int = 0) -> Limits:
  """Measures each part alone, and predicts the whole.

  Where devices are the computer's own cores all three share them, and the whole takes the sum of their
  times. Otherwise environments have the cores, and inference and learner share a device or don't.

  Args:
    machine: whose settings and programs are taken.
    seconds: of each measurement, without compilation.
    seed: of environments and actions.
  """
  environment = environment_speed(machine, seconds, seed)
  acting = inference_speed(machine, seconds)
  learning = learner_speed(machine, seconds)
  topology = machine.topology
  if topology.learners[0].platform == "cpu":
    predicted = 1 / (1 / environment + 1 / acting + 1 / learning)
  elif set(topology.actor_devices) & set(topology.learners):
    predicted = min(environment, 1 / (1 / acting + 1 / learning))
  else:
    predicted = min(environment, acting, learning)
  return Limits(environment, acting, learning, predicted)


def environment_speed(machine: machine_lib.Sebulba, seconds: float, seed: int = 0) -> float:
  """Returns the steps/s of the environments of all actor threads, by random actions."""
  topology, factory = machine.topology, machine.factory
  num_actors, size = len(topology.actors), topology.environments_per_actor
  options = host_environment.HostOptions(
    num_threads=machine.config.environment_threads
    or threads_lib.default_environment_threads(num_actors)
  )
  seeds = host_environment.make_seeds(seed, num_actors * size)
  generator = np.random.default_rng(seed)
  made = [factory.make(seeds[i * size : (i + 1) * size], options) for i in range(num_actors)]
  try:
    for environment in made:
      environment.reset()
    actions = [random_actions(factory.spec, size, generator) for _ in range(32)]
    calls = [_cycle(environment.step, actions) for environment in made]
    return size * calls_per_second(calls, seconds)
  finally:
    for environment in made:
      environment.close()


def inference_speed(machine: machine_lib.Sebulba, seconds: float) -> float:
  """Returns the steps/s at which the actor threads could act."""
  topology, programs = machine.topology, machine.programs
  spec, size = machine.factory.spec, topology.environments_per_actor
  params = machine.init(0).learner.params
  timestep = types.TimeStep(
    step_type=np.ones((size,), np.int8),  # type: ignore[arg-type]
    reward=np.zeros((size,), np.float32),  # type: ignore[arg-type]
    discount=np.ones((size,), np.float32),  # type: ignore[arg-type]
    observation=types.to_numpy(types.zeros_like(spec.observation, (size,))),
  )

  def make(device: jax.Device) -> Callable[[], None]:
    here = jax.device_put(types.to_numpy(params), device)
    key = jax.device_put(jax.random.key(0), device)
    keys = programs.unroll_keys(key, np.int32(0))
    carry = jax.device_put((programs.new_storage(), programs.new_state()), device)

    def act() -> None:
      nonlocal carry
      with jax.default_device(device):
        upload = inference.pack(timestep)
        action, *carry_list = programs.act(here, keys, *carry, np.int32(0), upload)
      carry = tuple(carry_list)
      np.asarray(action)

    act()
    return act

  return size * calls_per_second([make(device) for device in topology.actors], seconds)


def learner_speed(machine: machine_lib.Sebulba, seconds: float) -> float:
  """Returns the steps/s at which the learner could learn."""
  topology = machine.topology
  state = machine.init(0)

  def shards() -> tuple[types.Trajectory, ...]:
    storage = machine.programs.new_storage()
    trajectory = types.Trajectory(
      inference.unpack(storage), storage.actor_outputs, machine.programs.new_state()
    )
    parts = machine.programs.split(trajectory)
    return tuple(jax.device_put(p, d) for p, d in zip(parts, topology.learners, strict=True))

  batch = machine.learner.batch([shards() for _ in range(topology.unrolls_per_update)])
  sums = None

  def update() -> None:
    nonlocal state, sums
    state, sums = machine.learner.update(state, sums, batch)
    jax.block_until_ready(state.learner.params)

  update()
  return machine.steps_per_update * calls_per_second([update], seconds)


def calls_per_second(calls: list[Callable[[], object]], seconds: float) -> float:
  """Returns how many calls a second are done, each function in a thread of its own.

  Raises:
    Exception: what one of them raised.
  """
  counts = [0] * len(calls)
  errors: list[BaseException] = []
  barrier = threading.Barrier(len(calls) + 1)
  end = threading.Event()

  def work(index: int) -> None:
    barrier.wait()
    try:
      while not end.is_set():
        calls[index]()
        counts[index] += 1
    except BaseException as error:
      errors.append(error)
      end.set()

  threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(calls))]
  for thread in threads:
    thread.start()
  barrier.wait()
  begin = time.perf_counter()
  end.wait(seconds)
  end.set()
  for thread in threads:
    thread.join()
  if errors:
    raise errors[0]
  return sum(counts) / (time.perf_counter() - begin)


def random_actions(
  spec: types.EnvironmentSpec, size: int, generator: np.random.Generator
) -> np.ndarray:
  """Returns uniform actions, `[size]` or `[size, k]`; of an unbounded box in [-1, 1]."""
  if spec.tasks:
    # An action of another task may be none of this one.
    share = size // len(spec.tasks)
    return np.concatenate([random_actions(task, share, generator) for task in spec.tasks])
  if isinstance(spec.action, types.DiscreteActions):
    return generator.integers(spec.action.num_actions, size=size, dtype=np.int32)
  low = np.nan_to_num(np.asarray(spec.action.minimum), neginf=-1.0)
  high = np.nan_to_num(np.asarray(spec.action.maximum), posinf=1.0)
  return generator.uniform(low, high, (size, spec.action.size)).astype(np.float32)


def _cycle(step: Callable[[np.ndarray], object], actions: list[np.ndarray]) -> Callable[[], object]:
  count = 0

  def call() -> object:
    nonlocal count
    count += 1
    return step(actions[count % len(actions)])

  return call
