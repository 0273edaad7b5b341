"""The conformance check of an environment, and courses of random actions."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import environment as environment_lib
from podracer import types


def check_environment(
  environment: environment_lib.Environment,
  num_environments: int = 4,
  num_steps: int = 32,
  seed: int = 0,
  tolerance: float = 1e-4,
) -> int:
  """Checks that an environment keeps the contract of `environment.Environment` and `types`.

  Random legal actions are taken. Checked are shapes, dtypes and bounds against the spec; the order
  FIRST MID* LAST FIRST with reward 0 and discount 1 at FIRST; discounts of 0 at LAST only; finite
  numbers; that a course is a function of its environment's key, the same under `scan`, in a loop of
  steps, alone, beside other environments, and whether resets are computed for all or in chunks; and
  the picture, where there is one. Of several tasks each is checked by itself, and that beside the others
  it is the same.

  Args:
    environment: the environment.
    num_environments: of the batch, at least 2; of several tasks of each.
    num_steps: of each; choose as many as let some episodes end.
    seed: of the environments' keys and of the actions.
    tolerance: relative and absolute, to which courses computed differently must agree.

  Returns:
    How many episodes ended: a check in which none did has not seen a reset.

  Raises:
    AssertionError: naming the first thing that does not hold.
  """
  check_types(environment)
  if environment.tasks:
    return _check_tasks(environment, num_environments, num_steps, seed, tolerance)
  name = environment.spec.name
  keys = jax.random.split(jax.random.key(seed), num_environments)
  course_of = jax.jit(lambda k: _course(environment, k, num_steps))
  timesteps, states = course_of(keys)
  course = types.to_numpy(timesteps)
  _check_values(environment.spec, course)
  _check_time(name, course)

  again, _ = course_of(keys)
  _assert_same(name, "a second run with the same keys", course, again, 0.0)
  rolled, _ = course_of(jnp.roll(keys, 1))
  rolled = jax.tree.map(lambda x: np.roll(np.asarray(x), -1, axis=1), rolled)
  _assert_same(name, "the same keys at other places of the batch", course, rolled, tolerance)
  other_chunk = 0 if environment.reset_chunk > 0 else max(1, num_environments // 2)
  other = environment._replace(reset_chunk=other_chunk)
  chunked, _ = jax.jit(lambda k: _course(other, k, num_steps))(keys)
  _assert_same(name, f"reset_chunk={other_chunk}", course, chunked, tolerance)
  alone = _course_alone(environment, keys[:1], num_steps)
  first = jax.tree.map(lambda x: x[:, :1], course)
  _assert_same(name, "a loop of steps with one environment alone", first, alone, tolerance)
  if environment.render is not None:
    _check_picture(name, environment.render(jax.tree.map(lambda x: x[0], states)))
  return int(np.sum(course.step_type == types.LAST))


def check_types(environment: environment_lib.Environment) -> None:
  """Checks that structure, shapes and dtypes are those of the spec, and that steps can be scanned.

  It only traces, so it compiles and runs nothing: the part of `check_environment` that is cheap.

  Args:
    environment: the environment.

  Raises:
    AssertionError: naming the first thing that does not hold.
  """
  spec = environment.spec
  _check_specs(spec)
  batch = 2 * max(1, len(environment.tasks))
  keys = jax.random.split(jax.random.key(0), batch)
  try:
    timesteps, _ = jax.eval_shape(lambda k: _course(environment, k, 1), keys)
  except TypeError as error:
    raise AssertionError(
      f"{spec.name}: step() does not give back the types of reset(), so it cannot be scanned: {error}"
    ) from error
  expected: Any = jax.tree.structure(spec.observation, is_leaf=types.is_array_spec)
  found: Any = jax.tree.structure(timesteps.observation)
  assert expected == found, f"{spec.name}: the observation is a {found}, but its spec a {expected}"
  for what, leaf_spec, leaf in _leaves(spec, timesteps):
    shape = (2, batch, *leaf_spec.shape)
    assert leaf.shape == shape, f"{what} has shape {leaf.shape[2:]}, not {leaf_spec.shape}"
    assert leaf.dtype == leaf_spec.dtype, f"{what} is {leaf.dtype}, not {leaf_spec.dtype}"
  mask = types.action_mask(timesteps.observation)
  if mask is not None:
    assert mask.dtype == bool, f"{spec.name}: the action mask is {mask.dtype}, not bool"


def random_action(
  key: types.Key, spec: types.EnvironmentSpec, observation: types.Observation
) -> types.Array:
  """Draws a legal action for one environment: uniform, or normal where a box has no bounds.

  Args:
    key: consumed.
    spec: of the environment.
    observation: of one environment, for its action mask.

  Returns:
    An int32 scalar or a `[k]` float32 action.
  """
  if isinstance(spec.action, types.DiscreteActions):
    mask = types.action_mask(observation)
    logits = jnp.zeros(spec.action.num_actions)
    if mask is not None:
      logits = jnp.where(mask, 0.0, -jnp.inf)
    return jax.random.categorical(key, logits).astype(jnp.int32)
  low, high = jnp.asarray(spec.action.minimum), jnp.asarray(spec.action.maximum)
  is_bounded = jnp.isfinite(low) & jnp.isfinite(high)
  low, high = jnp.where(is_bounded, low, -1.0), jnp.where(is_bounded, high, 1.0)
  return jax.random.uniform(key, (spec.action.size,), jnp.float32, low, high)


def random_course(
  environment: environment_lib.Environment, keys: types.Key, num_steps: int
) -> types.TimeStep:
  """Takes random legal actions.

  Args:
    environment: the environment.
    keys: `[B]`, of the environments and of their actions.
    num_steps: of each.

  Returns:
    The time steps `[num_steps + 1, B]`, on the host.
  """
  timesteps, _ = jax.jit(lambda k: _course(environment, k, num_steps))(keys)
  return types.to_numpy(timesteps)


def _actions(
  spec: types.EnvironmentSpec, keys: types.Key, step: Any, observation: types.Observation
) -> types.Array:
  """Draws `[B]` actions; each depends on its own environment's key and observation only."""
  return jax.vmap(lambda k, o: random_action(jax.random.fold_in(k, step), spec, o))(
    keys, observation
  )


