"""Host environments: batches of environments outside JAX, in NumPy, by the same conventions.

A suite supplies a `HostFactory`, from which every actor thread, evaluation and recording makes batches
of its own. Every JAX-native environment can be used as one (`from_jax`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from podracer import config, environment, types

_REWARD = types.ArraySpec((), np.dtype("float32"))


class HostEnvironment(Protocol):
  """A batch of environments that is stepped from one thread; B is `num_environments`.

  The arrays it returns are the caller's: they are never written to again. It need not check actions;
  whoever acts calls `check_action` first.
  """

  spec: types.EnvironmentSpec
  num_environments: int

  def reset(self) -> types.TimeStep:
    """Starts an episode in each environment; returns FIRST time steps `[B, ...]`."""
    ...

  def step(self, action: np.ndarray) -> types.TimeStep:
    """Takes one step, or resets where the previous time step was LAST; returns `[B, ...]`."""
    ...

  def render(self) -> np.ndarray:
    """Returns the picture of environment 0, `[H, W, 3]` uint8."""
    ...

  def close(self) -> None:
    """Frees what the environments hold."""
    ...


class AsyncHostEnvironment(Protocol):
  """A batch of B environments of which the M that are ready first are served at a time."""

  spec: types.EnvironmentSpec
  num_environments: int
  batch_size: int

  def start(self) -> None:
    """Starts an episode in each environment; all are then to be received."""
    ...

  def receive(self) -> tuple[types.TimeStep, np.ndarray]:
    """Waits for M environments; returns their time steps `[M, ...]` and indices `[M]`."""
    ...

  def send(self, action: np.ndarray, index: np.ndarray) -> None:
    """Lets the environments `index`, `[M]`, take a step each."""
    ...

  def close(self) -> None:
    """Frees what the environments hold."""
    ...


class HostOptions(NamedTuple):
  """How a batch is to be made.

  Attributes:
    num_threads: threads or processes that step it; 0 leaves the number to the suite.
    batch_size: 0 makes a HostEnvironment; M > 0 an AsyncHostEnvironment, where the factory can.
    timeout_seconds: after which an environment that does not answer is named in an error, where the
      suite can tell.
    render: True where pictures will be asked for.
    whole_episodes: True ends episodes only where the task itself does (not at the loss of a life), as
      evaluation wants it.
  """

  num_threads: int = 0
  batch_size: int = 0
  timeout_seconds: float = 300.0
  render: bool = False
  whole_episodes: bool = False


class HostFactory(NamedTuple):
  """Makes batches of one environment.

  Attributes:
    spec: what an agent must know.
    make: (seeds `[B]`, HostOptions) -> HostEnvironment or AsyncHostEnvironment. An environment's course
      depends on its own seed and actions only.
    can_render: True where `render` works.
    can_be_async: True where `HostOptions.batch_size` may be above 0.
    frames_per_second: of a rendered video.
    frames_per_step: frames of the game that one environment step takes (Atari's frame skip).
    frame_stack: frames, oldest first, that an observation stacks along its first axis; 1 where it does
      not, or where a stack goes on over the beginning of an episode.
    evaluation: the factory to evaluate with where it is not this one, see `environment.Environment`.
    tasks: of a multi-task environment (see `podracer.multitask`) one factory for each task, whose
      observations are those of the whole; () else.
  """

  spec: types.EnvironmentSpec
  make: Callable[[Sequence[int], HostOptions], Any]
  can_render: bool = False
  can_be_async: bool = False
  frames_per_second: int = 30
  frames_per_step: int = 1
  frame_stack: int = 1
  evaluation: "HostFactory | None" = None
  tasks: tuple["HostFactory", ...] = ()


def make_seeds(seed: int, num_environments: int, *stream: int) -> list[int]:
  """Returns seeds of environments, below 2^31, that differ between streams of one run."""
  words = np.random.SeedSequence([seed, *(stream or (0,))]).generate_state(
    num_environments, np.uint32
  )
  return [int(word) & 0x7FFFFFFF for word in words]


def check_action(spec: types.EnvironmentSpec, action: np.ndarray, batch_size: int) -> None:
  """Checks actions before an environment sees them: some abort the process on a wrong one.

  Args:
    spec: of the environment.
    action: `[B]` or `[B, k]`.
    batch_size: B.

  Raises:
    ValueError: for a wrong shape or type, an action out of range, and one that is not finite.
  """
  if isinstance(spec.action, types.DiscreteActions):
    shape: tuple[int, ...] = (batch_size,)
    dtypes, kind = "iu", "integers"
  else:
    shape = (batch_size, spec.action.size)
    dtypes, kind = "f", "floats"
  if action.shape != shape or action.dtype.kind not in dtypes:
    raise ValueError(
      f"environment {spec.name} takes actions {list(shape)} of {kind}, got {list(action.shape)} of "
      f"{action.dtype}"
    )
  if isinstance(spec.action, types.DiscreteActions):
    if np.count_nonzero((action < 0) | (action >= spec.action.num_actions)):
      raise ValueError(
        f"environment {spec.name} has actions 0 .. {spec.action.num_actions - 1}, got "
        f"{action.min()} .. {action.max()}"
      )
  elif not _is_finite(action):
    raise ValueError(f"an action for environment {spec.name} is not finite")


def check_timestep(spec: types.EnvironmentSpec, timestep: types.TimeStep, batch_size: int) -> None:
  """Checks what an environment returned: shapes and types, and that every number is finite.

  Args:
    spec: of the environment.
    timestep: `[B, ...]`, NumPy.
    batch_size: B.

  Raises:
    ValueError: naming the environment, what is wrong, and where in the batch.
  """
  _check_array(spec.name, "reward", _REWARD, timestep.reward, batch_size)
  if isinstance(spec.observation, types.ArraySpec) and isinstance(timestep.observation, np.ndarray):
    specs, leaves = [spec.observation], [timestep.observation]
  else:
    specs = jax.tree.leaves(spec.observation, is_leaf=types.is_array_spec)
    leaves = jax.tree.leaves(timestep.observation)
  if len(specs) != len(leaves):
    raise ValueError(
      f"environment {spec.name} returned an observation of {len(leaves)} arrays, not {len(specs)}"
    )
  for leaf_spec, leaf in zip(specs, leaves, strict=True):
    _check_array(spec.name, "observation", leaf_spec, leaf, batch_size)


def _check_array(
  environment_name: str, name: str, spec: types.ArraySpec, array: Any, batch_size: int
) -> None:
  shape = (batch_size, *spec.shape)
  if array.shape != shape or array.dtype != spec.dtype:
    raise ValueError(
      f"environment {environment_name} returned a {name} {list(array.shape)} of {array.dtype}, its spec "
      f"says {list(shape)} of {np.dtype(spec.dtype)}"
    )
  if array.dtype.kind == "f" and not _is_finite(array):
    bad = np.flatnonzero(~np.isfinite(array.reshape(batch_size, -1)).all(axis=1))
    raise ValueError(
      f"environment {environment_name} returned a {name} that is not finite, in environment "
      f"{', '.join(map(str, bad[:8]))} of its batch of {batch_size}"
    )


def _is_finite(array: np.ndarray) -> bool:
  # To count is faster than `all` on small arrays, as most are that are checked at every step.
  return np.count_nonzero(np.isfinite(array)) == array.size


def make_timestep(
  was_last: np.ndarray,
  reward: np.ndarray,
  terminated: np.ndarray,
  truncated: np.ndarray,
  observation: types.Observation,
) -> types.TimeStep:
  """Returns the time steps of environments that themselves reset on the step after the last.

  Args:
    was_last: `[B]` bool, True where the time step before was LAST, so that this one is a reset.
    reward: `[B]`.
    terminated: `[B]` bool, the episode ended.
    truncated: `[B]` bool, it was cut.
    observation: `[B, ...]`.
  """
  is_last = terminated | truncated
  step_type = np.full(is_last.shape, types.MID, np.int8)
  reward = reward.astype(np.float32)
  discount = np.ones(is_last.shape, np.float32)
  if np.count_nonzero(is_last | was_last):  # Often there is none; this is done at every step.
    step_type[is_last] = types.LAST
    discount[terminated] = 0.0
    step_type[was_last] = types.FIRST
    reward[was_last], discount[was_last] = 0.0, 1.0
  return types.TimeStep(
    step_type=step_type,  # type: ignore[arg-type]
    reward=reward,  # type: ignore[arg-type]
    discount=discount,  # type: ignore[arg-type]
    observation=observation,
  )


class JaxPrograms(NamedTuple):
  """Compiled when first called.

  Attributes:
    reset: keys `[B]` -> (BatchState, TimeStep).
    step: (BatchState, action) -> (BatchState, TimeStep).
  """

  reset: Callable[..., Any]
  step: Callable[..., Any]


def make_jax_programs(made: environment.Environment) -> JaxPrograms:
  """Builds the programs that step batches of a JAX-native environment."""
  return JaxPrograms(
    reset=jax.jit(lambda keys: environment.reset(made, keys)),
    step=jax.jit(lambda state, action: environment.step(made, state, action)),
  )


class JaxHostEnvironment:
  """A JAX-native environment driven as a host environment, by a user's own loop or by Sebulba."""

  def __init__(
    self,
    made: environment.Environment,
    num_environments: int,
    seed: int = 0,
    keys: types.Key | None = None,
    programs: JaxPrograms | None = None,
  ):
    """Compiles nothing yet.

    Args:
      made: the environment.
      num_environments: B.
      seed: of the environments' keys.
      keys: `[B]`, the environments' keys in place of those that `seed` gives.
      programs: of `make_jax_programs`, where several batches share them.
    """
    self.spec = made.spec
    self.num_environments = num_environments
    self._environment = made
    self._keys = jax.random.split(jax.random.key(seed), num_environments) if keys is None else keys
    self._reset, self._step = programs or make_jax_programs(made)
    self._state: environment.BatchState | None = None

  def reset(self) -> types.TimeStep:
    """See HostEnvironment; a second reset goes on with the environments' key streams."""
    keys = self._keys if self._state is None else self._state.key
    self._state, timestep = self._reset(keys)
    return types.to_numpy(timestep)

  def step(self, action: np.ndarray) -> types.TimeStep:
    """See HostEnvironment."""
    if self._state is None:
      raise RuntimeError("step() was called before reset()")
    self._state, timestep = self._step(self._state, action)
    return types.to_numpy(timestep)

  def render(self) -> np.ndarray:
    """See HostEnvironment."""
    if self._environment.render is None:
      raise config.InputError(f"environment {self.spec.name} cannot be rendered")
    if self._state is None:
      raise RuntimeError("render() was called before reset()")
    return self._environment.render(jax.tree.map(lambda x: x[0], self._state.state))

  def close(self) -> None:
    """Does nothing: arrays need no closing."""


def from_jax(made: environment.Environment) -> HostFactory:
  """Returns the factory of a JAX-native environment's batches."""
  programs = make_jax_programs(made)

  def make(seeds: Sequence[int], options: HostOptions) -> JaxHostEnvironment:
    del options
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    return JaxHostEnvironment(made, len(seeds), keys=keys, programs=programs)

  return HostFactory(
    spec=made.spec,
    make=make,
    can_render=made.render is not None,
    frames_per_second=made.frames_per_second,
    evaluation=None if made.evaluation is None else from_jax(made.evaluation),
    tasks=tuple(from_jax(task) for task in made.tasks),
  )


def as_factory(made: Any) -> HostFactory:
  """Returns the factory of either kind of environment."""
  return made if isinstance(made, HostFactory) else from_jax(made)
