"""Batches of several tasks outside JAX: the host's half of `podracer.multitask`."""

import contextlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from podracer import config, environment, host_environment, types

Observe = Callable[[int, types.Observation, tuple[int, ...]], types.Observation]


def make_factory(
  spec: types.EnvironmentSpec,
  factories: Sequence[host_environment.HostFactory],
  views: Sequence[types.EnvironmentSpec],
  observe: Observe,
) -> host_environment.HostFactory:
  """Makes one factory of several tasks.

  The tasks of a batch are stepped one after the other, each with all the threads that there are. Frames
  of the game are counted where every task takes equally many a step, else a step counts as one.

  Args:
    spec: of the whole.
    factories: of the tasks, in their order.
    views: spec of each task alone that observes as the whole does.
    observe: (task, its own observation `[B, *]`, `(B,)`) -> observation of the whole.
  """
  tasks = tuple(
    _task_factory(factory, spec, view, i, observe)
    for i, (factory, view) in enumerate(zip(factories, views, strict=True))
  )

  def make(
    seeds: Sequence[int], options: host_environment.HostOptions
  ) -> host_environment.HostEnvironment:
    environment.check_shares(spec.name, len(seeds), len(tasks))
    size = len(seeds) // len(tasks)
    with contextlib.ExitStack() as stack:
      parts = []
      for i, task in enumerate(tasks):
        parts.append(task.make(seeds[i * size : (i + 1) * size], options))
        stack.callback(parts[-1].close)
      # From here on it is the batch that closes them.
      return Tasks(spec, parts, stack.pop_all())

  evaluation = None
  if any(factory.evaluation is not None for factory in factories):
    others = [factory.evaluation or factory for factory in factories]
    evaluation = make_factory(spec, others, views, observe)
  frames_per_step = {factory.frames_per_step for factory in factories}
  return host_environment.HostFactory(
    spec=spec,
    make=make,
    frames_per_step=frames_per_step.pop() if len(frames_per_step) == 1 else 1,
    evaluation=evaluation,
    tasks=tasks,
  )


def _task_factory(
  factory: host_environment.HostFactory,
  spec: types.EnvironmentSpec,
  view: types.EnvironmentSpec,
  task: int,
  observe: Observe,
) -> host_environment.HostFactory:
  """Returns the factory of a task's batches that observe as the whole does."""

  def make(
    seeds: Sequence[int], options: host_environment.HostOptions
  ) -> host_environment.HostEnvironment:
    config.check(
      not options.batch_size,
      f"environment {spec.name} has several tasks, which can't be run with environment_mode=async",
    )
    host = factory.make(seeds, options)
    return Task(host, factory.spec, view, lambda x: observe(task, x, (len(seeds),)))

  return factory._replace(spec=view, make=make, can_be_async=False, frame_stack=1, evaluation=None)


class Task:
  """A batch of one task that observes as the whole does."""

  def __init__(
    self,
    host: host_environment.HostEnvironment,
    own_spec: types.EnvironmentSpec,
    view: types.EnvironmentSpec,
    observe: Callable[[types.Observation], types.Observation],
  ):
    """Starts nothing.

    Args:
      host: the task's own batch.
      own_spec: of it.
      view: its spec with the observations of the whole.
      observe: the task's own observations -> those of the whole, `[B, *]`.
    """
    self.spec = view
    self.num_environments = host.num_environments
    self._host, self._own_spec, self._observe = host, own_spec, observe
    self._was_last = np.zeros((host.num_environments,), bool)

  def reset(self) -> types.TimeStep:
    """See HostEnvironment."""
    return self._observed(self._host.reset())

  def step(self, action: np.ndarray) -> types.TimeStep:
    """See HostEnvironment; also checks the actions, whose number is that of the task."""
    if isinstance(self._own_spec.action, types.DiscreteActions):
      # What is ignored may be no action of this task: some masks allow none at LAST.
      action = np.where(self._was_last, np.zeros_like(action), action)
    host_environment.check_action(self._own_spec, action, self.num_environments)
    return self._observed(self._host.step(action))

  def render(self) -> np.ndarray:
    """See HostEnvironment."""
    return self._host.render()

  def close(self) -> None:
    """See HostEnvironment."""
    self._host.close()

  def _observed(self, timestep: types.TimeStep) -> types.TimeStep:
    self._was_last = np.asarray(timestep.step_type == types.LAST)
    return timestep._replace(observation=self._observe(timestep.observation))


class Tasks:
  """The batches of all tasks as one."""

  def __init__(
    self,
    spec: types.EnvironmentSpec,
    parts: Sequence[host_environment.HostEnvironment],
    closing: contextlib.ExitStack,
  ):
    """Starts nothing.

    Args:
      spec: of the whole.
      parts: batches of the tasks, of equal size.
      closing: closes them all.
    """
    self.spec = spec
    self.num_environments = sum(part.num_environments for part in parts)
    self._parts, self._closing = parts, closing

  def reset(self) -> types.TimeStep:
    """See HostEnvironment."""
    return _join([part.reset() for part in self._parts])

  def step(self, action: np.ndarray) -> types.TimeStep:
    """See HostEnvironment."""
    shares = np.split(action, len(self._parts))
    return _join([part.step(share) for part, share in zip(self._parts, shares, strict=True)])

  def render(self) -> np.ndarray:
    """Raises InputError: a picture is of one task."""
    raise config.InputError(f"environment {self.spec.name} has several tasks: render one of them")

  def close(self) -> None:
    """See HostEnvironment."""
    self._closing.close()


def _join(timesteps: Sequence[types.TimeStep]) -> types.TimeStep:
  """Lays the tasks' time steps one after the other."""
  joined: types.TimeStep = jax.tree.map(lambda *xs: np.concatenate(xs), *timesteps)
  return joined
