"""Configuration shared by all agents: frozen dataclasses of plain values, free of JAX.

A command line must answer a wrong value before JAX starts, so nothing here imports it.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable
from typing import Literal, Self


class InputError(ValueError):
  """What a person gave is wrong; the message is one line that says what, and what is valid.

  A command line prints it without a traceback and exits with 2. Any other exception is a fault of the
  program and keeps its traceback.
  """


def check(condition: bool, message: str) -> None:
  """Raises InputError(message) unless `condition`."""
  if not condition:
    raise InputError(message)


def check_positive(**values: float) -> None:
  """Raises InputError naming the first of `values` that is not a finite number above 0."""
  for name, value in values.items():
    check(math.isfinite(value) and value > 0, f"{name} must be above 0, got {value}")


def check_at_least(minimum: float, **values: float) -> None:
  """Raises InputError naming the first of `values` below `minimum` or not finite."""
  for name, value in values.items():
    check(
      math.isfinite(value) and value >= minimum, f"{name} must be at least {minimum}, got {value}"
    )


def check_fraction(**values: float) -> None:
  """Raises InputError naming the first of `values` outside [0, 1]."""
  for name, value in values.items():
    check(0 <= value <= 1, f"{name} must be between 0 and 1, got {value}")


def num_cores() -> int:
  """Returns the number of cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def even_shares(size: int, most: int, num_tasks: int = 1) -> int:
  """Returns the largest number up to `most` that shares out each task's part of `size` evenly, or 1."""
  return max((n for n in range(1, most + 1) if size % (n * num_tasks) == 0), default=1)


def nearest(name: str, valid: Iterable[str], most: int = 5) -> list[str]:
  """Returns the names of `valid` most like `name`, nearest first, case ignored."""
  by_lower = {candidate.lower(): candidate for candidate in valid}
  found = difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.4)
  contains = [lower for lower in by_lower if name.lower() in lower and lower not in found]
  return [by_lower[lower] for lower in [*found, *contains][:most]]


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """What every agent's learner has; an agent's own configuration extends it."""

  learning_rate: float = 5e-4
  """Step size of the optimiser at the start."""
  learning_rate_schedule: Literal["constant", "linear"] = "constant"
  """`linear` falls to 0 at the end of the run."""
  optimizer: Literal["adam", "rmsprop", "sgd"] = "adam"
  """Update rule."""
  optimizer_epsilon: float = 1e-5
  """Epsilon of adam and rmsprop."""
  max_gradient_norm: float = 40.0
  """Gradients are scaled down to this global norm; 0 turns clipping off."""
  num_minibatches: int = 1
  """Parts a batch is cut into, along its environments; one gradient step for each."""
  num_epochs: int = 1
  """Passes over a batch."""
  target_update: Literal["none", "periodic", "polyak"] = "none"
  """How target parameters follow the parameters."""
  target_update_period: int = 100
  """Updates between copies (`periodic`)."""
  target_update_rate: float = 0.005
  """Share of the new parameters an update mixes in (`polyak`)."""
  max_refused_updates: int = 10
  """Updates refused in a row, because a loss or a gradient was not finite, that end the run."""

  def __post_init__(self) -> None:
    check_positive(
      learning_rate=self.learning_rate,
      optimizer_epsilon=self.optimizer_epsilon,
      num_minibatches=self.num_minibatches,
      num_epochs=self.num_epochs,
      target_update_period=self.target_update_period,
      target_update_rate=self.target_update_rate,
      max_refused_updates=self.max_refused_updates,
    )
    check_at_least(0, max_gradient_norm=self.max_gradient_norm)
    check_fraction(target_update_rate=self.target_update_rate)

  @property
  def gradient_steps_per_update(self) -> int:
    """Gradient steps for each trajectory that comes."""
    return self.num_minibatches * self.num_epochs

  def check_unroll(self, unroll_length: int) -> None:
    """Raises InputError where unrolls of this many steps can't be learnt from."""
    del unroll_length

  def recorded_fields(self) -> tuple[str, ...]:
    """Returns the fields of recorded steps, beside those of every step, that the agent learns from."""
    return ()

  def warnings(self) -> tuple[str, ...]:
    """Returns a line for each setting that is allowed, and known to be slow or to learn badly."""
    return ()

  def for_evaluation(self) -> Self:
    """Returns the configuration with which the agent acts by what it has learnt, and nothing else."""
    return self

  def for_recording(self) -> Self:
    """Returns the configuration with which acting also says all that is to be recorded."""
    return self


