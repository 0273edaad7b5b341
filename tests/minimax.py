"""The perfect player of tic-tac-toe: every position by minimax, as tables that JAX looks up.

A board is `[9]` of -1 (empty), 0 (X, who begins) and 1 (O), as pgx keeps it in `state._x.board`; its
row in the tables is the number whose digits to base 3 are its cells plus 1, the first cell lowest.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_POWERS = 3 ** np.arange(9)
_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


@functools.cache
def solve():
  """Solves the game.

  Returns:
    The value of every board that play can lead to, `{board: 1, 0 or -1}`, for the player to move, and
    of those where the game goes on the set of moves that keep it.
  """
  values, optimal = {}, {}

  def value_of(board, mover):
    if board in values:
      return values[board]
    other = 1 - mover
    empty = [i for i in range(9) if board[i] < 0]
    if any(all(board[i] == other for i in line) for line in _LINES):
      values[board] = -1
    elif not empty:
      values[board] = 0
    else:
      found = {i: -value_of((*board[:i], mover, *board[i + 1 :]), other) for i in empty}
      values[board] = max(found.values())
      optimal[board] = {i for i in empty if found[i] == values[board]}
    return values[board]

  value_of((-1,) * 9, 0)
  return values, optimal


@functools.cache
def tables():
  """Returns what `solve` finds as `[3^9]` int8 values and `[3^9, 9]` bool moves.

  Where a game is over all moves are True, as in pgx's mask; so are they where no play leads.
  """
  values, optimal = np.zeros(3**9, np.int8), np.ones((3**9, 9), bool)
  solved_values, solved_optimal = solve()
  for board, value_of_board in solved_values.items():
    row = (np.array(board) + 1) @ _POWERS
    values[row] = value_of_board
    if board in solved_optimal:
      optimal[row] = [i in solved_optimal[board] for i in range(9)]
  return values, optimal


def board_of(observation):
  """Returns the board of an observation; X is to move where both have as many marks."""
  mine, theirs = (observation["board"][..., i].reshape(9) > 0 for i in (0, 1))
  mover = jnp.where(mine.sum() == theirs.sum(), 0, 1)
  return jnp.where(mine, mover, jnp.where(theirs, 1 - mover, -1))


def value(board):
  """Returns the value of a board `[9]` to the player to move."""
  return jnp.asarray(tables()[0])[_row(board)]


def is_optimal(board):
  """Returns `[9]` bool, the moves on a board that keep its value."""
  return jnp.asarray(tables()[1])[_row(board)]


def act(key, observation):
  """Draws one of the optimal moves at an observation, all alike."""
  return _draw(key, board_of(observation))


def opponent(key, state):
  """Draws one of the optimal moves in a state of pgx; for `podracer.environments.pgx.versus`."""
  return _draw(key, state._x.board)


def _draw(key, board):
  return jax.random.categorical(key, jnp.where(is_optimal(board), 0.0, -jnp.inf)).astype(jnp.int32)


def _row(board):
  return jnp.sum((board + 1) * _POWERS)
