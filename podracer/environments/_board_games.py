"""pgx's board games of two players: the agent against itself, or against an opponent.

pgx numbers the players 0 and 1 and draws who begins; it observes from the view of the player to move.
In each of the games here the move passes on every action (a pass is an action), also on the last one,
so what is observed at the end of a game is the view of the player who did not make the last move, and
the action mask is then all True. Nobody acts there, and the discount is 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import environment, types
from podracer.environments import _adapt, _drawing

Opponent = Callable[[types.Key, Any], types.Array]

AGENT = 0
"""The agent's number among pgx's players in a game against an opponent."""

_PAPER: _drawing.Colour = (248, 249, 251)
_RESET_CHUNK = 16
_LINE: _drawing.Colour = (196, 201, 212)
_BLUE: _drawing.Colour = (58, 124, 214)
_RED: _drawing.Colour = (222, 84, 84)
_RACK: _drawing.Colour = (44, 82, 152)
_YELLOW: _drawing.Colour = (248, 202, 76)
_HOLE: _drawing.Colour = (26, 46, 92)


def self_play(name: str, game: Any, opening_moves: int = 0) -> environment.Environment:
  """Builds a game in which the agent makes the moves of both players.

  Args:
    name: pgx's, of the game.
    game: a `pgx.Env` of two players who move in turn.
    opening_moves: a game begins after a number of random moves, drawn from 0 to this many; a move that
      would end it is left out.

  Returns:
    An environment of two players; the reward is that of the player who moved.
  """
  play = _step_of(game)

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    if not opening_moves:
      state = game.init(key)
      return state, observe(state)
    init_key, number_key, moves_key = jax.random.split(key, 3)
    number = jax.random.randint(number_key, (), 0, opening_moves + 1)

    def move(i: types.Array, state: Any) -> Any:
      moved = play(state, random_opponent(jax.random.fold_in(moves_key, i), state))
      is_made = (i < number) & ~moved.terminated & ~moved.truncated
      return jax.tree.map(lambda x, y: jnp.where(is_made, x, y), moved, state)

    state = jax.lax.fori_loop(0, opening_moves, move, game.init(init_key))
    return state, observe(state)

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    del key
    mover = state.current_player
    state = play(state, action)
    return state, _outcome(state, state.rewards[mover])

  made = _environment(name, game, reset, step, num_players=2)
  # Openings make a reset cost many steps.
  return made._replace(reset_chunk=_RESET_CHUNK) if opening_moves else made


def versus(name: str, game: Any, opponent: Opponent) -> environment.Environment:
  """Builds a game of the agent, who is player 0, against an opponent.

  Args:
    name: pgx's, of the game.
    game: a `pgx.Env` of two players who move in turn.
    opponent: (key, state of pgx) -> action. It is also asked where the game is over, for nothing.

  Returns:
    An environment of one player, a step of which is the agent's move and the opponent's reply.
  """
  play = _step_of(game)

  def reset(key: types.Key) -> tuple[Any, types.Observation]:
    init_key, opponent_key = jax.random.split(key)
    state = game.init(init_key)
    opened = play(state, opponent(opponent_key, state))
    begins = state.current_player == AGENT
    state = jax.tree.map(lambda x, y: jnp.where(begins, x, y), state, opened)
    return state, observe(state)

  def step(key: types.Key, state: Any, action: types.Array) -> tuple[Any, environment.Outcome]:
    moved = play(state, action)
    # pgx leaves a game that is over as it is, and gives no reward a second time.
    replied = play(moved, opponent(key, moved))
    return replied, _outcome(replied, moved.rewards[AGENT] + replied.rewards[AGENT])

  return _environment(name, game, reset, step, num_players=1)


def random_opponent(key: types.Key, state: Any) -> types.Array:
  """Draws one of the legal actions, all alike."""
  logits = jnp.where(state.legal_action_mask, 0.0, -jnp.inf)
  return jax.random.categorical(key, logits).astype(jnp.int32)


def _step_of(game: Any) -> Callable[[Any, types.Array], Any]:
  # Compiled for itself, it is traced once and not for each of its calls: a second for chess.
  return jax.jit(lambda state, action: game.step(state, action))


def observe(state: Any) -> types.Observation:
  """Returns what pgx observes, and its mask of actions."""
  return {"board": state.observation, types.ACTION_MASK: state.legal_action_mask}


def _outcome(state: Any, reward: types.Array) -> environment.Outcome:
  return environment.Outcome(
    observation=observe(state),
    reward=reward,
    terminated=state.terminated,
    truncated=state.truncated,
  )


def _environment(
  name: str, game: Any, reset: Any, step: Any, num_players: int
) -> environment.Environment:
  observed = jax.eval_shape(lambda key: reset(key)[1], jax.random.key(0))
  draw = _DRAWINGS.get(name)
  made = environment.Environment(
    spec=types.EnvironmentSpec(
      name=f"pgx:{name}",
      observation=jax.tree.map(lambda x: _adapt.array_spec(x.shape, x.dtype, 0, 1), observed),
      action=types.DiscreteActions(observed[types.ACTION_MASK].shape[0]),
      num_players=num_players,
    ),
    reset=reset,
    step=step,
    render=None if draw is None else lambda state: draw(np.asarray(state._x.board)),
    frames_per_second=2,
  )
  return _adapt.stable_types(made)


def _draw_tic_tac_toe(board: np.ndarray) -> np.ndarray:
  """Draws a board `[9]` of -1 (empty), 0 (X, who begins) and 1 (O)."""
  canvas = _drawing.Canvas((0, 3), (0, 3), _PAPER)
  for at in (1, 2):
    canvas.line([(at, 0.12), (at, 2.88)], 0.05, _LINE)
    canvas.line([(0.12, at), (2.88, at)], 0.05, _LINE)
  for cell, mark in enumerate(board):
    x, y = cell % 3 + 0.5, 2.5 - cell // 3
    if mark == 0:
      for slope in (-0.26, 0.26):
        canvas.line([(x - 0.26, y - slope), (x + 0.26, y + slope)], 0.13, _BLUE)
    elif mark == 1:
      canvas.disc((x, y), 0.34, _RED)
      canvas.disc((x, y), 0.21, _PAPER)
  return canvas.picture()


def _draw_connect_four(board: np.ndarray) -> np.ndarray:
  """Draws a board `[42]` of -1 (empty), 0 (red, who begins) and 1 (yellow), top row first."""
  # The margins make the sides multiples of 16 pixels.
  canvas = _drawing.Canvas((-0.1, 7.1), (-0.15, 6.15), _RACK)
  for cell, disc in enumerate(board):
    centre = (cell % 7 + 0.5, 5.5 - cell // 7)
    canvas.disc(centre, 0.4, (_HOLE, _RED, _YELLOW)[int(disc) + 1])
  return canvas.picture()


_DRAWINGS = {"connect_four": _draw_connect_four, "tic_tac_toe": _draw_tic_tac_toe}
