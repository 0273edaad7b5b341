"""craftax: open-ended survival and crafting (Matthews et al. 2024), symbolic and from pixels."""

from typing import Any

LIBRARY = "craftax"
EXTRA = "craftax"
NAMES = (
  "Craftax-Classic-Pixels-v1",
  "Craftax-Classic-Symbolic-v1",
  "Craftax-Pixels-v1",
  "Craftax-Symbolic-v1",
)


def make(name: str, **options: Any) -> Any:
  """Builds a craftax environment.

  craftax says only that an episode is over. Asked with a time limit out of reach it says whether the
  task has ended, and what is over but has not is truncated.

  Args:
    name: one of NAMES.
    **options: fields of craftax's `EnvParams`, such as `max_timesteps`, or of its
      `StaticEnvParams`, such as `map_size`.

  Returns:
    An `environment.Environment`.

  Raises:
    ValueError: for another option or a bad value.
  """
  import dataclasses

  import jax
  import numpy as np
  from craftax import craftax_env

  from podracer import environment, types
  from podracer.environments import _adapt

  made = craftax_env.make_craftax_env_from_name(name, auto_reset=False)
  static = _fields(made.static_env_params)
  known = {**_fields(made.default_params), **static}
  _adapt.check_options(f"craftax:{name}", options, known)
  options = _adapt.check_numbers(f"craftax:{name}", options, known)
  chosen = {key: value for key, value in options.items() if key in static}
  if chosen:
    made = type(made)(dataclasses.replace(made.static_env_params, **chosen))
  params = made.default_params.replace(
    **{key: value for key, value in options.items() if key not in static}
  )
  endless = params.replace(max_timesteps=np.iinfo(np.int32).max)

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    observation, state = made.reset_env(key, params)
    return state, observation

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    observation, state, reward, _, _ = made.step_env(key, state, action, params)
    return state, environment.Outcome(
      observation=observation,
      reward=reward,
      terminated=made.is_terminal(state, endless),
      truncated=state.timestep >= params.max_timesteps,
    )

  space = made.observation_space(params)
  observed = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  return _adapt.stable_types(
    environment.Environment(
      spec=types.EnvironmentSpec(
        name=name,
        observation=_adapt.array_spec(observed.shape, observed.dtype, space.low, space.high),
        action=types.DiscreteActions(int(made.num_actions)),
      ),
      reset=reset,
      step=step,
      render=_renderer("Classic" in name),
      frames_per_second=8,
      reset_chunk=16,
    )
  )


def _fields(dataclass: Any) -> dict[str, Any]:
  import dataclasses

  return {field.name: getattr(dataclass, field.name) for field in dataclasses.fields(dataclass)}


def _renderer(is_classic: bool) -> Any:
  """Returns a function from a state to what a player of craftax sees."""
  import jax
  import numpy as np

  from podracer.environments import _drawing

  if is_classic:
    from craftax.craftax_classic import constants, renderer
  else:
    from craftax.craftax import constants, renderer
  draw = jax.jit(renderer.make_craftax_pixel_renderer(constants.BLOCK_PIXEL_SIZE_IMG))

  def render(state: Any) -> np.ndarray:
    picture = np.clip(np.asarray(draw(state)), 0, 255).astype(np.uint8)
    return _drawing.enlarge(picture)

  return render
