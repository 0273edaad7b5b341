"""The search in games known as tables, against exhaustive search."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from podracer.agents import muzero
from podracer.agents.muzero import search

NUM_ACTIONS, BATCH, DEPTH, NUM_SIMULATIONS = 4, 32, 3, 96
POLICIES = ["gumbel", "muzero"]


class Game(NamedTuple):
  """The model of a game `[S, A]`, and the states `[B]` to search from.

  Attributes:
    next_state: int32; a state where the game is over leads to itself.
    reward: float32, to who moves.
    legal: bool.
    discount: negative where two players take turns.
    root: int32.
  """

  next_state: np.ndarray
  reward: np.ndarray
  legal: np.ndarray
  discount: float
  root: np.ndarray


def recurrent_fn(game, key, action, state):
  """Knows the rules, and of values nothing."""
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


def find(policy, game, explore=False, seed=0, mask=None, temperature=1.0, **options):
  """Searches from the roots of a game; where no mask is given, with its rules."""
  shape = (BATCH, game.next_state.shape[1])
  root = mctx.RootFnOutput(
    prior_logits=jnp.zeros(shape), value=jnp.zeros(BATCH), embedding=jnp.asarray(game.root)
  )
  mask = game.legal[game.root] if mask is None else mask
  return make(policy, explore, **options)(
    jax.tree.map(jnp.asarray, game), jax.random.key(seed), root, jnp.asarray(mask), temperature
  )


def solve(game):
  """Returns the values `[S, A]` of all moves, by exhaustive search, -inf where illegal."""

  @functools.cache
  def values(state):
    return [move(state, a) if game.legal[state, a] else -np.inf for a in range(NUM_ACTIONS)]

  def move(state, action):
    after = int(game.next_state[state, action])
    rest = 0.0 if after == state else max(values(after))
    return game.reward[state, action] + game.discount * rest

  return np.asarray([values(state) for state in range(len(game.legal))])


@functools.cache
def random_trees(discount):
  """Returns trees of DEPTH moves, in each of which the best first move isn't the one that pays most."""
  rng = np.random.default_rng(0)
  num_inner = sum(NUM_ACTIONS**d for d in range(DEPTH))
  size = num_inner + NUM_ACTIONS**DEPTH
  parts = []
  while len(parts) < BATCH:
    state = np.arange(size)
    next_state = np.repeat(state[:, None], NUM_ACTIONS, axis=1)
    next_state[:num_inner] = np.arange(1, size).reshape(num_inner, NUM_ACTIONS)
    reward = np.where(state[:, None] < num_inner, rng.integers(-2, 3, (size, NUM_ACTIONS)), 0)
    game = Game(next_state, reward, np.ones_like(reward, bool), discount, np.zeros(1, int))
    best, second = np.sort(solve(game)[0])[[-1, -2]]
    if best > second + 0.7 and np.argmax(solve(game)[0]) != np.argmax(reward[0]):
      parts.append(game)
  return Game(
    next_state=np.concatenate([game.next_state + i * size for i, game in enumerate(parts)]),
    reward=np.concatenate([game.reward for game in parts]).astype(np.float32),
    legal=np.concatenate([game.legal for game in parts]),
    discount=discount,
    root=np.arange(BATCH) * size,
  )


def nim(num_states):
  """Returns the game in which 1 to 4 stones are taken and who takes the last one wins."""
  stones, take = np.arange(num_states)[:, None], np.arange(1, NUM_ACTIONS + 1)
  legal = take <= stones
  return Game(
    next_state=np.where(legal, stones - take, stones),
    reward=(take == stones).astype(np.float32),
    legal=legal,
    discount=-1.0,
    root=np.arange(BATCH) % 10,
  )


if __name__ == "__main__":
  import time
  for d in (0.9,-0.9):
    g=random_trees(d)
    best=np.argmax(solve(g)[g.root],-1)
    for policy in POLICIES:
      for n in (32,64,96,128):
        t0=time.time(); o=find(policy,g,num_simulations=n); o.action.block_until_ready(); t1=time.time()
        o=find(policy,g,num_simulations=n,seed=1); o.action.block_until_ready(); t2=time.time()
        print(d,policy,n,(o.action==best).mean(),(np.argmax(o.visits,-1)==best).mean(),t1-t0,t2-t1, np.abs(o.value-np.max(solve(g)[g.root],-1)).mean())
        g2=nim(len(g.legal)); 
        o=find(policy,g2,num_simulations=n,seed=1); q=solve(g2)[g2.root]
        print("nim",[q[i,o.action[i]]==q[i].max() for i in range(10)], o.value[:10].round(2))
