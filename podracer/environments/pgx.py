"""pgx: board games of two players, MinAtar and 2048 (Koyamada et al. 2023)."""

from collections.abc import Callable
from typing import Any

from podracer import config

LIBRARY = "pgx"
EXTRA = "pgx"
NAMES = (
  "2048",
  "animal_shogi",
  "connect_four",
  "gardner_chess",
  "go_9x9",
  "hex",
  "minatar-asterix",
  "minatar-breakout",
  "minatar-freeway",
  "minatar-seaquest",
  "minatar-space_invaders",
  "othello",
  "tic_tac_toe",
)
BOARD_GAMES = (
  "animal_shogi",
  "connect_four",
  "gardner_chess",
  "go_9x9",
  "hex",
  "othello",
  "tic_tac_toe",
)
"""Zero-sum games of two players who move strictly in turn."""
OPPONENTS = ("self", "random")


def make(name: str, **options: Any) -> Any:
  """Builds a pgx environment.

  pgx knows no time limit, and some of its MinAtar games need never end, so `max_steps` truncates.

  A board game is played by the agent against itself: it makes the moves of both players, observes the
  board from the view of the one to move, and the reward of a move is that of the player who made it:
  1 for a win, -1 for a loss, 0 for a draw, and 0 until the game ends. Such an environment has
  `num_players=2` and names as its `evaluation` the game against `opponent="random"`, who draws a legal
  move. That game is of one player: a step is the agent's move and the opponent's reply, the reward the
  agent's, and chance decides anew who begins. An illegal move, which the action mask rules out, loses
  the game. `versus` takes an opponent of your own. pgx's trained players (`make_baseline_model`) are
  not offered: it downloads their weights.

  Args:
    name: one of NAMES.
    **options: `max_steps` of an episode (10000; against an opponent the agent's moves count); of
      MinAtar also `sticky_action_prob` (0.1) and `use_minimal_action_set` (True); of BOARD_GAMES also
      `opponent`, one of OPPONENTS (`self`), and, of games against itself, `opening_moves` (0): each
      begins after up to that many random moves, so that the agent also learns what it would not play.

  Returns:
    An `environment.Environment`; that of 2048 and of a board game observes a dict with `board` and an
    action mask.

  Raises:
    ValueError: for another option or a bad value.
  """
  if name in BOARD_GAMES:
    return _make_board_game(name, options)
  return _make_one_player(name, options)


def versus(name: str, opponent: Callable[[Any, Any], Any], **options: Any) -> Any:
  """Builds a board game against an opponent of your own, as `make` does against `random`.

  `make(name)._replace(evaluation=versus(name, opponent))` plays against itself and is evaluated
  against the opponent.

  Args:
    name: one of BOARD_GAMES.
    opponent: (key, state) -> int32 action, in JAX and without memory. `state` is pgx's of one game:
      `state.observation` is the opponent's view, `state.legal_action_mask` its legal moves. It loses by
      an illegal one. Where the game is over it is asked too, and its answer ignored.
    **options: `max_steps` of an episode, counted in moves of the agent (10000).

  Returns:
    An `environment.Environment` of one player, the agent.

  Raises:
    ValueError: for another name or option or a bad value.
  """
  import pgx

  from podracer.environments import _adapt, _board_games

  if name not in BOARD_GAMES:
    raise config.InputError(
      f"versus() needs a game of two players: {', '.join(BOARD_GAMES)}; got {name!r}"
    )
  chosen = _adapt.read_options(f"pgx:{name}", options, {"max_steps": _MAX_STEPS})
  made = _board_games.versus(name, pgx.make(name), opponent)
  return _adapt.time_limit(made, chosen["max_steps"])


def _make_board_game(name: str, options: dict[str, Any]) -> Any:
  import pgx

  from podracer.environments import _adapt, _board_games

  defaults = {"max_steps": _MAX_STEPS, "opponent": "self", "opening_moves": 0}
  chosen = _adapt.read_options(f"pgx:{name}", options, defaults)
  max_steps, opponent = chosen["max_steps"], chosen["opponent"]
  if opponent not in OPPONENTS:
    raise config.InputError(
      f"environment pgx:{name}: opponent must be one of {', '.join(OPPONENTS)}, got {opponent!r}"
    )
  opening_moves = chosen["opening_moves"]
  config.check_at_least(0, opening_moves=opening_moves)
  config.check(
    not opening_moves or opponent == "self",
    f"environment pgx:{name}: opening_moves is for opponent=self",
  )
  against_random = versus(name, _board_games.random_opponent, max_steps=max_steps)
  if opponent == "random":
    return against_random
  made = _adapt.time_limit(_board_games.self_play(name, pgx.make(name), opening_moves), max_steps)
  return made._replace(evaluation=against_random)


def _make_one_player(name: str, options: dict[str, Any]) -> Any:
  import jax
  import numpy as np
  import pgx

  from podracer import environment, types
  from podracer.environments import _adapt, _board_games, _drawing, _gymnax_drawing

  made = pgx.make(name)
  defaults = _adapt.arguments(type(made))
  chosen = _adapt.read_options(f"pgx:{name}", options, {"max_steps": _MAX_STEPS, **defaults})
  max_steps = chosen.pop("max_steps")
  made = type(made)(**chosen)
  has_mask = name == "2048"

  def observe(state: Any) -> types.Observation:
    return _board_games.observe(state) if has_mask else state.observation

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


_MAX_STEPS = 10_000
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
