"""Episodes cut out of unrolls, against ones written by hand."""

import numpy as np
import pytest

from podracer import types
from podracer.data import collector, schema

F, M, L = types.FIRST, types.MID, types.LAST


def unrolls(step_types, discounts, length):
  """Returns unrolls `[length + 1, B]` of streams: at time t reward and observation are t, action 10 t."""
  step_types, discounts = np.asarray(step_types, np.int8).T, np.asarray(discounts, np.float32).T
  num, batch = step_types.shape
  t = np.tile(np.arange(num, dtype=np.float32)[:, None], (1, batch))
  for start in range(0, num - 1, length):
    times = slice(start, start + length + 1)
    acted = slice(start, start + length)
    timesteps = types.TimeStep(step_types[times], t[times], discounts[times], t[times][..., None])
    outputs = types.ActorOutput(
      action=(10 * t[acted]).astype(np.int32),
      logits=np.stack([t[acted], -t[acted]], axis=-1),
      log_prob=-t[acted],
      value=0.5 * t[acted],
    )
    yield types.Trajectory(timesteps, outputs, initial_state=())


# Ends at the end, inside and at the beginning of unrolls of 4; the last episode doesn't end.
STREAM = [F, M, M, L, F, M, L, F, L, F, M, M, M]
ENDED = [1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1]  # The second episode was truncated.


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 12])
def test_episodes_are_whole_wherever_unrolls_are_cut(length):
  collecting = collector.Collector(2)
  found = []
  for unroll in unrolls([STREAM, [*STREAM[:7], F, M, M, M, M, M]], [ENDED, ENDED], length):
    found += collecting.add(unroll)
  by_slot = {slot: [e for e in found if e.slot == slot] for slot in (0, 1)}
  assert [(e.number, e.first_tick, e.length) for e in by_slot[0]] == [
    (0, 0, 3),
    (1, 4, 2),
    (2, 7, 1),
  ]
  assert [(e.number, e.first_tick, e.length) for e in by_slot[1]] == [(0, 0, 3), (1, 4, 2)]
  first, second, third = (e.steps for e in by_slot[0])
  assert first[schema.OBSERVATION].tolist() == [[0], [1], [2], [3]]
  # The reward of a step follows its action: that of time t+1.
  assert first[schema.REWARD].tolist() == [1, 2, 3, 0]
  assert first[schema.DISCOUNT].tolist() == [1, 1, 0, 0]
  assert first[schema.ACTION].tolist() == [0, 10, 20, 0]
  assert first[schema.VALUE].tolist() == [0, 0.5, 1, 0]
  assert first[schema.BEHAVIOUR_LOG_PROB].tolist() == [0, -1, -2, 0]
  assert first[schema.POLICY_LOGITS].tolist() == [[0, 0], [1, -1], [2, -2], [0, 0]]
  assert first[schema.IS_FIRST].tolist() == [True, False, False, False]
  assert first[schema.IS_LAST].tolist() == [False, False, False, True]
  assert first[schema.IS_TERMINAL].tolist() == [False, False, False, True]
  assert by_slot[0][0].episode_return == 6
  assert second[schema.IS_LAST].tolist() == [False, False, True]
  assert not second[schema.IS_TERMINAL].any()
  assert second[schema.DISCOUNT].tolist() == [1, 1, 0]
  assert second[schema.REWARD].tolist() == [5, 6, 0]
  assert third[schema.REWARD].tolist() == [8, 0]
  assert third[schema.IS_TERMINAL].tolist() == [False, True]


def test_an_episode_whose_beginning_was_not_seen_is_left_out():
  collecting = collector.Collector(1, tick=100)
  found = []
  for unroll in unrolls([[M, M, L, F, M, L, F]], [[1, 1, 0, 1, 1, 0, 1]], 3):
    found += collecting.add(unroll)
  assert [(e.number, e.first_tick, e.length) for e in found] == [(1, 103, 2)]


def test_what_is_collected_stays_when_the_arrays_are_written_again():
  collecting = collector.Collector(1)
  (unroll,) = unrolls([[F, M, L, F]], [[1, 1, 0, 1]], 3)
  (found,) = collecting.add(unroll)
  unroll.timesteps.observation[:] = -1
  unroll.actor_outputs.action[:] = -1
  assert found.steps[schema.OBSERVATION].tolist() == [[0], [1], [2]]
  assert found.steps[schema.ACTION].tolist() == [0, 10, 0]


def test_an_episode_under_way_keeps_nothing_of_other_environments():
  collecting = collector.Collector(50)
  (unroll,) = unrolls([[F, M, M, M, M]] + [[F, M, L, F, L]] * 49, [[1] * 5] * 50, 4)
  found = collecting.add(unroll)
  assert len(found) == 49
  part = collecting._slots[0].parts[0]
  for value in [*part.values(), *found[0].steps.values()]:
    assert value.base is None and value.flags.c_contiguous


def test_frames_are_unstacked():
  frames = np.arange(8, dtype=np.uint8)
  stacked = np.stack([np.maximum(frames - 1, 0), frames], axis=1)  # [T, 2], the older first
  (unroll,) = unrolls([[F, M, M, M, M, M, L, F]], [[1, 1, 1, 1, 1, 1, 0, 1]], 7)
  timesteps = unroll.timesteps._replace(observation=stacked[:, None, :])
  unroll = unroll._replace(timesteps=timesteps)
  (found,) = collector.Collector(1, frame_stack=2).add(unroll)
  assert found.steps[schema.OBSERVATION].tolist() == [0, 1, 2, 3, 4, 5, 6]
  wrong = unroll._replace(timesteps=timesteps._replace(observation=stacked[:, None, ::-1]))
  with pytest.raises(ValueError, match="frames"):
    collector.Collector(1, frame_stack=2).add(wrong)


def test_logits_of_actions_that_are_not_allowed_stay_finite():
  (unroll,) = unrolls([[F, L, F]], [[1, 0, 1]], 2)
  logits = np.full((2, 1, 2), np.finfo(np.float32).min / 2)
  outputs = unroll.actor_outputs._replace(
    logits=logits, search_visits=np.full((2, 1, 2), [0.25, 0.75]), search_value=np.zeros((2, 1))
  )
  (found,) = collector.Collector(1).add(unroll._replace(actor_outputs=outputs))
  assert np.all(np.isfinite(found.steps[schema.POLICY_LOGITS]))
  visits = found.steps[schema.SEARCH_VISITS]
  assert visits.dtype == np.uint16
  np.testing.assert_allclose(visits[0] / schema.VISITS_SCALE, [0.25, 0.75], atol=1e-5)