def _course(
  environment: environment_lib.Environment, keys: types.Key, num_steps: int
) -> tuple[types.TimeStep, environment_lib.EnvironmentState]:
  """Returns the time steps `[num_steps + 1, B]` of random actions, and the last states."""
  state, first = environment_lib.reset(environment, keys)

  def step(carry: Any, index: types.Array) -> tuple[Any, types.TimeStep]:
    state, timestep = carry
    action = _actions(environment.spec, keys, index, timestep.observation)
    carry = environment_lib.step(environment, state, action)
    return carry, carry[1]

  (state, _), rest = jax.lax.scan(step, (state, first), jnp.arange(num_steps))
  course = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)
  return course, state.state


def _check_tasks(
  environment: environment_lib.Environment,
  num_environments: int,
  num_steps: int,
  seed: int,
  tolerance: float,
) -> int:
  """Checks the tasks one by one, and that together they are the same; returns as the check does."""
  keys = jax.random.split(jax.random.key(seed), num_environments * len(environment.tasks))
  together = random_course(environment, keys, num_steps)
  num_ends = 0
  for i, task in enumerate(environment.tasks):
    share = slice(i * num_environments, (i + 1) * num_environments)
    num_ends += check_environment(task, num_environments, num_steps, seed, tolerance)
    alone = random_course(task, keys[share], num_steps)
    beside = jax.tree.map(lambda x, share=share: x[:, share], together)
    _assert_same(task.spec.name, "being beside other tasks", alone, beside, tolerance)
  return num_ends


def _course_alone(
  environment: environment_lib.Environment, key: types.Key, num_steps: int
) -> types.TimeStep:
  """Returns the time steps `[num_steps + 1, 1]` of a Python loop over a compiled step."""

  @jax.jit
  def step(state: Any, timestep: types.TimeStep, index: types.Array) -> Any:
    action = _actions(environment.spec, key, index, timestep.observation)
    return environment_lib.step(environment, state, action)

  state, timestep = jax.jit(lambda k: environment_lib.reset(environment, k))(key)
  course = [timestep]
  for index in range(num_steps):
    state, timestep = step(state, timestep, jnp.asarray(index))
    course.append(timestep)
  return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *course)


def _check_specs(spec: types.EnvironmentSpec) -> None:
  leaves = jax.tree.leaves(spec.observation, is_leaf=types.is_array_spec)
  assert leaves and all(types.is_array_spec(leaf) for leaf in leaves), (
    f"{spec.name}: spec.observation must be a tree of types.ArraySpec, got {spec.observation}"
  )
  if isinstance(spec.action, types.DiscreteActions):
    assert spec.action.num_actions >= 1, f"{spec.name}: num_actions is {spec.action.num_actions}"
  else:
    assert isinstance(spec.action, types.ContinuousActions), (
      f"{spec.name}: spec.action must be DiscreteActions or ContinuousActions, got {spec.action}"
    )
    pairs = zip(spec.action.minimum, spec.action.maximum, strict=True)
    assert all(low < high for low, high in pairs), (
      f"{spec.name}: the bounds of the actions are empty: {spec.action}"
    )


