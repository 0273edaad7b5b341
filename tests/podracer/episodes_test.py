import jax.numpy as jnp
import numpy as np
import pytest

from podracer import episodes, types


def tracked(step_types, rewards):
  """A tracker that has seen `[T, B]` step types and rewards."""
  tracker = episodes.make_tracker(len(step_types[0]))
  for step_type, reward in zip(step_types, rewards, strict=True):
    arrived = types.TimeStep(jnp.asarray(step_type), jnp.asarray(reward), jnp.ones(4), ())
    tracker = episodes.track(tracker, arrived)
  return tracker


# Environment 0 ends at the second and the last step, 1 at the second, 2 never, 3 at the first and the last.
STEP_TYPES = [[1, 1, 1, 2], [2, 2, 1, 0], [0, 0, 1, 1], [2, 1, 1, 2]]
REWARDS = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 3.0, 5.0], [7.0, 2.0, 3.0, 6.0]]


def test_sums_by_hand():
  tracker, totals = episodes.drain(tracked(STEP_TYPES, REWARDS))
  # Returns 1 + 1 and 7; 2 + 2; 4 and 5 + 6. Lengths 2 and 1; 2; 1 and 2.
  assert [float(x) for x in totals] == [28.0, 8.0, 5.0]
  assert not np.any(tracker.return_sum)
  assert not np.any(tracker.num_episodes)
  np.testing.assert_array_equal(tracker.current_return, [7.0, 2.0, 12.0, 11.0])


@pytest.mark.parametrize(
  ("num_tasks", "expected"),
  [
    (2, [[13.0, 15.0], [5.0, 3.0], [3.0, 2.0]]),
    (4, [[9.0, 4.0, 0.0, 15.0], [3.0, 2.0, 0.0, 3.0], [2.0, 1.0, 0.0, 2.0]]),
  ],
)
def test_sums_of_each_task_by_hand(num_tasks, expected):
  _, totals = episodes.drain(tracked(STEP_TYPES, REWARDS), num_tasks)
  np.testing.assert_array_equal(totals, expected)


def test_means_of_all_and_of_each_task():
  totals = episodes.EpisodeTotals(*np.asarray([[12.0, 0.0, 8.0], [6.0, 0.0, 4.0], [3.0, 0.0, 1.0]]))
  metrics = episodes.mean_metrics(totals, ("a", "b", "c"))
  assert (metrics["episode_return_mean"], metrics["episode_length_mean"]) == (5.0, 2.5)
  assert metrics["task/a/episode_return_mean"] == 4.0
  assert metrics["task/c/episode_length_mean"] == 4.0
  assert np.isnan(metrics["task/b/episode_return_mean"])
  alone = episodes.mean_metrics(episodes.EpisodeTotals(*np.asarray([12.0, 6.0, 3.0])))
  assert alone == {"episode_return_mean": 4.0, "episode_length_mean": 2.0}


def test_counts_go_on_from_their_json():
  counts = episodes.Counts(("a", "b"))
  counts.add(np.asarray([[1, 2], [3, 4]]))
  counts = episodes.Counts(("a", "b"), counts.to_json())
  counts.add(np.asarray([1.0, 0.0]))
  assert counts.to_json() == {"episodes": 11, "task_episodes": [5, 6]}
  assert counts.metrics() == {"episodes": 11, "task/a/episodes": 5, "task/b/episodes": 6}
  alone = episodes.Counts()
  alone.add(np.asarray([3, 4]))
  assert alone.to_json() == alone.metrics() == {"episodes": 7}