@dataclasses.dataclass(frozen=True)
class StudentConfig(LearnerConfig):
  """The learner of an agent that learns from teachers: its `make_agent` also takes these."""

  teachers: tuple[str, ...] = ()
  """Directories of the teachers' runs, each of one of the environment's tasks; `runs/a#2` takes the policy
  number 2 of a run with several seeds. Their parameters become a part of the student's checkpoints."""
  teacher_search: bool = True
  """Whether a teacher that searches does, or teaches the policy of its network."""


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """A memory of unrolls on the learner devices; all numbers are over all devices, for each seed."""

  capacity: int = 0
  """Environment steps kept; 0 keeps none, and learns from each unroll as it comes."""
  min_size: int = 0
  """Environment steps in it before learning begins; 0 begins with the first."""
  batch_size: int = 32
  """Unrolls learnt from in a gradient step."""
  gradient_steps: int = 1
  """Gradient steps for each trajectory that comes."""
  kind: Literal["uniform", "prioritised"] = "uniform"
  """How unrolls are drawn: all alike, or by their last error (Schaul et al. 2016)."""
  priority_exponent: float = 0.6
  """Alpha: 0 draws all alike, 1 in proportion to the error (`prioritised`)."""
  importance_exponent: float = 0.4
  """Beta: 1 takes the bias of the drawing out of the gradient, 0 leaves it (`prioritised`)."""
  reanalyse_fraction: float = 0.0
  """Share of a batch that is searched anew under the target parameters, in [0, 1]."""

  def __post_init__(self) -> None:
    check_at_least(0, capacity=self.capacity, min_size=self.min_size)
    check_positive(batch_size=self.batch_size, gradient_steps=self.gradient_steps)
    check_fraction(
      priority_exponent=self.priority_exponent,
      importance_exponent=self.importance_exponent,
      reanalyse_fraction=self.reanalyse_fraction,
    )
    check(
      self.min_size <= self.capacity,
      f"replay.min_size={self.min_size} is above replay.capacity={self.capacity}",
    )
    check(
      self.capacity > 0 or self.reanalyse_fraction == 0,
      "replay.reanalyse_fraction needs a replay: replay.capacity is 0",
    )

  def check_shares(self, num_devices: int, steps_per_update: int) -> None:
    """Raises InputError unless every device gets whole shares.

    Args:
      num_devices: that learn.
      steps_per_update: environment steps of the trajectories of one update, over all devices.
    """
    if not self.capacity:
      return
    check(
      self.batch_size % num_devices == 0,
      f"replay.batch_size={self.batch_size} is not divisible by the {num_devices} learner devices",
    )
    check(
      self.capacity >= steps_per_update,
      f"replay.capacity={self.capacity} is below the {steps_per_update} environment steps of one update",
    )


@dataclasses.dataclass(frozen=True)
class ReplayLearnerConfig(LearnerConfig):
  """The learner of an agent that can learn from a replay."""

  replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
  """The memory of unrolls."""

  def __post_init__(self) -> None:
    super().__post_init__()
    check(
      not self.replay.capacity or self.num_minibatches * self.num_epochs == 1,
      "num_minibatches and num_epochs cut up a batch as it comes; a replay has replay.batch_size and "
      "replay.gradient_steps instead (replay.capacity=0 turns it off)",
    )

  @property
  def gradient_steps_per_update(self) -> int:
    """Gradient steps for each trajectory that comes."""
    if self.replay.capacity:
      return self.replay.gradient_steps
    return super().gradient_steps_per_update


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
  """The torso and the recurrent core of a network."""

  torso: Literal["auto", "mlp", "conv", "nature_cnn", "impala_resnet"] = "auto"
  """How observations are read; `auto` takes `mlp` for vectors, `conv` for images under 36 pixels a
  side and `impala_resnet` for larger ones. Each entry of a dict observation is read by itself, and the
  dense layers see all of them."""
  hidden_sizes: tuple[int, ...] = (64, 64)
  """Widths of the dense layers of `mlp`, and of those behind the convolutions of the others."""
  activation: Literal["relu", "tanh", "gelu", "silu"] = "relu"
  """Nonlinearity."""
  conv_channels: tuple[int, ...] = (16,)
  """Channels of the 3x3 convolutions of `conv`."""
  resnet_channels: tuple[int, ...] = (16, 32, 32)
  """Channels of the sections of `impala_resnet`; each halves the picture."""
  resnet_blocks: int = 2
  """Residual blocks in a section."""
  lstm_size: int = 0
  """Width of an LSTM core behind the torso; 0 has none."""
  use_previous_action: bool = False
  """The core also sees the last action."""
  use_previous_reward: bool = False
  """The core also sees the last reward, clipped to [-1, 1]."""

  def __post_init__(self) -> None:
    for name in ("hidden_sizes", "conv_channels", "resnet_channels"):
      sizes = getattr(self, name)
      check(all(size > 0 for size in sizes), f"{name} must all be above 0, got {sizes}")
    check(len(self.conv_channels) > 0, "conv_channels must not be empty")
    check(len(self.resnet_channels) > 0, "resnet_channels must not be empty")
    check_at_least(0, resnet_blocks=self.resnet_blocks, lstm_size=self.lstm_size)
