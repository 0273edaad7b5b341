"""pgx: MinAtar and 2048 (Koyamada et al. 2023), its tasks of one player."""

from typing import Any

LIBRARY = "pgx"
EXTRA = "pgx"
NAMES = (
  "2048",
  "minatar-asterix",
  "minatar-breakout",
  "minatar-freeway",
  "minatar-seaquest",
  "minatar-space_invaders",
)


def make(name: str, **options: Any) -> Any:
  """Builds a pgx environment of one player.

  pgx knows no time limit, and some of its MinAtar games need never end, so `max_steps` truncates.

  Args:
    name: one of NAMES.
    **options: `max_steps` of an episode (10000); of MinAtar also `sticky_action_prob` (0.1) and
      `use_minimal_action_set` (True).

  Returns:
    An `environment.Environment`; that of 2048 observes a dict with an action mask.

  Raises:
    ValueError: for another option or a bad value.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  import pgx

  from podracer import environment, types
  from podracer.environments import _adapt, _drawing, _gymnax_drawing

  made = pgx.make(name)
  defaults = _adapt.arguments(type(made))
  chosen = _adapt.read_options(f"pgx:{name}", options, {"max_steps": 10_000, **defaults})
  max_steps = chosen.pop("max_steps")
  made = type(made)(**chosen)
  has_mask = name == "2048"

  def observe(state: Any) -> types.Observation:
    # pgx observes bool planes, which networks read as numbers.
    planes = state.observation.astype(jnp.float32)
    if not has_mask:
      return planes
    return {"board": planes, types.ACTION_MASK: state.legal_action_mask}

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    state = made.init(key)
    return state, observe(state)

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    state = made.step(state, action, key)
    return state, environment.Outcome(
      observation=observe(state),
      reward=state.rewards[0],
      terminated=state.terminated,
      truncated=state.truncated,
    )

  def render(state: Any) -> np.ndarray:
    if not has_mask:
      return _gymnax_drawing.minatar(state.observation, name)
    powers = np.asarray(state._board).reshape(4, 4)
    return _drawing.tiles(powers, _TILES, np.where(powers > 0, 2**powers, "").astype(object))

  observed = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  adapted = environment.Environment(
    spec=types.EnvironmentSpec(
      name=name,
      observation=jax.tree.map(lambda x: _adapt.array_spec(x.shape, x.dtype, 0, 1), observed),
      action=types.DiscreteActions(int(made.num_actions)),
    ),
    reset=reset,
    step=step,
    render=render,
    frames_per_second=4 if has_mask else 15,
  )
  return _adapt.time_limit(_adapt.stable_types(adapted), max_steps)


_TILES = (
  (44, 48, 58),
  (238, 228, 218),
  (237, 224, 200),
  (242, 177, 121),
  (245, 149, 99),
  (246, 124, 95),
  (246, 94, 59),
  (237, 207, 114),
  (237, 204, 97),
  (237, 200, 80),
  (237, 197, 63),
  (237, 194, 46),
  (120, 92, 200),
)
