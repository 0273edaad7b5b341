"""jumanji: combinatorial and routing tasks (Bonnet et al. 2024), those with one discrete action."""

from typing import Any

LIBRARY = "jumanji"
EXTRA = "jumanji"
NAMES = (
  "CVRP-v1",
  "Game2048-v1",
  "GraphColoring-v1",
  "Knapsack-v1",
  "Maze-v0",
  "PacMan-v1",
  "SlidingTilePuzzle-v0",
  "Snake-v1",
  "TSP-v1",
)


def make(name: str, **options: Any) -> Any:
  """Builds a jumanji environment.

  jumanji gives discount 0 at its time limits too. Here the environment is built without its limit,
  and that is put around it, so that only what ends the task has discount 0.

  Args:
    name: one of NAMES.
    **options: arguments of the environment's constructor, such as `time_limit` or `generator`.

  Returns:
    An `environment.Environment` that observes a dict, with an action mask where the task has one.

  Raises:
    ValueError: for another option or a bad value.
  """
  import jax
  import jax.numpy as jnp
  import jumanji
  import numpy as np

  from podracer import environment, types
  from podracer.environments import _adapt, _drawing

  made: Any = jumanji.make(name)
  known = _adapt.arguments(type(made))
  known.pop("viewer", None)
  # The limit of the maze is None at first, and then of its size.
  if "time_limit" in known:
    known["time_limit"] = made.time_limit
  _adapt.check_options(f"jumanji:{name}", options, known)
  options = _adapt.check_numbers(f"jumanji:{name}", options, known)
  if options:
    made = jumanji.make(name, **options)
  observation_spec = made.observation_spec  # cached, and of the true time limit
  time_limit = getattr(made, "time_limit", None)
  if time_limit is not None:
    made.time_limit = int(np.iinfo(np.int32).max)

  def observe(timestep: Any) -> types.Observation:
    observation = _to_dict(timestep.observation)
    if isinstance(observation, dict) and types.ACTION_MASK in observation:
      # A snake without a way out has no legal action, and an agent no distribution over none.
      mask = observation[types.ACTION_MASK]
      observation[types.ACTION_MASK] = mask | ~jnp.any(mask)
    return observation

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    state, timestep = made.reset(key)
    return state, observe(timestep)

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    del key  # jumanji has one in its state.
    state, timestep = made.step(state, action)
    is_over = timestep.last()
    return state, environment.Outcome(
      observation=observe(timestep),
      reward=timestep.reward,
      terminated=is_over & (timestep.discount == 0),
      truncated=is_over & (timestep.discount != 0),
    )

  def read_spec(spec: Any, observed: Any, key: str) -> Any:
    if isinstance(observed, dict):
      return {name: read_spec(spec[name], observed[name], name) for name in observed}
    if key in (types.ACTION_MASK, *_WRONG_BOUNDS):
      return _adapt.array_spec(observed.shape, observed.dtype)
    bounds = (getattr(spec, "minimum", None), getattr(spec, "maximum", None))
    return _adapt.array_spec(observed.shape, observed.dtype, *bounds)

  def render(state: Any) -> np.ndarray:
    viewer = getattr(made, "_viewer", None) or made._env_viewer
    # Viewers are made to open a window; this is how one is asked for its pixels.
    viewer._display = viewer._display_rgb_array
    viewer.figure_size = (5.12, 5.12)
    picture = np.array(viewer.render(state))[..., :3]
    viewer.close()
    return _drawing.shrink(picture)

  observed = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  adapted = _adapt.stable_types(
    environment.Environment(
      spec=types.EnvironmentSpec(
        name=name,
        observation=read_spec(observation_spec, observed, ""),
        action=types.DiscreteActions(int(made.action_spec.num_values)),
      ),
      reset=reset,
      step=step,
      render=render,
      frames_per_second=8,
      # Digging a maze costs 46 us and a step 7 on a CPU.
      reset_chunk=16,
    )
  )
  return adapted if time_limit is None else _adapt.time_limit(adapted, int(time_limit))


_WRONG_BOUNDS = ("step_count", "position")
"""Entries that leave jumanji's bounds: a count reaches its limit, and TSP begins at city -1."""


def _to_dict(observation: Any) -> Any:
  """Returns the NamedTuples and dataclasses of an observation as dicts."""
  import dataclasses

  if hasattr(observation, "_asdict"):
    return {key: _to_dict(value) for key, value in observation._asdict().items()}
  if dataclasses.is_dataclass(observation):
    names = [field.name for field in dataclasses.fields(observation)]
    return {name: _to_dict(getattr(observation, name)) for name in names}
  return observation
