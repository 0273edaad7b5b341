"""Several environments as one, whose batches have an equal share of every task.

An observation of the whole is a dict: `task_id`, an int32 scalar; `action_mask` `[A]` where the tasks' sets
of actions differ or a task has a mask, A being the largest set; and `observation_0`, `observation_1` ...,
the tasks' own observations without their masks. Tasks whose observations are alike in structure, shapes and
dtypes share an entry, in the order in which they first come; an entry is zeros for other tasks.
"""

import functools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import config, host_environment, host_tasks, types
from podracer import environment as environment_lib

Environment = environment_lib.Environment
HostFactory = host_environment.HostFactory

TASK_ID = "task_id"
"""Key of the observation under which the number of the task is."""


def make(environments: Sequence[Environment | HostFactory], name: str) -> Environment | HostFactory:
  """Makes one environment of several tasks.

  Args:
    environments: of the tasks, in their order.
    name: of the whole.

  Returns:
    An Environment if all are JAX-native, else a HostFactory, which drives JAX-native ones too. Of a
    batch of B environments task i has those from i * B / N on, and no other task is computed for them.

  Raises:
    InputError: if the tasks can't be one environment.
  """
  spec = make_spec([environment.spec for environment in environments], name)
  native = [made for made in environments if isinstance(made, environment_lib.Environment)]
  if len(native) == len(environments):
    return _make_native(native, spec)
  return host_tasks.make_factory(
    spec,
    [host_environment.as_factory(made) for made in environments],
    views=[_view(spec, i) for i in range(len(environments))],
    observe=functools.partial(observe, spec, numpy=np),
  )


def make_spec(tasks: Sequence[types.EnvironmentSpec], name: str) -> types.EnvironmentSpec:
  """Returns the spec of several tasks as one environment.

  Args:
    tasks: specs of the tasks, in their order.
    name: of the whole.

  Raises:
    InputError: for less than two tasks, a game of two players, a task that itself has several, and
      actions that one policy can't give.
  """
  config.check(len(tasks) > 1, f"environment {name} needs two tasks at least, got {len(tasks)}")
  for task in tasks:
    config.check(
      task.num_players == 1,
      f"environment {name}: {task.name} has two players, which can't be one of several tasks",
    )
    config.check(task.num_tasks == 1, f"environment {name}: {task.name} itself has several tasks")
  action = _action_spec(tasks, name)
  observation: dict[str, Any] = {
    TASK_ID: types.ArraySpec((), np.dtype("int32"), 0.0, len(tasks) - 1.0)
  }
  if isinstance(action, types.DiscreteActions) and any(
    _has_mask(task) or task.action != action for task in tasks
  ):
    observation[types.ACTION_MASK] = types.ArraySpec((action.num_actions,), np.dtype("bool"))
  entries = _entries(tasks)
  for entry in dict.fromkeys(entries):
    alike = [_bare(t.observation) for t, e in zip(tasks, entries, strict=True) if e == entry]
    is_of_all = len(alike) == len(tasks)
    observation[entry] = jax.tree.map(
      lambda *leaves, is_of_all=is_of_all: _union(leaves, is_of_all),
      *alike,
      is_leaf=types.is_array_spec,
    )
  return types.EnvironmentSpec(
    name=name,
    observation=observation,
    action=action,
    num_tasks=len(tasks),
    tasks=tuple(tasks),
  )


def task_names(spec: types.EnvironmentSpec) -> tuple[str, ...]:
  """Returns the names of the tasks, those that are there twice numbered; () of a single task."""
  names = [task.name for task in spec.tasks]
  return tuple(
    f"{name}#{names[: i + 1].count(name)}" if names.count(name) > 1 else name
    for i, name in enumerate(names)
  )


def check_recording(spec: types.EnvironmentSpec, record: float) -> None:
  """Raises InputError for a share of environments to be recorded of several tasks."""
  config.check(
    not (record and spec.tasks),
    f"environment {spec.name} has several tasks, which can't be recorded: record each by itself",
  )


def tasks_of(timestep: types.TimeStep, spec: types.EnvironmentSpec) -> types.Array:
  """Returns the int32 index of the task, `[...]`; 0 in an environment of one task."""
  if spec.num_tasks > 1:
    return timestep.observation[TASK_ID].astype(jnp.int32)
  return jnp.zeros(timestep.reward.shape, jnp.int32)


def task_timestep(
  spec: types.EnvironmentSpec, timestep: types.TimeStep, task: int
) -> types.TimeStep:
  """Returns what task number `task` itself would say in the place of a multi-task time step.

  Args:
    spec: of the whole; of an environment of one task nothing is changed.
    timestep: `[..., *]`, of environments of that task, JAX or NumPy arrays.
    task: number of the task.

  Returns:
    The time step with the task's own observation, and its own action mask if it has one.
  """
  if not spec.tasks:
    return timestep
  own, whole = spec.tasks[task], timestep.observation
  observation = whole[_entries(spec.tasks)[task]]
  if _has_mask(own):
    assert isinstance(own.action, types.DiscreteActions)
    mask = whole[types.ACTION_MASK][..., : own.action.num_actions]
    observation = {**observation, types.ACTION_MASK: mask}
  return timestep._replace(observation=observation)


