"""The search with the rules of small games for a model, against exhaustive search."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from podracer.agents import muzero
from podracer.agents.muzero import search

A, BATCH, NUM_SIMULATIONS = 4, 32, 192
NUM_INNER = 1 + A + A**2
TREE_SIZE = NUM_INNER + A**3
NUM_STATES = BATCH * TREE_SIZE
POLICIES = ["gumbel", "muzero"]


class Game(NamedTuple):
  """The rules of a game, and where to search.

  Attributes:
    next_state: `[S, A]` int32; a state where the game is over leads to itself.
    reward: `[S, A]` float32, to who moves.
    legal: `[S, A]` bool.
    discount: negative where two players take turns.
    root: `[B]` int32 states.
  """

  next_state: np.ndarray
  reward: np.ndarray
  legal: np.ndarray
  discount: float
  root: np.ndarray


def recurrent_fn(game, key, action, state):
  """Knows the rules, and nothing of values."""
  del key
  after = game.next_state[state, action]
  output = mctx.RecurrentFnOutput(
    reward=game.reward[state, action],
    discount=jnp.full(state.shape, game.discount),
    prior_logits=jnp.where(game.legal[after], 0.0, -1e9),
    value=jnp.zeros(state.shape),
  )
  return output, after


@functools.cache
def make(policy, explore, **options):
  config = muzero.SearchConfig(policy=policy, **{"num_simulations": NUM_SIMULATIONS, **options})
  return jax.jit(search.make_search(config, recurrent_fn, explore))


def find(policy, game, explore=False, seed=0, mask=None, prior=None, temperature=1.0, **options):
  """Searches; by the legal actions of the game and with an even prior, where none is given."""
  root = mctx.RootFnOutput(
    prior_logits=jnp.zeros(game.legal[game.root].shape) if prior is None else jnp.asarray(prior),
    value=jnp.zeros(game.root.shape),
    embedding=jnp.asarray(game.root),
  )
  mask = jnp.asarray(game.legal[game.root] if mask is None else mask)
  found = make(policy, explore, **options)(
    jax.tree.map(jnp.asarray, game), jax.random.key(seed), root, mask, temperature
  )
  return jax.tree.map(np.asarray, found)


@functools.cache
def trees(num_players):
  """Returns games of three moves of which the last pays, and the one first move that is best.

  Another first move of one player pays at once and costs more later. Of two players, who makes the
  best one wins, whatever the other does, and loses by every other.
  """
  rng, state = np.random.default_rng(0), np.arange(TREE_SIZE)[:, None]
  next_state = np.where(state < NUM_INNER, state * A + 1 + np.arange(A), state)
  reward, best = np.zeros((BATCH, TREE_SIZE, A), np.float32), []
  while len(best) < BATCH:
    first, last = np.zeros(A), 1.0 * (rng.uniform(size=(A, A, A)) < 0.2)
    if num_players == 1:
      good, bait = rng.choice(A, 2, replace=False)
      last[np.arange(A) != good] = 0.0
      first[bait], last[bait] = 0.3, -1.0
      values = first + 0.9**2 * np.max(last, axis=(1, 2))
    else:
      last = 2 * last - 1
      values = np.min(np.max(last, axis=2), axis=1)
    if np.max(values) > 0.5 and np.sum(values == np.max(values)) == 1:
      reward[len(best), 0], reward[len(best), 1 + A : NUM_INNER] = first, last.reshape(A * A, A)
      best.append(np.argmax(values))
  game = Game(
    next_state=np.concatenate([next_state + i * TREE_SIZE for i in range(BATCH)]),
    reward=reward.reshape(NUM_STATES, A),
    legal=np.ones((NUM_STATES, A), bool),
    discount=0.9 if num_players == 1 else -1.0,
    root=np.arange(BATCH) * TREE_SIZE,
  )
  return game, np.asarray(best)


def nim():
  """Returns the game in which 1 to A stones are taken and who takes the last one wins."""
  stones, take = np.arange(NUM_STATES)[:, None], np.arange(1, A + 1)
  legal = take <= stones
  return Game(
    next_state=np.where(legal, stones - take, stones),
    reward=(take == stones).astype(np.float32),
    legal=legal,
    discount=-1.0,
    root=np.arange(BATCH) % 10,
  )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_players", [1, 2])
def test_the_best_action_is_found(policy, num_players):
  game, best = trees(num_players)
  found = find(policy, game)
  np.testing.assert_array_equal(found.action, best)
  np.testing.assert_array_equal(np.argmax(found.visits, axis=-1), best)
  assert found.action.dtype == np.int32 and found.depth.dtype == np.float32
  if num_players == 2:  # An opponent who helped would be another game.
    assert np.mean(find(policy, game._replace(discount=1.0)).action == best) < 0.9


@pytest.mark.parametrize("policy", POLICIES)
def test_nim_is_won_where_it_can_be(policy):
  """Who leaves a multiple of 5 stones wins, if 1 to 4 are taken."""
  game = nim()
  found, stones = find(policy, game), game.root
  is_won = stones % (A + 1) != 0
  np.testing.assert_array_equal(1 + found.action[is_won], (stones % (A + 1))[is_won])
  # The value is that of the player to move.
  assert np.all(found.value[stones == 1] > 0.5) and np.all(found.value[stones == A + 1] < -0.5)
  np.testing.assert_allclose(found.value[stones == 0], 0.0, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("explore", [False, True])
def test_no_illegal_action_is_played(policy, explore):
  rng = np.random.default_rng(0)
  game, _ = trees(1)
  for seed in range(25):
    mask = rng.uniform(size=(BATCH, A)) < rng.uniform(size=(BATCH, 1))
    assert not np.all(np.any(mask, axis=1))
    # What is illegal looks best, to the prior and to the model.
    reward = game.reward.copy()
    reward[game.root] += np.where(mask, 0.0, 100.0)
    prior = rng.normal(size=mask.shape) + np.where(mask, 0.0, rng.choice([0.0, 30.0]))
    found = find(policy, game._replace(reward=reward), explore, seed, mask, np.float32(prior))
    assert all(np.all(np.isfinite(x)) for x in found)
    np.testing.assert_allclose(np.sum(found.visits, axis=1), 1.0, atol=1e-5)
    assert np.all((found.action >= 0) & (found.action < A))
    playing = np.any(mask, axis=1)
    assert np.all(mask[np.arange(BATCH), found.action][playing])
    assert not np.any(found.visits[playing][~mask[playing]])


@pytest.mark.parametrize(
  ("policy", "scale"),
  [
    ("gumbel", 1.0),
    ("gumbel", 0.0),
    ("muzero", 1.0),
    ("muzero", 0.0),
  ],
)
def test_acting_greedily_needs_no_chance(policy, scale):
  """Nor does it where all actions are alike, as the scale 0 makes them."""
  game, _ = trees(1)
  game = game._replace(reward=scale * game.reward)
  first = find(policy, game)
  for seed in range(1, 10):
    other = find(policy, game, seed=seed, temperature=seed)
    np.testing.assert_array_equal(first.action, other.action)
    if policy == "gumbel":
      jax.tree.map(np.testing.assert_array_equal, first, other)


@pytest.mark.parametrize("explore", [False, True])
def test_the_prior_has_noise_when_exploring_only(explore):
  """Where all actions are alike, the visits of the search of the paper are those of the prior."""
  game, _ = trees(1)
  prior = 8.0 * np.eye(A, dtype=np.float32)[np.arange(BATCH) % A]
  found = find("muzero", game._replace(reward=0 * game.reward), explore, prior=prior)
  share = found.visits[np.arange(BATCH), np.arange(BATCH) % A]
  assert np.min(share) < 0.9 if explore else np.min(share) > 0.97


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_with_a_uniform_fraction_values_can_undo_a_sure_prior(fraction):
  """By which a policy that has collapsed comes back; when acting greedily nothing is mixed in."""
  game, best = trees(1)
  bad = (best + 1) % A
  mask = np.arange(A) != ((best + 2) % A)[:, None]
  prior = 30.0 * np.eye(A, dtype=np.float32)[bad]
  options = {"mask": mask, "prior": prior, "temperature": 0.0, "uniform_fraction": fraction}
  explored, greedy = (find("gumbel", game, explore, **options) for explore in (True, False))
  np.testing.assert_array_equal(explored.action, best if fraction else bad)
  np.testing.assert_array_equal(greedy.action, bad)
  assert not np.any(explored.visits[~mask])
  share = explored.visits[np.arange(BATCH), best]
  assert np.all(share > 0.5) if fraction else np.all(share < 1e-6)


def test_the_uniform_policy_is_mixed_in_among_legal_actions():
  logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1e-30, 1.0, 1e-30]]))
  mask = jnp.array([[True, True, True], [True, False, True], [False, True, False]])
  mixed = jax.nn.softmax(search.mix_with_uniform(logits, mask, 0.3))
  expected = [[0.59, 0.24, 0.17], [0.7 * 0.875 + 0.15, 0.0, 0.7 * 0.125 + 0.15], [0.0, 1.0, 0.0]]
  np.testing.assert_allclose(mixed, expected, atol=1e-6)
  every = jax.nn.softmax(search.mix_with_uniform(logits[:1], None, 0.3))
  np.testing.assert_allclose(every, expected[:1], atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_exploring_takes_chances_by_the_temperature(policy):
  game, _ = trees(1)
  game = game._replace(reward=0.1 * game.reward)
  greedy = find(policy, game)
  differs = []
  for temperature in (0.0, 1.0, 10.0):
    found = [find(policy, game, True, seed, temperature=temperature) for seed in range(8)]
    if temperature == 0:
      for each in found:
        chosen = each.visits[np.arange(BATCH), each.action]
        np.testing.assert_allclose(chosen, np.max(each.visits, axis=1))
        # Of the Gumbel search that is all there is of noise; the other has some in its prior.
        if policy == "gumbel":
          jax.tree.map(np.testing.assert_array_equal, each, greedy)
    differs.append(np.mean([each.action != greedy.action for each in found]))
  assert differs[0] < differs[1] < differs[2]


@pytest.mark.parametrize(
  "policy",
  ["gumbel", "muzero"],
)
def test_small_differences_of_value_are_no_differences(policy):
  """A range below `min_value_range` is scaled as if it were that; else the best action has it all."""
  game, best = trees(1)
  for scale, most in ((1.0, 1.0), (1e-3, 0.5)):
    found = find(policy, game._replace(reward=scale * game.reward))
    share = found.visits[np.arange(BATCH), best]
    assert np.all(share <= most) and np.mean(share) > most - 0.3, share


class ChanceGame(NamedTuple):
  """Two moves, after each of which chance decides by `[B, S, A, C]` probabilities; the last pays."""

  probability: np.ndarray
  reward: np.ndarray


def chance_decides(game, key, action, state):
  del key
  batch, place = state
  output = mctx.DecisionRecurrentFnOutput(
    chance_logits=jnp.log(game.probability[batch, place, action]),
    afterstate_value=jnp.zeros(batch.shape),
  )
  return output, (batch, place, action)


def chance_happens(game, key, code, afterstate):
  del key
  batch, place, action = afterstate
  _, num_places, num_actions, num_codes = game.reward.shape
  after = jnp.where(place == 0, 1 + action * num_codes + code, num_places - 1)
  output = mctx.ChanceRecurrentFnOutput(
    reward=game.reward[batch, place, action, code],
    discount=jnp.where(place == num_places - 1, 0.0, 1.0),
    action_logits=jnp.zeros((*batch.shape, num_actions)),
    value=jnp.zeros(batch.shape),
  )
  return output, (batch, after)


def expectimax(game):
  """Returns the values `[B, A]` of the first moves."""
  num_actions, num_codes = game.reward.shape[2:]
  later = np.max(np.sum(game.probability * game.reward, axis=-1), axis=-1)  # [B, S]
  later = later[:, 1 : 1 + num_actions * num_codes].reshape(BATCH, num_actions, num_codes)
  return np.sum(game.probability[:, 0] * later, axis=-1)


def chance_games(num_actions=3, num_codes=2):
  """Returns games in which one first move is better than the others by 0.2 and more."""
  rng = np.random.default_rng(0)
  num_places = 2 + num_actions * num_codes  # The root, after a move, and when it is over.
  size = (100 * BATCH, num_places, num_actions, num_codes)
  probability = rng.dirichlet(0.5 * np.ones(num_codes), size=size[:3])
  reward = rng.uniform(-1, 1, size=size)
  reward[:, 0] = reward[:, -1] = 0.0
  found = []
  for start in range(0, len(reward), BATCH):
    part = slice(start, start + BATCH)
    values = np.sort(expectimax(ChanceGame(probability[part], reward[part])))
    found += list(start + np.flatnonzero(values[:, -1] - values[:, -2] > 0.2))
  chosen = found[:BATCH]
  return ChanceGame(np.float32(probability[chosen]), np.float32(reward[chosen]))


def find_by_chance(game, mask=None, explore=False):
  config = muzero.SearchConfig(policy="stochastic", num_simulations=600, max_depth=2)
  model = search.ChanceModel(chance_decides, chance_happens)
  root = mctx.RootFnOutput(
    prior_logits=jnp.zeros((BATCH, 3)),
    value=jnp.zeros(BATCH),
    embedding=(jnp.arange(BATCH), jnp.zeros(BATCH, jnp.int32)),
  )
  run = jax.jit(search.make_search(config, model, explore))
  found = run(jax.tree.map(jnp.asarray, game), jax.random.key(0), root, mask, 1.0)
  return jax.tree.map(np.asarray, found)


def test_the_best_action_under_chance_is_found():
  """As by expectimax; who takes the best of what may happen, or its mean before choosing, plays worse."""
  game = chance_games()
  best = np.argmax(expectimax(game), axis=1)
  found = find_by_chance(game)
  np.testing.assert_array_equal(found.action, best)
  assert found.visits.shape == (BATCH, 3) and np.all(found.depth == 2)
  np.testing.assert_allclose(np.sum(found.visits, axis=1), 1.0, atol=1e-5)
  even = game._replace(probability=np.full_like(game.probability, 0.5))
  assert np.mean(find_by_chance(even).action == best) < 0.9
  hopeful = game._replace(reward=np.repeat(np.max(game.reward, -1, keepdims=True), 2, axis=-1))
  assert np.mean(find_by_chance(hopeful).action == best) < 0.9


@pytest.mark.parametrize("explore", [False, True])
def test_no_illegal_action_is_played_under_chance(explore):
  game = chance_games()
  best = np.argmax(expectimax(game), axis=1)
  mask = np.arange(3) != best[:, None]
  found = find_by_chance(game, mask, explore)
  assert np.all(mask[np.arange(BATCH), found.action])
  assert not np.any(found.visits[~mask])


CORRIDOR = Game(
  next_state=np.arange(1, 33)[:, None] % 32,
  reward=np.zeros((32, 1), np.float32),
  legal=np.ones((32, 1), bool),
  discount=1.0,
  root=np.zeros(2, np.int32),
)


@pytest.mark.parametrize(
  ("policy", "explore", "max_depth", "expected"),
  [
    ("gumbel", True, 0, 6),
    ("gumbel", False, 0, 9),
    ("gumbel", False, 4, 4),
    ("muzero", False, 20, 9),
    ("muzero", True, 4, 4),
  ],
)
def test_simulations_and_depth_are_bounded(policy, explore, max_depth, expected):
  """Where there is one action, each simulation is a step deeper."""
  options = {"num_simulations": 6, "evaluation_simulations": 9, "max_depth": max_depth}
  np.testing.assert_array_equal(find(policy, CORRIDOR, explore, **options).depth, expected)


def test_noise_may_be_given_as_whole_numbers():
  options = {"num_simulations": 6, "dirichlet_fraction": 0, "dirichlet_alpha": 1}
  assert np.all(find("muzero", CORRIDOR, True, **options).depth == 6)


def depth_by_walking(parents):
  depth = 0
  for node in range(len(parents)):
    steps = 0
    while parents[node] >= 0:
      node, steps = parents[node], steps + 1
    depth = max(depth, steps)
  return depth


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5, 8, 9, 17, 33])
def test_depth_of_trees(num_nodes):
  rng = np.random.default_rng(num_nodes)
  parents = [np.arange(-1, num_nodes - 1)]  # A chain, the deepest that can be.
  for width in (1, 2, 4, 100):
    tree = [max(0, node - 1 - int(rng.integers(width))) for node in range(num_nodes)]
    tree = np.where(rng.uniform(size=num_nodes) < 0.2, -1, tree)  # A node that was never made,
    tree = np.asarray([-1 if p > 0 and tree[p] < 0 else p for p in tree])  # has no children.
    parents.append(np.concatenate([[-1], tree[1:]]))
  parents = np.stack(parents)
  expected = [depth_by_walking(tree) for tree in parents]
  assert expected[0] == num_nodes - 1
  np.testing.assert_array_equal(search.tree_depth(jnp.asarray(parents)), expected)


def test_where_nothing_is_legal_everything_is():
  mask = jnp.asarray([[True, False], [False, False], [True, True]])
  expected = [[False, True], [False, False], [False, False]]
  np.testing.assert_array_equal(search.illegal(mask), expected)
