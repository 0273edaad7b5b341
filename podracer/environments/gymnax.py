"""gymnax: classic control, MinAtar, bsuite and small tasks (Lange 2022)."""

from collections.abc import Callable
from typing import Any

LIBRARY = "gymnax"
EXTRA = None
NAMES = (
  "Acrobot-v1",
  "Asterix-MinAtar",
  "BernoulliBandit-misc",
  "Breakout-MinAtar",
  "CartPole-v1",
  "Catch-bsuite",
  "DeepSea-bsuite",
  "DiscountingChain-bsuite",
  "FourRooms-misc",
  "Freeway-MinAtar",
  "FrozenLake-misc",
  "GaussianBandit-misc",
  "MNISTBandit-bsuite",
  "MemoryChain-bsuite",
  "MetaMaze-misc",
  "MountainCar-v0",
  "MountainCarContinuous-v0",
  "Pendulum-v1",
  "PointRobot-misc",
  "Pong-misc",
  "Reacher-misc",
  "Seaquest-MinAtar",
  "SimpleBandit-bsuite",
  "SpaceInvaders-MinAtar",
  "Swimmer-misc",
  "UmbrellaChain-bsuite",
)


def make(name: str, **options: Any) -> Any:
  """Builds a gymnax environment.

  Args:
    name: one of NAMES.
    **options: fields of the environment's own parameters, such as `max_steps_in_episode`, or else
      arguments of its constructor.

  Returns:
    An `environment.Environment`.

  Raises:
    ValueError: for an option that is neither.
  """
  import dataclasses

  import gymnax

  fields = {field.name for field in dataclasses.fields(gymnax.make(name)[1])}
  constructor = {key: value for key, value in options.items() if key not in fields}
  try:
    made, params = gymnax.make(name, **constructor)
  except TypeError as error:
    raise ValueError(
      f"environment gymnax:{name} has no option {', '.join(constructor)}; its options: "
      f"{', '.join(sorted(fields))}"
    ) from error
  params = params.replace(**{key: value for key, value in options.items() if key in fields})
  return from_gymnax(made, params)


def from_gymnax(made: Any, params: Any) -> Any:
  """Adapts an environment written for gymnax 1.0, a user's own too.

  Args:
    made: a `gymnax.environments.environment.Environment`.
    params: its parameters.

  Returns:
    An `environment.Environment` around the un-reset `step_env`.
  """
  import jax
  import jax.numpy as jnp
  from gymnax.environments import spaces

  from podracer import environment, types

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    observation, state = made.reset_env(key, params)
    return state, observation

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    observation, state, reward, terminated, _ = made.step_env(key, state, action, params)
    return state, environment.Outcome(
      observation=observation,
      reward=reward,
      terminated=terminated,
      truncated=made.is_truncated(state, params),
    )

  shape = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  space = made.observation_space(params)
  action_space = made.action_space(params)
  if isinstance(action_space, spaces.Discrete):
    action_spec: types.ActionSpec = types.DiscreteActions(int(action_space.n))
  else:
    size = action_space.shape
    action_spec = types.ContinuousActions(
      minimum=tuple(jnp.broadcast_to(action_space.low, size).reshape(-1).tolist()),
      maximum=tuple(jnp.broadcast_to(action_space.high, size).reshape(-1).tolist()),
    )
  if isinstance(space, spaces.Discrete):
    minimum, maximum = 0.0, float(space.n - 1)
  else:
    minimum, maximum = (float(jnp.min(space.low)), float(jnp.max(space.high)))
  observation_spec = jax.tree.map(
    lambda leaf: types.ArraySpec(leaf.shape, leaf.dtype, minimum, maximum), shape
  )
  return environment.Environment(
    spec=types.EnvironmentSpec(made.name, observation_spec, action_spec),
    reset=reset,
    step=step,
    render=_renderer(made, params),
  )


def _renderer(made: Any, params: Any) -> Callable[[Any], Any] | None:
  """Returns a function from a state to a picture where gymnax can draw the environment."""
  raise NotImplementedError