def observe(
  spec: types.EnvironmentSpec,
  task: int,
  observation: types.Observation,
  batch_shape: tuple[int, ...] = (),
  numpy: ModuleType = jnp,
) -> dict[str, Any]:
  """Returns what the whole would observe where one of its tasks observes this.

  Args:
    spec: of the whole.
    task: number of the task.
    observation: the task's own, `[*batch_shape, *]`.
    batch_shape: leading axes.
    numpy: `jax.numpy`, or `numpy` for NumPy arrays.
  """
  own = spec.tasks[task]

  def zeros(leaf: types.ArraySpec) -> Any:
    return numpy.zeros((*batch_shape, *leaf.shape), leaf.dtype)

  whole = jax.tree.map(zeros, spec.observation, is_leaf=types.is_array_spec)
  whole[TASK_ID] = numpy.full(batch_shape, task, np.int32)
  if types.ACTION_MASK in whole:
    assert isinstance(own.action, types.DiscreteActions)
    mask = types.action_mask(observation)
    if mask is None:
      mask = numpy.ones((*batch_shape, own.action.num_actions), bool)
    num_others = whole[types.ACTION_MASK].shape[-1] - own.action.num_actions
    whole[types.ACTION_MASK] = numpy.pad(mask, [(0, 0)] * len(batch_shape) + [(0, num_others)])
  return {**whole, _entries(spec.tasks)[task]: _bare(observation)}


def _action_spec(tasks: Sequence[types.EnvironmentSpec], name: str) -> types.ActionSpec:
  actions = [task.action for task in tasks]
  discrete = [action for action in actions if isinstance(action, types.DiscreteActions)]
  if len(discrete) == len(actions):
    return max(discrete, key=lambda action: action.num_actions)
  found = ", ".join(f"{task.name} has {_described(task.action)}" for task in tasks)
  config.check(
    all(action == actions[0] for action in actions),
    f"environment {name}: the actions of all tasks must be discrete, or all the same box; {found}",
  )
  return actions[0]


def _described(action: types.ActionSpec) -> str:
  if isinstance(action, types.DiscreteActions):
    return f"{action.num_actions} actions"
  bounds = sorted(set(zip(action.minimum, action.maximum, strict=True)))
  sides = " and ".join(f"{low:g} .. {high:g}" for low, high in bounds)
  return f"a box of {action.size} in {sides}"


def _has_mask(spec: types.EnvironmentSpec) -> bool:
  return isinstance(spec.observation, Mapping) and types.ACTION_MASK in spec.observation


def _bare(observation: Any) -> Any:
  """Returns an observation, or its spec, without its action mask."""
  if not isinstance(observation, Mapping):
    return observation
  return {key: value for key, value in observation.items() if key != types.ACTION_MASK}


def _entries(tasks: Sequence[types.EnvironmentSpec]) -> tuple[str, ...]:
  """Returns the name of the entry of each task's observation."""
  kinds: list[Any] = []
  for task in tasks:
    leaves, structure = jax.tree.flatten(_bare(task.observation), is_leaf=types.is_array_spec)
    kinds.append((structure, [(tuple(leaf.shape), np.dtype(leaf.dtype)) for leaf in leaves]))
  distinct = [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]]
  return tuple(f"observation_{distinct.index(kind)}" for kind in kinds)


def _union(leaves: Sequence[types.ArraySpec], is_of_all: bool) -> types.ArraySpec:
  """Returns the spec of an array of several tasks: with 0 within its bounds if it isn't of all."""
  zero = [] if is_of_all else [0.0]
  minima = [leaf.minimum for leaf in leaves if leaf.minimum is not None]
  maxima = [leaf.maximum for leaf in leaves if leaf.maximum is not None]
  return types.ArraySpec(
    shape=leaves[0].shape,
    dtype=leaves[0].dtype,
    minimum=min(minima + zero) if len(minima) == len(leaves) else None,
    maximum=max(maxima + zero) if len(maxima) == len(leaves) else None,
  )


def _view(spec: types.EnvironmentSpec, task: int) -> types.EnvironmentSpec:
  """Returns the spec of one task alone that observes as the whole does."""
  return spec._replace(name=spec.tasks[task].name, tasks=())


def _make_native(environments: Sequence[Environment], spec: types.EnvironmentSpec) -> Environment:
  def refuse(*_: Any) -> Any:
    raise TypeError(
      f"environment {spec.name} has several tasks: it is reset and stepped in batches, by "
      "podracer.environment, or each of its `tasks` by itself"
    )

  evaluation = None
  if any(made.evaluation is not None for made in environments):
    evaluation = _make_native([made.evaluation or made for made in environments], spec)
  return Environment(
    spec=spec,
    reset=refuse,
    step=refuse,
    evaluation=evaluation,
    tasks=tuple(_native_task(made, spec, i) for i, made in enumerate(environments)),
  )


def _native_task(made: Environment, spec: types.EnvironmentSpec, task: int) -> Environment:
  """Returns a task's environment that observes as the whole does."""

  def reset(key: types.Key) -> Any:
    state, observation = made.reset(key)
    return state, observe(spec, task, observation)

  def step(key: types.Key, state: Any, action: types.Array) -> Any:
    state, outcome = made.step(key, state, action)
    observation = observe(spec, task, outcome.observation)
    return state, outcome._replace(observation=observation)

  return made._replace(spec=_view(spec, task), reset=reset, step=step, evaluation=None)
