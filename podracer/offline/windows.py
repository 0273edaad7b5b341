"""Windows of recorded episodes as unrolls that a learner takes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from podracer import config as config_lib
from podracer import data, distributions, multitask, types
from podracer.data import filters as filters_lib
from podracer.data import loaded, schema, sources

# What the steps of a student's recording have of its teacher, and else what the teacher, who played,
# said itself.
_TEACHER_FIELDS = {
  "teacher_logits": schema.POLICY_LOGITS,
  "teacher_value": schema.VALUE,
  "teacher_action": schema.ACTION,
}
_MOST_BYTES = 1 << 30
_READ_THREADS = 2
_PREFETCHED = 8


def select(
  path: str, spec: types.EnvironmentSpec, filters: Sequence[str], needed: Sequence[str] = ()
) -> data.Dataset:
  """Returns the recorded episodes of an environment that filters leave.

  Args:
    path: of the collection.
    spec: of the environment.
    filters: each as `name` or `name:value`.
    needed: fields of a step without which the data can't be learnt from.

  Raises:
    InputError: there is no such data, its observations are others, it lacks a field that is needed, or
      no episode is left.
  """
  dataset: data.Dataset = filters_lib.apply(data.open(path)[schema.task_id(spec.name)], filters)
  recorded = {field.name: field for field in dataset.schema.fields}
  stacked = frame_stack(dataset) > 1
  for name, leaf in schema.flatten_observation(spec.observation).items():
    shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
    field = recorded.get(name)
    config_lib.check(
      field is not None and (field.shape, field.dtype) == (shape, np.dtype(leaf.dtype).name),
      f"{path} holds other steps than those of {spec.name}: {name} is {describe(field)} there, and "
      f"{np.dtype(leaf.dtype).name}{list(shape)} here",
    )
  missing = [name for name in needed if name not in recorded]
  config_lib.check(
    not missing,
    f"{dataset.task} in {path} has no {', '.join(missing)}, from which the agent is to learn (there is: "
    f"{', '.join(recorded)})",
  )
  return dataset


def describe(field: schema.Field | None) -> str:
  """Returns dtype and shape of a field for a message."""
  return "missing" if field is None else f"{field.dtype}{list(field.shape)}"


def frame_stack(dataset: data.Dataset) -> int:
  """Returns how many frames the observations stacked that the agent saw.

  Raises:
    InputError: where that differs between the episodes.
  """
  stacks = np.unique(dataset.column("frame_stack"))
  config_lib.check(
    len(stacks) == 1,
    f"{dataset.task} was recorded with {', '.join(map(str, stacks))} stacked frames: take one of them",
  )
  return int(stacks[0])


def make_batches(
  dataset: data.Dataset, length: int, size: int, seed: int
) -> Callable[[int], Iterator[Any]]:
  """Returns the batches of the windows of `length` transitions, for ever, each epoch in another order.

  What fits in memory is read once; else the windows are read as they are needed.

  Args:
    dataset: the episodes.
    length: T, transitions of a window.
    size: B, windows of a batch.
    seed: of the order.

  Returns:
    number of the first batch -> batches from there on: name of a field -> `[B, T+1, ...]`, stacked as the
    agent saw it, and `mask`.
  """
  stack = frame_stack(dataset)
  options: dict[str, Any] = {"frame_stack": stack if stack > 1 else None}
  if loaded.num_bytes(dataset) <= _MOST_BYTES:
    held = loaded.LoadedWindows(dataset, length + 1, **options)
    ordered = grain.MapDataset.range(len(held)).seed(seed).shuffle().repeat().batch(size)
    ordered = ordered.map(held.take)
  else:
    source = data.WindowSource(dataset, length + 1, **options)
    ordered = grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(size)
  reading = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCHED)
  return lambda start: iter(ordered[start:].to_iter_dataset(reading))


def mean_transitions(dataset: data.Dataset, length: int) -> float:
  """Returns how many of the `length` transitions of a window there are on the mean.

  Every stored step is in `length + 1` windows of an episode, and a window of n steps has n-1 transitions.
  """
  steps = dataset.stored_steps().astype(np.float64)
  num_windows = steps + length
  weights = np.ones_like(steps) if dataset.weights is None else dataset.weights
  return float(weights @ (steps * (length + 1) - num_windows) / (weights @ num_windows))


def num_transitions(batches: Sequence[dict[str, np.ndarray]]) -> int:
  """Returns the transitions of windows: steps that there are but the last of each."""
  return sum(int(np.sum(batch[sources.MASK][:, 1:])) for batch in batches)


def to_trajectory(
  spec: types.EnvironmentSpec, batches: Sequence[dict[str, Any]]
) -> types.Trajectory:
  """Returns windows as unrolls.

  Where a window ends before its time the last step is made LAST: its discount is 1 unless the episode
  ended, so a learner bootstraps from it, and what follows is no experience. The recurrent state at the
  beginning of a window is not known, and the trajectory has none.

  Args:
    spec: of the environment.
    batches: of each task, one if there is one only, name of a field -> `[B, T+1, ...]`, with `mask`.

  Returns:
    A trajectory `[T+1, B, ...]` whose `initial_state` is (), the tasks side by side.
  """
  if not spec.tasks:
    return _to_trajectory(spec, batches[0])
  of_tasks = [
    _as_task(spec, task, _to_trajectory(own, batch))
    for task, (own, batch) in enumerate(zip(spec.tasks, batches, strict=True))
  ]
  outputs = [trajectory.actor_outputs for trajectory in of_tasks]
  # Not every teacher searches: what not all have nobody has.
  missing: dict[str, Any] = {
    name: None for output in outputs for name, x in output._asdict().items() if x is None
  }
  of_tasks = [
    trajectory._replace(actor_outputs=output._replace(**missing))
    for trajectory, output in zip(of_tasks, outputs, strict=True)
  ]
  return types.map_batch(lambda axis, *xs: jnp.concatenate(xs, axis=axis), *of_tasks)


def _as_task(
  spec: types.EnvironmentSpec, task: int, trajectory: types.Trajectory
) -> types.Trajectory:
  """Returns unrolls of a task as those of an environment of several."""
  timesteps, acted = trajectory.timesteps, trajectory.actor_outputs
  observation = multitask.observe(
    spec, task, timesteps.observation, batch_shape=timesteps.reward.shape
  )
  if isinstance(spec.action, types.DiscreteActions):
    num_actions = spec.action.num_actions
    acted = acted._replace(
      **{
        name: distributions.widen_logits(value, num_actions)
        for name in ("logits", "teacher_logits")
        if (value := getattr(acted, name)) is not None
      }
    )
  return trajectory._replace(
    timesteps=timesteps._replace(observation=observation), actor_outputs=acted
  )


def _to_trajectory(spec: types.EnvironmentSpec, batch: dict[str, Any]) -> types.Trajectory:
  # [B, T+1, ...] -> [T+1, B, ...]
  steps = {name: jnp.swapaxes(value, 0, 1) for name, value in batch.items()}
  mask = steps[sources.MASK]
  goes_on = jnp.concatenate([mask[1:], jnp.ones_like(mask[:1])])
  is_last = steps[schema.IS_LAST] | ~mask | ~goes_on
  step_type = jnp.where(steps[schema.IS_FIRST] & mask, types.FIRST, types.MID)
  names = schema.flatten_observation(spec.observation)
  treedef = jax.tree.structure(spec.observation, is_leaf=types.is_array_spec)
  timesteps = types.TimeStep(
    step_type=jnp.where(is_last, types.LAST, step_type).astype(jnp.int8),
    reward=_arrived(steps[schema.REWARD], 0.0),
    discount=_arrived(steps[schema.DISCOUNT], 1.0),
    observation=jax.tree.unflatten(treedef, [steps[name] for name in names]),
  )
  acted = {name: value[:-1] for name, value in steps.items()}
  return types.Trajectory(timesteps, _actor_output(acted), initial_state=())


def _arrived(following: types.Array, first: float) -> types.Array:
  """Returns `[T+1, B]` what arrived with each step, given what followed its action."""
  return jnp.concatenate([jnp.full_like(following[:1], first), following[:-1]])


def _actor_output(acted: dict[str, types.Array]) -> types.ActorOutput:
  """Returns what was said on acting, `[T, B, ...]`; None where it was not recorded."""
  visits = acted.get(schema.SEARCH_VISITS)
  if visits is not None:
    visits = visits.astype(jnp.float32) / schema.VISITS_SCALE
  output = types.ActorOutput(
    action=acted[schema.ACTION],
    logits=_as_float(acted.get(schema.POLICY_LOGITS)),  # type: ignore[arg-type]
    log_prob=acted.get(schema.BEHAVIOUR_LOG_PROB),  # type: ignore[arg-type]
    value=acted.get(schema.VALUE),  # type: ignore[arg-type]
    search_visits=visits,
    search_value=acted.get(schema.SEARCH_VALUE),
  )
  teacher: dict[str, Any] = {
    name: _as_float(acted[name] if name in acted else acted.get(own))
    for name, own in _TEACHER_FIELDS.items()
    if name in output._fields
  }
  return output._replace(**teacher)


def _as_float(value: types.Array | None) -> types.Array | None:
  """Returns half precision as single, and what is not float as it is."""
  if value is None or value.dtype != jnp.float16:
    return value
  return value.astype(jnp.float32)
