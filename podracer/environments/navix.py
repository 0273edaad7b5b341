"""navix: MiniGrid in JAX (Pignatelli et al. 2024)."""

from typing import Any

from podracer import config

LIBRARY = "navix"
EXTRA = "navix"
NAMES = (
  "DistShift1-v0",
  "DistShift2-v0",
  "DoorKey-16x16-v0",
  "DoorKey-5x5-v0",
  "DoorKey-6x6-v0",
  "DoorKey-8x8-v0",
  "DoorKey-Random-16x16-v0",
  "DoorKey-Random-5x5-v0",
  "DoorKey-Random-6x6-v0",
  "DoorKey-Random-8x8-v0",
  "Dynamic-Obstacles-16x16-v0",
  "Dynamic-Obstacles-5x5-Random-v0",
  "Dynamic-Obstacles-5x5-v0",
  "Dynamic-Obstacles-6x6-Random-v0",
  "Dynamic-Obstacles-6x6-v0",
  "Dynamic-Obstacles-8x8-v0",
  "Empty-16x16-v0",
  "Empty-5x5-v0",
  "Empty-6x6-v0",
  "Empty-8x8-v0",
  "Empty-Random-16x16-v0",
  "Empty-Random-5x5-v0",
  "Empty-Random-6x6-v0",
  "Empty-Random-8x8-v0",
  "FourRooms-v0",
  "GoToDoor-5x5-v0",
  "GoToDoor-6x6-v0",
  "GoToDoor-8x8-v0",
  "KeyCorridorS3R1-v0",
  "KeyCorridorS3R2-v0",
  "KeyCorridorS3R3-v0",
  "KeyCorridorS4R3-v0",
  "KeyCorridorS5R3-v0",
  "KeyCorridorS6R3-v0",
  "LavaGapS5-v0",
  "LavaGapS6-v0",
  "LavaGapS7-v0",
  "SimpleCrossingS11N5-v0",
  "SimpleCrossingS9N1-v0",
  "SimpleCrossingS9N2-v0",
  "SimpleCrossingS9N3-v0",
)
OBSERVATIONS = (
  "categorical",
  "categorical_first_person",
  "rgb",
  "rgb_first_person",
  "symbolic",
  "symbolic_first_person",
)


def make(name: str, **options: Any) -> Any:
  """Builds a navix environment.

  navix tells a time limit (its step type TRUNCATION) from an end (TERMINATION), and so does this.

  Args:
    name: one of NAMES, navix's without the leading `Navix-`.
    **options: `observation`, one of OBSERVATIONS (`symbolic`); `max_steps` of an episode (navix's
      100).

  Returns:
    An `environment.Environment`.

  Raises:
    ValueError: for another option or a bad value.
  """
  import jax
  import jax.numpy as jnp
  import navix
  import numpy as np
  from navix.rendering import cache as navix_cache

  from podracer import environment, types
  from podracer.environments import _adapt, _drawing

  defaults = {"observation": "symbolic", "max_steps": 100}
  chosen = _adapt.read_options(f"navix:{name}", options, defaults)
  if chosen["observation"] not in OBSERVATIONS:
    raise config.InputError(
      f"environment navix:{name}: observation must be one of {', '.join(OBSERVATIONS)}, got "
      f"{chosen['observation']!r}"
    )
  observation_fn = getattr(navix.observations, chosen["observation"])
  made = navix.make(f"Navix-{name}", observation_fn=observation_fn, max_steps=chosen["max_steps"])

  # navix keeps the tiles of the whole background in each environment's state (0.8 MB for 16x16).
  # The state here has none, and they are made from the grid where a picture is wanted.
  no_cache = navix_cache.RenderingCache(patches=jnp.zeros((0,), jnp.uint8))

  def with_cache(state: Any) -> Any:
    return state.replace(cache=navix_cache.RenderingCache.init(state.grid))

  # navix's own spaces are too narrow: their 9 leaves out the colours and directions of `symbolic`.
  is_picture = chosen["observation"].startswith("rgb")
  highest = 255 if is_picture else 10

  def observe(state: Any) -> types.Array:
    if is_picture:
      return observation_fn(with_cache(state))
    # An unset colour or direction wraps to 254 in navix; 10 means nothing else in those layers.
    return jnp.minimum(observation_fn(state), highest)

  made = made.replace(observation_fn=observe)

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    timestep = made.reset(key, no_cache)
    # Kept in the state, observation and info would only be copied about.
    return timestep.replace(observation=(), info={}), timestep.observation

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    del key  # navix has one in its state.
    timestep = made._step(state, action)
    return timestep.replace(observation=(), info={}), environment.Outcome(
      observation=timestep.observation,
      reward=timestep.reward,
      terminated=timestep.is_termination(),
      truncated=timestep.is_truncation(),
    )

  draw = jax.jit(lambda state: navix.observations.rgb(with_cache(state.state)))
  observed = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  return _adapt.stable_types(
    environment.Environment(
      spec=types.EnvironmentSpec(
        name=name,
        observation=_adapt.array_spec(observed.shape, observed.dtype, 0, highest),
        action=types.DiscreteActions(int(made.action_space.n)),
      ),
      reset=reset,
      step=step,
      render=lambda state: _drawing.enlarge(np.asarray(draw(state))),
      frames_per_second=8,
      # Laying out a room costs more than a step: 70 against 25 us a step of FourRooms on a CPU.
      reset_chunk=16,
    )
  )