def _leaves(
  spec: types.EnvironmentSpec, timesteps: types.TimeStep
) -> Iterator[tuple[str, types.ArraySpec, Any]]:
  """Yields what each array of the time steps is, its spec, and itself."""
  for field, dtype in (("step_type", "int8"), ("reward", "float32"), ("discount", "float32")):
    leaf_spec = types.ArraySpec((), jnp.dtype(dtype))
    yield f"{spec.name}: {field}", leaf_spec, getattr(timesteps, field)
  specs = jax.tree.leaves_with_path(spec.observation, is_leaf=types.is_array_spec)
  arrays = jax.tree.leaves(timesteps.observation)
  for (path, leaf_spec), leaf in zip(specs, arrays, strict=True):
    yield f"{spec.name}: observation{jax.tree_util.keystr(path)}", leaf_spec, leaf


def _check_values(spec: types.EnvironmentSpec, course: types.TimeStep) -> None:
  """Checks finite numbers, bounds, and that a mask leaves an action."""
  for what, leaf_spec, leaf in _leaves(spec, course):
    values = leaf.astype(np.float64)
    assert np.all(np.isfinite(values)), f"{what} is not finite"
    if leaf_spec.minimum is not None:
      low = leaf_spec.minimum - 1e-5 * max(1.0, abs(leaf_spec.minimum))
      assert np.all(values >= low), f"{what} is {values.min()}, below {leaf_spec.minimum}"
    if leaf_spec.maximum is not None:
      high = leaf_spec.maximum + 1e-5 * max(1.0, abs(leaf_spec.maximum))
      assert np.all(values <= high), f"{what} is {values.max()}, above {leaf_spec.maximum}"
  mask = types.action_mask(course.observation)
  if mask is not None:
    assert np.all(np.any(mask, axis=-1) | (course.step_type == types.LAST)), (
      f"{spec.name}: an action mask allows no action although the episode goes on"
    )


def _check_time(name: str, course: types.TimeStep) -> None:
  """Checks the convention of `types`: the order of step types, and rewards and discounts in it."""
  is_first = course.step_type == types.FIRST
  is_last = course.step_type == types.LAST
  assert np.all((course.step_type >= types.FIRST) & (course.step_type <= types.LAST)), (
    f"{name}: step_type is none of FIRST, MID and LAST"
  )
  assert np.all(is_first[0]), f"{name}: reset() does not return FIRST"
  assert np.all(is_first[1:] == is_last[:-1]), (
    f"{name}: FIRST does not come after LAST and only there"
  )
  assert np.all(course.reward[is_first] == 0.0), f"{name}: the reward at FIRST is not 0"
  assert np.all(course.discount[is_first] == 1.0), f"{name}: the discount at FIRST is not 1"
  assert np.all((course.discount == 0.0) | (course.discount == 1.0)), (
    f"{name}: a discount is neither 0 nor 1"
  )
  assert np.all(is_last[course.discount == 0.0]), f"{name}: a discount is 0 before LAST"


def _assert_same(name: str, what: str, expected: Any, found: Any, tolerance: float) -> None:
  pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True)
  for (path, a), b in pairs:
    close = np.isclose(
      np.asarray(b, np.float64), np.asarray(a, np.float64), rtol=tolerance, atol=tolerance
    )
    if not np.all(close):
      step = int(np.argwhere(~close)[0][0])
      raise AssertionError(
        f"{name}: {what} gives another course, at {jax.tree_util.keystr(path)} from step {step} on"
      )


def _check_picture(name: str, picture: Any) -> None:
  assert isinstance(picture, np.ndarray) and picture.dtype == np.uint8, (
    f"{name}: render() must return a NumPy array of uint8"
  )
  assert picture.ndim == 3 and picture.shape[2] == 3, (
    f"{name}: render() returned shape {picture.shape}, not [H, W, 3]"
  )
  assert picture.shape[0] % 2 == 0 and picture.shape[1] % 2 == 0, (
    f"{name}: a video needs even sizes, render() returned {picture.shape}"
  )
