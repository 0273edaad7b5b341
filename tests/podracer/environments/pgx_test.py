import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import environment, environments, testing, types
from podracer.environments import pgx


def _load_minimax():
  # `tests` is no package, and another library may have installed one of that name.
  path = pathlib.Path(__file__).parents[2] / "minimax.py"
  spec = importlib.util.spec_from_file_location("minimax", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


minimax = _load_minimax()

X_WINS = [0, 3, 1, 4, 2]
O_WINS = [0, 3, 1, 4, 8, 5]
DRAW = [0, 1, 2, 4, 3, 5, 7, 6, 8]


@pytest.fixture
def quick_compilation():
  """Compiles without most optimisations: these programs run for a moment only."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def _play_moves(made, moves, seed=0):
  """Returns the observations `[n + 1]` and outcomes `[n]` of one episode, and its last state."""
  state, observation = jax.jit(made.reset)(jax.random.key(seed))
  step = jax.jit(made.step)
  observations, outcomes = [observation], []
  for index, move in enumerate(moves):
    state, outcome = step(jax.random.key(index), state, jnp.asarray(move, jnp.int32))
    observations.append(outcome.observation)
    outcomes.append(outcome)
  return types.to_numpy(observations), types.to_numpy(outcomes), state


def _results(made, act, num_games=200, num_steps=9):
  """Returns the sums of rewards `[num_games]` of whole episodes, the moves being `act(key, obs)`."""

  def step(carry, key):
    state, timestep = carry
    action = jax.vmap(act)(jax.random.split(key, num_games), timestep.observation)
    carry = environment.step(made, state, action)
    return carry, carry[1]

  def play(key):
    start_key, step_key = jax.random.split(key)
    start = environment.reset(made, jax.random.split(start_key, num_games))
    return jax.lax.scan(step, start, jax.random.split(step_key, num_steps))[1]

  course = types.to_numpy(jax.jit(play)(jax.random.key(0)))
  is_last = course.step_type == types.LAST
  assert is_last.any(axis=0).all()
  in_first_episode = np.cumsum(is_last, axis=0) - is_last == 0
  return np.sum(course.reward * in_first_episode, axis=0)


def _random_act(key, observation):
  return jax.random.categorical(
    key, jnp.where(observation[types.ACTION_MASK], 0.0, -jnp.inf)
  ).astype(jnp.int32)


def _first_legal(key, state):
  del key
  return jnp.argmax(state.legal_action_mask).astype(jnp.int32)


def _seed_where(made, agent_begins):
  """Returns a seed of an episode in which the agent begins, or does not."""
  reset = jax.jit(made.reset)
  for seed in range(100):
    _, observation = reset(jax.random.key(seed))
    if (np.sum(observation["board"]) == 0) == agent_begins:
      return seed
  raise AssertionError("the same player always begins")


@pytest.mark.parametrize(
  ("name", "moves", "last_reward"),
  [
    ("tic_tac_toe", X_WINS, 1.0),
    ("tic_tac_toe", O_WINS, 1.0),
    ("tic_tac_toe", DRAW, 0.0),
    ("tic_tac_toe", [0, 0], -1.0),
    ("tic_tac_toe", [0, 4, 4], -1.0),
    ("connect_four", [0, 1, 0, 1, 0, 1, 0], 1.0),
    ("connect_four", [6, 0, 5, 0, 6, 0, 5, 0], 1.0),
    ("connect_four", [0] * 7, -1.0),
  ],
)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_reward_of_self_play_is_that_of_the_player_who_moved(name, moves, last_reward, seed):
  # Of these seeds pgx gives the first move to either of its players.
  made = environments.make(f"pgx:{name}")
  _, outcomes, _ = _play_moves(made, moves, seed)
  assert [float(o.reward) for o in outcomes] == [0.0] * (len(moves) - 1) + [last_reward]
  assert [bool(o.terminated) for o in outcomes] == [False] * (len(moves) - 1) + [True]
  assert not any(o.truncated for o in outcomes)


def test_self_play_observes_from_the_player_to_move():
  made = environments.make("pgx:tic_tac_toe")
  moves = [0, 4, 8]
  observations, _, _ = _play_moves(made, moves)
  for num_moves, observation in enumerate(observations):
    mine = moves[num_moves % 2 : num_moves : 2]
    theirs = moves[1 - num_moves % 2 : num_moves : 2]
    planes = observation["board"].reshape(9, 2)
    assert np.flatnonzero(planes[:, 0]).tolist() == mine
    assert np.flatnonzero(planes[:, 1]).tolist() == theirs
    legal = np.flatnonzero(observation[types.ACTION_MASK])
    assert legal.tolist() == sorted(set(range(9)) - set(mine + theirs))


def test_the_end_is_seen_by_the_player_who_did_not_make_the_last_move():
  made = environments.make("pgx:tic_tac_toe")
  observations, _, _ = _play_moves(made, X_WINS)
  planes = observations[-1]["board"].reshape(9, 2)
  assert np.flatnonzero(planes[:, 1]).tolist() == [0, 1, 2]
  assert observations[-1][types.ACTION_MASK].all()


def test_mask_of_connect_four_leaves_out_a_full_column():
  made = environments.make("pgx:connect_four")
  observations, _, _ = _play_moves(made, [3] * 6)
  assert observations[-1][types.ACTION_MASK].tolist() == [True] * 3 + [False] + [True] * 3


@pytest.mark.parametrize(
  ("agent_begins", "moves", "last_reward"),
  [
    (True, [6, 7, 8], 1.0),
    (True, [8, 7, 3], -1.0),
    (True, [4, 2, 3, 7, 8], 0.0),
    (True, [0, 1], -1.0),
    (False, [4, 2, 6], 1.0),
    (False, [1, 4, 6, 8], 0.0),
    (False, [8, 7], -1.0),
    (False, [0], -1.0),
  ],
)
def test_reward_against_an_opponent_is_the_agents(agent_begins, moves, last_reward):
  # The opponent takes the first free cell: 0, then 1 ...
  made = pgx.versus("tic_tac_toe", _first_legal)
  seed = _seed_where(made, agent_begins)
  observations, outcomes, _ = _play_moves(made, moves, seed)
  assert [float(o.reward) for o in outcomes] == [0.0] * (len(moves) - 1) + [last_reward]
  assert [bool(o.terminated) for o in outcomes] == [False] * (len(moves) - 1) + [True]
  for index, observation in enumerate(observations[:-1]):
    planes = observation["board"].reshape(9, 2)
    assert set(np.flatnonzero(planes[:, 0])) == set(moves[:index])
    assert planes[:, 1].sum() == index + (0 if agent_begins else 1)


def test_opponent_does_not_reply_to_a_move_that_ends_the_game():
  made = pgx.versus("tic_tac_toe", _first_legal)
  observations, _, _ = _play_moves(made, [6, 7, 8], _seed_where(made, True))
  assert observations[-1]["board"].sum() == 5.0


def test_opponent_loses_by_an_illegal_move():
  made = pgx.versus("tic_tac_toe", lambda key, state: jnp.zeros((), jnp.int32))
  _, outcomes, _ = _play_moves(made, [8, 7], _seed_where(made, True))
  assert [float(o.reward) for o in outcomes] == [0.0, 1.0]
  assert bool(outcomes[-1].terminated)


@pytest.mark.parametrize("name", ["connect_four", "tic_tac_toe"])
def test_chance_decides_who_begins(name):
  made = environments.make(f"pgx:{name}", opponent="random")
  _, observations = jax.jit(jax.vmap(made.reset))(jax.random.split(jax.random.key(0), 1000))
  marks = np.asarray(observations["board"]).sum(axis=(1, 2))
  assert (marks[:, 0] == 0).all()
  assert set(marks[:, 1]) == {0.0, 1.0}
  # Five standard deviations of 1000 tosses of a coin.
  assert abs(marks[:, 1].mean() - 0.5) < 0.08


@pytest.mark.parametrize(
  ("moves", "value", "optimal"),
  [
    ([], 0, range(9)),
    ([0], 0, [4]),
    ([4], 0, [0, 2, 6, 8]),
    ([1], 0, [0, 2, 4, 7]),
    ([0, 1], 1, [3, 4, 6]),
    ([0, 1, 4], -1, [2, 3, 5, 6, 7, 8]),
  ],
)
def test_minimax_knows_the_known_positions(moves, value, optimal):
  board = [-1] * 9
  for index, move in enumerate(moves):
    board[move] = index % 2
  assert int(minimax.value(jnp.array(board))) == value
  assert np.flatnonzero(minimax.is_optimal(jnp.array(board))).tolist() == list(optimal)


def test_minimax_solves_all_positions_there_are():
  values, optimal = minimax.solve()
  assert len(values) == 5478
  assert len(values) - len(optimal) == 958


def test_perfect_play_never_loses_against_random_moves():
  made = environments.make("pgx:tic_tac_toe", opponent="random")
  results = _results(made, minimax.act)
  assert results.min() == 0.0
  assert results.mean() > 0.8


def test_random_moves_never_win_against_perfect_play():
  made = pgx.versus("tic_tac_toe", minimax.opponent)
  results = _results(made, _random_act)
  assert results.max() == 0.0
  assert results.mean() < -0.8


def test_perfect_play_against_itself_draws():
  made = environments.make("pgx:tic_tac_toe")
  assert not _results(pgx.versus("tic_tac_toe", minimax.opponent), minimax.act).any()
  assert not _results(made, minimax.act).any()


def test_self_play_is_evaluated_against_random_moves():
  made = environments.make("pgx:tic_tac_toe")
  assert made.spec.num_players == 2
  assert made.evaluation.spec == made.spec._replace(num_players=1)
  assert made.evaluation.evaluation is None
  assert _results(made.evaluation, minimax.act).mean() > 0.8
  assert environments.make("pgx:2048").spec.num_players == 1


def test_games_begin_after_random_moves_but_never_at_their_end():
  made = environments.make("pgx:tic_tac_toe", opening_moves=8)
  keys = jax.random.split(jax.random.key(0), 500)
  state, timestep = jax.jit(lambda k: environment.reset(made, k))(keys)
  own, other = np.moveaxis(np.asarray(timestep.observation["board"]), -1, 0).reshape(2, 500, 9)
  num_own, num_other = own.sum(axis=1), other.sum(axis=1)
  assert not np.any(own * other)
  # From the view of the player to move, who made as many moves as the other, or one less.
  assert np.all((num_other == num_own) | (num_other == num_own + 1))
  numbers = num_own + num_other
  assert set(numbers) == set(range(9))
  np.testing.assert_array_equal(timestep.observation[types.ACTION_MASK], (own + other) == 0)
  _, after = jax.jit(lambda s: environment.step(made, s, jnp.zeros((500,), jnp.int32)))(state)
  assert not np.any(after.is_first()), "a game began at its end"
  assert np.std(own[numbers >= 4].mean(axis=0)) < 0.1, "moves are not drawn evenly"


def test_time_limit_truncates_self_play_and_its_evaluation():
  made = environments.make("pgx:connect_four", max_steps=3)
  for limited in (made, made.evaluation):
    _, outcomes, _ = _play_moves(limited, [0, 1, 2])
    assert [bool(o.truncated) for o in outcomes] == [False, False, True]
    assert not any(o.terminated for o in outcomes)


def _some_slow(names, quick):
  return [pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", _some_slow(pgx.BOARD_GAMES, ("connect_four", "tic_tac_toe")))
def test_players_move_strictly_in_turn(name, quick_compilation):
  made = environments.make(f"pgx:{name}")
  batch_size, num_steps = 8, 40

  def step(carry, key):
    state, observation = carry
    was_over = state[0].terminated
    action = jax.vmap(_random_act)(jax.random.split(key, batch_size), observation)
    mover = state[0].current_player
    state, outcome = jax.vmap(made.step)(jax.random.split(key, batch_size), state, action)
    loser = state[0].rewards[jnp.arange(batch_size), 1 - mover]
    return (state, outcome.observation), (
      was_over | (mover != state[0].current_player),
      outcome.reward == -loser,
    )

  def play(key):
    start = jax.vmap(made.reset)(jax.random.split(key, batch_size))
    return jax.lax.scan(step, start, jax.random.split(key, num_steps))[1]

  alternates, is_zero_sum = jax.jit(play)(jax.random.key(0))
  assert np.all(alternates)
  assert np.all(is_zero_sum)


@pytest.mark.parametrize("opponent", ["self", "random"])
@pytest.mark.parametrize(("name", "num_steps"), [("connect_four", 40), ("tic_tac_toe", 12)])
def test_environment_conforms(name, num_steps, opponent, quick_compilation):
  made = environments.make(f"pgx:{name}", opponent=opponent)
  assert testing.check_environment(made, num_steps=num_steps) > 0


@pytest.mark.parametrize(
  ("name", "cell", "colour"),
  [("connect_four", (307, 32), (222, 84, 84)), ("tic_tac_toe", (64, 64), (58, 124, 214))],
)
def test_picture_shows_the_first_mark_whoever_is_to_move(name, cell, colour):
  made = environments.make(f"pgx:{name}")
  assert made.frames_per_second == 2
  for moves in ([0], [0, 1], [0, 1, 2]):
    _, _, state = _play_moves(made, moves)
    picture = made.render(state)
    assert picture.shape[0] % 16 == 0 and picture.shape[1] % 16 == 0
    assert tuple(picture[cell].tolist()) == colour


def test_other_games_have_no_picture():
  assert environments.make("pgx:hex").render is None


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("tic_tac_toe", {"opponent": "x"}, "opponent must be one of self, random, got 'x'"),
    ("tic_tac_toe", {"opponent": None}, "opponent must be one of self, random, got None"),
    (
      "hex",
      {"size": 5},
      "pgx:hex has no option size; its options: max_steps, opening_moves, opponent",
    ),
    ("tic_tac_toe", {"opening_moves": -1}, "opening_moves must be at least 0, got -1"),
    (
      "tic_tac_toe",
      {"opening_moves": 2, "opponent": "random"},
      "opening_moves is for opponent=self",
    ),
    ("tic_tac_toe", {"max_steps": 0}, "must be a number of at least 1, got 0"),
    ("2048", {"opponent": "self"}, "pgx:2048 has no option opponent; its options: max_steps"),
  ],
)
def test_bad_option_is_one_line(name, options, message):
  with pytest.raises(ValueError, match=message) as info:
    environments.make(f"pgx:{name}", **options)
  assert "\n" not in str(info.value)


def test_versus_says_which_games_there_are():
  with pytest.raises(ValueError, match=r"game of two players: animal_shogi, .*; got '2048'"):
    pgx.versus("2048", _first_legal)
  with pytest.raises(ValueError, match="pgx:hex has no option size; its options: max_steps"):
    pgx.versus("hex", _first_legal, size=5)
