"""Teachers: which of them teaches which task, and what they say of the student's time steps."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer import agent as agent_lib
from podracer import config as config_lib
from podracer import distributions, multitask, types
from podracer.networks import body

Array = types.Array


class TeacherOutput(NamedTuple):
  """What the K teachers of each row's task say; None where it is not known.

  Attributes:
    logits: `[..., K, N]` of their policies, as wide as the student's.
    value: `[..., K]`.
    action: `[..., K]` int32 or `[..., K, k]` float32, their best ones.
  """

  logits: Array | None
  value: Array | None
  action: Array | None


class Teachers(NamedTuple):
  """The teachers of a student.

  Attributes:
    members: all of them, N.
    spec: of the student's environment.
    slots: of each task the numbers of its K teachers, -1 where it has fewer.
  """

  members: tuple[agent_lib.Teacher, ...]
  spec: types.EnvironmentSpec
  slots: tuple[tuple[int, ...], ...]

  @property
  def number(self) -> int:
    """N; recorded data without teachers speaks for one a task."""
    return len(self.members) or len(self.slots)

  @property
  def num_slots(self) -> int:
    """K, the most teachers of a task."""
    return len(self.slots[0])

  @property
  def have_state(self) -> bool:
    """True where a teacher must see every step of an episode."""
    return any(jax.tree.leaves(_abstract_state(member)) for member in self.members)

  def of_rows(self, tasks: Array) -> Array:
    """Returns the numbers of the teachers of rows, `[..., K]`, -1 for none, given their tasks `[...]`."""
    return jnp.asarray(self.slots, jnp.int32)[tasks]


def make_teachers(
  members: Sequence[agent_lib.Teacher], spec: types.EnvironmentSpec, action_distribution: str
) -> Teachers:
  """Checks that teachers fit the student's environment, and sorts them by task.

  Args:
    members: the teachers, none for a student that learns from recorded data.
    spec: of the student's environment.
    action_distribution: of the student.

  Raises:
    InputError: for a teacher of other observations, actions or distributions than its task.
  """
  for i, member in enumerate(members):
    _check(f"teacher {i}", member, spec, action_distribution)
  by_task = [
    [i for i, member in enumerate(members) if member.task in (task, None)]
    for task in range(spec.num_tasks)
  ]
  if not members:
    by_task = [[task] for task in range(spec.num_tasks)]
  most = max(len(own) for own in by_task)
  slots = tuple(tuple(own + [-1] * (most - len(own))) for own in by_task)
  return Teachers(tuple(members), spec, slots)


def initial_state(teachers: Teachers, batch_size: int) -> tuple[types.State, ...]:
  """Returns the recurrent state of each teacher, leaves `[B, ...]`."""
  return tuple(member.agent.initial_state(batch_size) for member in teachers.members)


def act(
  teachers: Teachers,
  params: Sequence[types.Params],
  key: types.Key,
  timestep: types.TimeStep,
  states: Sequence[types.State],
) -> tuple[TeacherOutput, tuple[types.State, ...]]:
  """Asks the teachers what they would do, without noise.

  Args:
    teachers: at least one.
    params: of each of them.
    key: of a search.
    timestep: `[B, ...]` of the student's environment.
    states: of each teacher, from `initial_state` or the call before.

  Returns:
    `[B, K, ...]` what those of each row's task say, and the new states.
  """
  asked, new_states = [], []
  for member, own_params, state in zip(teachers.members, params, states, strict=True):
    output, state = _ask(member, teachers.spec, own_params, key, timestep, state)
    asked.append(output)
    new_states.append(state)
  return _by_row(teachers, asked, timestep), tuple(new_states)


def evaluate(
  teachers: Teachers, params: Sequence[types.Params], key: types.Key, timesteps: types.TimeStep
) -> TeacherOutput:
  """Asks teachers without state of all time steps of unrolls at once.

  Args:
    teachers: at least one.
    params: of each of them.
    key: of a search.
    timesteps: `[T+1, B, ...]` of the student's environment.

  Returns:
    `[T+1, B, K, ...]`.
  """
  shape = timesteps.reward.shape
  merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), timesteps)  # [T+1, B] -> [(T+1)*B]
  output, _ = act(teachers, params, key, merged, initial_state(teachers, merged.reward.shape[0]))
  split: TeacherOutput = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), output)
  return split


def to_actor_fields(output: TeacherOutput) -> dict[str, Any]:
  """Returns the fields of an ActorOutput; one teacher a task has no axis of its own."""
  if output.value is not None and output.value.shape[-1] == 1:
    output = jax.tree.map(lambda x: x[:, 0], output)
  return {f"teacher_{name}": value for name, value in output._asdict().items()}


def from_actor_fields(acted: types.ActorOutput) -> TeacherOutput | None:
  """Returns what actor outputs `[T, B, ...]` say of the teachers, or None if nothing."""
  fields = {name: getattr(acted, f"teacher_{name}") for name in TeacherOutput._fields}
  known = [value for value in fields.values() if value is not None]
  if not known:
    return None
  # Policy logits and the student's have the same rank, unless there is an axis of teachers.
  has_axis = {"logits": 4, "value": 3, "action": acted.action.ndim + 1}
  return TeacherOutput(
    **{
      name: value if value is None or value.ndim == has_axis[name] else value[:, :, None]
      for name, value in fields.items()
    }
  )


def with_action(state: types.State, action: Array) -> types.State:
  """Returns a recurrent state that remembers the action that was taken, whoever chose it."""
  if isinstance(state, body.BodyState) and not isinstance(state.previous_action, tuple):
    return state._replace(previous_action=action)
  return state


def _ask(
  member: agent_lib.Teacher,
  spec: types.EnvironmentSpec,
  params: types.Params,
  key: types.Key,
  timestep: types.TimeStep,
  state: types.State,
) -> tuple[TeacherOutput, types.State]:
  """Returns what one teacher says of all rows, `[B, ...]`, those of other tasks included."""
  if member.task is not None:
    timestep = multitask.task_timestep(spec, timestep, member.task)
  output, state = member.agent.act(params, key, timestep, state, False)
  value = output.value if output.search_value is None else output.search_value
  logits = output.logits
  if isinstance(spec.action, types.DiscreteActions):
    logits = distributions.widen_logits(logits, spec.action.num_actions)
  said = TeacherOutput(logits=logits, value=value, action=output.action)
  return jax.lax.stop_gradient(said), state


def _by_row(
  teachers: Teachers, asked: Sequence[TeacherOutput], timestep: types.TimeStep
) -> TeacherOutput:
  """Returns what the teachers of each row's task said, `[B, K, ...]`, zeros where it has fewer."""

  def choose(number: Array, *values: Array) -> Array:
    chosen = jnp.zeros_like(values[0])
    for i, value in enumerate(values):
      is_it = (number == i).reshape(-1, *[1] * (value.ndim - 1))
      chosen = jnp.where(is_it, value, chosen)
    return chosen

  if len(asked) == 1 and all(own == (0,) for own in teachers.slots):
    return jax.tree.map(lambda x: x[:, None], asked[0])
  numbers = teachers.of_rows(multitask.tasks_of(timestep, teachers.spec))  # [B, K]
  slots = [
    jax.tree.map(functools.partial(choose, numbers[:, k]), *asked)
    for k in range(teachers.num_slots)
  ]
  stacked: TeacherOutput = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *slots)
  return stacked


