"""gymnax: classic control, MinAtar, bsuite and small tasks (Lange 2022)."""

from typing import Any

from podracer import config

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
_WRONG_BOUNDS = ("GaussianBandit-misc", "MemoryChain-bsuite", "MetaMaze-misc")
"""Tasks whose observations leave the bounds that gymnax states."""
_BOOL = "-MinAtar"
"""Tasks of these names observe planes of 0 and 1: as bool, like MinAtar's own, a quarter of the memory."""


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

  from podracer.environments import _adapt

  try:
    made, params = gymnax.make(name)
  except OSError as error:
    raise config.InputError(
      f"environment gymnax:{name} downloads its data and needs the network: {error}"
    ) from error
  fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
  arguments = _adapt.arguments(type(made))
  _adapt.check_options(f"gymnax:{name}", options, [*fields, *arguments])
  options = _adapt.check_numbers(f"gymnax:{name}", options, {**arguments, **fields})
  constructor = {key: value for key, value in options.items() if key not in fields}
  if constructor:
    try:
      made, params = gymnax.make(name, **constructor)
    except (AssertionError, TypeError) as error:
      raise config.InputError(f"environment gymnax:{name}: a bad value in {constructor}") from error
  return from_gymnax(
    made, params.replace(**{key: options[key] for key in options if key in fields})
  )


def from_gymnax(made: Any, params: Any) -> Any:
  """Adapts an environment written for gymnax 1.0, a user's own too.

  Args:
    made: a `gymnax.environments.environment.Environment`.
    params: its parameters.

  Returns:
    An `environment.Environment` around the un-reset `step_env`.
  """
  import jax
  from gymnax.environments import spaces

  from podracer import environment, types
  from podracer.environments import _adapt, _gymnax_drawing

  action_space = made.action_space(params)
  is_discrete = isinstance(action_space, spaces.Discrete)

  def as_observed(observation: types.Observation) -> types.Observation:
    return observation.astype(bool) if made.name.endswith(_BOOL) else observation

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    observation, state = made.reset_env(key, params)
    return state, as_observed(observation)

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    if not is_discrete:
      action = action.reshape(action_space.shape)
    observation, state, reward, terminated, _ = made.step_env(key, state, action, params)
    return state, environment.Outcome(
      observation=as_observed(observation),
      reward=reward,
      terminated=terminated,
      truncated=made.is_truncated(state, params),
    )

  if is_discrete:
    action_spec: types.ActionSpec = types.DiscreteActions(int(action_space.n))
  else:
    action_spec = _adapt.box_actions(action_space.low, action_space.high, action_space.shape)
  space = made.observation_space(params)
  if isinstance(space, spaces.Discrete):
    bounds: tuple[Any, Any] = (0, space.n - 1)
  else:
    bounds = (None, None) if made.name in _WRONG_BOUNDS else (space.low, space.high)
  observed = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  render, frames_per_second = _gymnax_drawing.renderer(made, params)
  return _adapt.stable_types(
    environment.Environment(
      spec=types.EnvironmentSpec(
        name=made.name,
        observation=jax.tree.map(lambda x: _adapt.array_spec(x.shape, x.dtype, *bounds), observed),
        action=action_spec,
      ),
      reset=reset,
      step=step,
      render=render,
      frames_per_second=frames_per_second,
    )
  )
