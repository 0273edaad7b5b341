"""Returns and lengths of episodes, kept while environments run, inside a compiled program or not."""

from typing import NamedTuple

import jax.numpy as jnp

from podracer import types


class EpisodeTracker(NamedTuple):
  """The episodes under way, and the sums over those that have ended since the last `drain`.

  Kept an environment, so that a step costs no reduction. Leaves `[B]`.
  """

  current_return: types.Array
  current_length: types.Array
  return_sum: types.Array
  length_sum: types.Array
  num_episodes: types.Array


class EpisodeTotals(NamedTuple):
  """Sums over ended episodes, scalars."""

  return_sum: types.Array
  length_sum: types.Array
  num_episodes: types.Array


def make_tracker(batch_size: int) -> EpisodeTracker:
  """Returns a tracker of `batch_size` environments at the beginning of their episodes."""
  return EpisodeTracker(
    current_return=jnp.zeros((batch_size,), jnp.float32),
    current_length=jnp.zeros((batch_size,), jnp.int32),
    return_sum=jnp.zeros((batch_size,), jnp.float32),
    length_sum=jnp.zeros((batch_size,), jnp.int32),
    num_episodes=jnp.zeros((batch_size,), jnp.int32),
  )


def advance(
  current_return: types.Array, current_length: types.Array, timestep: types.TimeStep
) -> tuple[types.Array, types.Array]:
  """Returns return and length `[B]` of the episodes on arriving at `timestep`; 0 where it is FIRST."""
  is_first = timestep.is_first()
  return (
    jnp.where(is_first, 0.0, current_return + timestep.reward),
    jnp.where(is_first, 0, current_length + 1),
  )


def track(tracker: EpisodeTracker, timestep: types.TimeStep) -> EpisodeTracker:
  """Takes in the time steps `[B]` arrived at; a FIRST one begins an episode anew."""
  is_last = timestep.is_last()
  episode_return, episode_length = advance(tracker.current_return, tracker.current_length, timestep)
  return EpisodeTracker(
    current_return=episode_return,
    current_length=episode_length,
    return_sum=tracker.return_sum + jnp.where(is_last, episode_return, 0.0),
    length_sum=tracker.length_sum + jnp.where(is_last, episode_length, 0),
    num_episodes=tracker.num_episodes + is_last.astype(jnp.int32),
  )


def drain(tracker: EpisodeTracker) -> tuple[EpisodeTracker, EpisodeTotals]:
  """Returns the sums since the last drain, and the tracker with none; episodes under way go on."""
  totals = EpisodeTotals(
    return_sum=jnp.sum(tracker.return_sum),
    length_sum=jnp.sum(tracker.length_sum),
    num_episodes=jnp.sum(tracker.num_episodes),
  )
  tracker = tracker._replace(
    return_sum=jnp.zeros_like(tracker.return_sum),
    length_sum=jnp.zeros_like(tracker.length_sum),
    num_episodes=jnp.zeros_like(tracker.num_episodes),
  )
  return tracker, totals