def _abstract_state(member: agent_lib.Teacher) -> Any:
  return jax.eval_shape(lambda: member.agent.initial_state(1))


def _check(
  name: str,
  member: agent_lib.Teacher,
  spec: types.EnvironmentSpec,
  action_distribution: str,
) -> None:
  """Raises InputError unless a teacher fits its task."""
  own = spec
  if member.task is not None and spec.tasks:
    config_lib.check(
      0 <= member.task < len(spec.tasks),
      f"{name} teaches task {member.task}, but {spec.name} has tasks 0 .. {len(spec.tasks) - 1}",
    )
    own = spec.tasks[member.task]
  config_lib.check(
    member.spec.action == own.action,
    f"{name} was trained in {member.spec.name} with {_described(member.spec.action)}, but {own.name} "
    f"has {_described(own.action)}",
  )
  config_lib.check(
    _shapes(member.spec) == _shapes(own),
    f"{name} was trained in {member.spec.name} with observations {_shapes(member.spec)}, but those of "
    f"{own.name} are {_shapes(own)}",
  )
  config_lib.check(
    isinstance(own.action, types.DiscreteActions)
    or member.action_distribution == action_distribution,
    f"{name} has action_distribution={member.action_distribution}, the student {action_distribution}: "
    "both must be the same",
  )


def _described(action: types.ActionSpec) -> str:
  if isinstance(action, types.DiscreteActions):
    return f"{action.num_actions} actions"
  return f"actions in a box of {action.size} from {action.minimum} to {action.maximum}"


def _shapes(spec: types.EnvironmentSpec) -> str:
  """Returns names, dtypes and shapes of observations in words: their bounds may differ."""
  leaves = jax.tree.leaves_with_path(spec.observation, is_leaf=types.is_array_spec)
  return ", ".join(
    f"{jax.tree_util.keystr(path)} {jnp.dtype(leaf.dtype).name}{list(leaf.shape)}".strip()
    for path, leaf in leaves
  )
