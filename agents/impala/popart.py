"""PopArt: values learnt in normalised units, outputs preserved when the units change.

Hessel et al. (2019), *Multi-task Deep Reinforcement Learning with PopArt*.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from podracer import types

Array = types.Array
MIN_SCALE = 1e-2
MAX_SCALE = 1e6


class PopArtState(NamedTuple):
  """Moments of the targets, `[num_tasks]` each."""

  mean: Array
  second_moment: Array

  @property
  def scale(self) -> Array:
    """Standard deviation, kept within bounds; equation (7)."""
    variance = self.second_moment - jnp.square(self.mean)
    return jnp.clip(jnp.sqrt(jnp.maximum(variance, 0.0)), MIN_SCALE, MAX_SCALE)


class TargetStatistics(NamedTuple):
  """Means over all T * B transitions of a batch, `[num_tasks]` each: they add up over devices.

  Attributes:
    weight: share of the transitions that are experience of the task.
    target: their targets, summed.
    squared_target: their squared targets, summed.
  """

  weight: Array
  target: Array
  squared_target: Array


def initial_state(num_tasks: int) -> PopArtState:
  """Returns mean 0 and scale 1."""
  return PopArtState(mean=jnp.zeros((num_tasks,)), second_moment=jnp.ones((num_tasks,)))


def statistics(targets: Array, tasks: Array, valid: Array, num_tasks: int) -> TargetStatistics:
  """Returns the statistics of targets `[T, B]` of `tasks` `[T, B]` where `valid`."""
  weights = jax.nn.one_hot(tasks, num_tasks) * valid[..., None]
  mean = lambda x: jnp.mean(x, axis=(0, 1))  # noqa: E731
  return TargetStatistics(
    weight=mean(weights),
    target=mean(weights * targets[..., None]),
    squared_target=mean(weights * jnp.square(targets)[..., None]),
  )


def update(state: PopArtState, batch: TargetStatistics, step_size: float) -> PopArtState:
  """Moves the moments towards those of a batch, equation (6); a task not in it stays as it is."""
  seen = batch.weight > 0
  weight = jnp.where(seen, batch.weight, 1.0)
  move = lambda old, new: jnp.where(seen, old + step_size * (new / weight - old), old)  # noqa: E731
  return PopArtState(
    mean=move(state.mean, batch.target),
    second_moment=move(state.second_moment, batch.squared_target),
  )


def preserve_outputs(
  kernel: Array, bias: Array, old: PopArtState, new: PopArtState
) -> tuple[Array, Array]:
  """Returns the head `[F, num_tasks]`, `[num_tasks]` whose un-normalised outputs are as before."""
  ratio = old.scale / new.scale
  return kernel * ratio, (old.scale * bias + old.mean - new.mean) / new.scale
