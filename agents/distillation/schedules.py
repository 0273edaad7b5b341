"""How much teachers still teach and control: what of distillation changes with the gradient steps."""

from typing import NamedTuple

import jax.numpy as jnp

from podracer import types

from . import config as distillation_config

Array = types.Array


class Progress(NamedTuple):
  """What the student's parameters remember of its learning, for N teachers; no gradient reaches it.

  Attributes:
    gradient_steps: int32.
    advantage: `[N]` sums of moving averages of the student's advantage over each teacher.
    weight: `[N]` weights of these sums, below 1 at the beginning.
    passed: `[N]` float32, 1 once the student does better than the teacher.
  """

  gradient_steps: Array
  advantage: Array
  weight: Array
  passed: Array


class AdvantageStatistics(NamedTuple):
  """Means over all T * B transitions of a batch, `[N]` each: they add up over devices.

  Attributes:
    weight: share of the transitions from which a teacher's advantage is known.
    advantage: the advantages there, summed.
  """

  weight: Array
  advantage: Array


def initial_progress(num_teachers: int) -> Progress:
  """Returns that of a student that has not begun."""
  zeros = jnp.zeros((num_teachers,))
  return Progress(jnp.zeros((), jnp.int32), advantage=zeros, weight=zeros, passed=zeros)


def update(
  config: distillation_config.DistillationConfig, progress: Progress, batch: AdvantageStatistics
) -> Progress:
  """Counts a gradient step, and judges the student after `distillation_steps` of them."""
  rate = jnp.where(batch.weight > 0, 1.0 / config.distillation_steps, 0.0)
  found = batch.advantage / jnp.where(batch.weight > 0, batch.weight, 1.0)
  new = Progress(
    gradient_steps=progress.gradient_steps + 1,
    advantage=progress.advantage + rate * (found - progress.advantage),
    weight=progress.weight + rate * (1.0 - progress.weight),
    passed=progress.passed,
  )
  is_judged = new.gradient_steps >= config.distillation_steps
  is_passed = is_judged & (mean_advantage(new) > 0)
  return new._replace(passed=jnp.maximum(new.passed, is_passed.astype(jnp.float32)))


def mean_advantage(progress: Progress) -> Array:
  """Returns `[N]` moving averages of the student's advantage over each teacher, 0 before the first."""
  return progress.advantage / jnp.where(progress.weight > 0, progress.weight, 1.0)


def lambdas(config: distillation_config.DistillationConfig, progress: Progress) -> Array:
  """Returns `[N]` weights of what each teacher teaches, see `distillation_schedule`."""
  cost = jnp.full(progress.passed.shape, config.distillation_cost)
  done = jnp.minimum(progress.gradient_steps / config.distillation_steps, 1.0)
  if config.distillation_schedule == "linear":
    return cost * (1.0 - done)
  if config.distillation_schedule == "cosine":
    return cost * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
  if config.distillation_schedule == "until_passed":
    return cost * (1.0 - progress.passed)
  return cost


def teacher_control(config: distillation_config.DistillationConfig, progress: Progress) -> Array:
  """Returns the probability with which a teacher acts, in [0, 1]."""
  if config.control == "mixture":
    return 1.0 - jnp.minimum(progress.gradient_steps / config.control_steps, 1.0)
  return jnp.asarray(1.0 if config.control == "teacher" else 0.0)
