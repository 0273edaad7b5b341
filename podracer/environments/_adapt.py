"""What the suites share: checking options, reading spaces, and a time limit that truncates."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import config, environment, types


def check_options(name: str, options: dict[str, Any], valid: Iterable[str]) -> None:
  """Raises ValueError, with what is valid, for an option that is not in `valid`."""
  valid = sorted(valid)
  unknown = [option for option in options if option not in valid]
  if unknown:
    raise config.InputError(
      f"environment {name} has no option {', '.join(unknown)}; its options: "
      f"{', '.join(valid) or 'none'}"
    )


def check_numbers(name: str, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
  """Returns the options with numbers in the type of their defaults.

  Args:
    name: of the environment, for the message.
    options: as the user gave them.
    defaults: of the options; one that is no number says nothing about the option.

  Raises:
    ValueError: for an option that is no such number although its default is one.
  """
  typed = dict(options)
  for option, value in options.items():
    kind = type(defaults.get(option))
    if kind not in (bool, int, float):
      continue
    is_number = isinstance(value, (bool, int, float)) and math.isfinite(value)
    if not is_number or kind(value) != value:
      words = {bool: "True or False", int: "a whole number", float: "a number"}
      raise config.InputError(
        f"environment {name}: option {option} must be {words[kind]}, got {value!r}"
      )
    typed[option] = kind(value)
  return typed


def read_options(name: str, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
  """Returns the defaults with the options in their place, checked as the two functions above do."""
  check_options(name, options, defaults)
  return {**defaults, **check_numbers(name, options, defaults)}


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
  """Returns the named arguments of a function or a class and their defaults."""
  parameters = inspect.signature(function).parameters.values()
  kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  return {p.name: p.default for p in parameters if p.kind in kinds and p.name != "self"}


def array_spec(shape: Any, dtype: Any, minimum: Any = None, maximum: Any = None) -> types.ArraySpec:
  """Returns an ArraySpec whose bounds are the least and the greatest of the given, or None.

  Bounds that say nothing, such as the greatest float, are left out.
  """
  low = None if minimum is None else float(np.min(np.asarray(minimum)))
  high = None if maximum is None else float(np.max(np.asarray(maximum)))
  is_known = [
    bound is not None and math.isfinite(bound) and abs(bound) < 1e9 for bound in (low, high)
  ]
  return types.ArraySpec(
    tuple(shape), jnp.dtype(dtype), low if is_known[0] else None, high if is_known[1] else None
  )


def box_actions(low: Any, high: Any, shape: Any) -> types.ContinuousActions:
  """Returns the actions of a box, flat; one from float32's greatest number on is no bound."""
  greatest = np.finfo(np.float32).max
  low, high = (
    np.where(np.abs(bound) >= greatest, np.copysign(np.inf, bound), bound) for bound in (low, high)
  )
  low, high = (np.broadcast_to(bound, shape).reshape(-1) for bound in (low, high))
  return types.ContinuousActions(minimum=tuple(low.tolist()), maximum=tuple(high.tolist()))


def time_limit(made: environment.Environment, num_steps: int) -> environment.Environment:
  """Returns an environment that is truncated on its `num_steps`-th step.

  A time limit is no property of the task, so it must not end the episode for the learner: the
  discount stays 1 unless the step ends it too.

  Args:
    made: the environment, whose state is kept beside a count.
    num_steps: of an episode at most; above 0.

  Returns:
    An environment with state `(state, count)`.

  Raises:
    ValueError: for a limit below 1.
  """
  if not isinstance(num_steps, int) or num_steps < 1:
    raise config.InputError(
      f"environment {made.spec.name}: the most steps of an episode must be a number of at least 1, "
      f"got {num_steps!r}"
    )

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    state, observation = made.reset(key)
    return (state, jnp.zeros((), jnp.int32)), observation

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    inner, count = state
    inner, outcome = made.step(key, inner, action)
    truncated = jnp.logical_or(outcome.truncated, count + 1 >= num_steps)
    return (inner, count + 1), outcome._replace(truncated=truncated)

  render = made.render
  return made._replace(
    reset=reset,
    step=step,
    render=None if render is None else lambda state: render(state[0]),
  )


def stable_types(made: environment.Environment) -> environment.Environment:
  """Returns an environment whose reset gives the dtypes of its step, as a scan needs.

  Suites start some counters as a Python 0 and go on with a float, say.
  """
  zero_action: Any
  if isinstance(made.spec.action, types.DiscreteActions):
    zero_action = jnp.zeros((), jnp.int32)
  else:
    zero_action = jnp.zeros((made.spec.action.size,), jnp.float32)

  def next_state(key: types.Key) -> tuple[Any, types.Observation]:
    state, _ = made.reset(key)
    state, outcome = made.step(key, state, zero_action)
    return state, outcome.observation

  expected = jax.eval_shape(next_state, jax.random.key(0))

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), made.reset(key), expected)

  return made._replace(reset=reset)
