"""Windows of recorded episodes as unrolls, against what was recorded, written out by hand."""

import jax
import numpy as np
import pytest

from podracer import config, data, multitask, types
from podracer.offline import windows

FIRST, MID, LAST = types.FIRST, types.MID, types.LAST


@pytest.fixture(scope="module")
def root(line, tmp_path_factory):
  episodes = [line.make_episode(0, 2, terminates=False), line.make_episode(1, 6)]
  return line.write(tmp_path_factory.mktemp("line"), episodes)


def unrolls(line, root, length):
  """Returns ((first observation, steps that there are), unroll `[T+1]`) of every window."""
  dataset = windows.select(root, line.SPEC, ())
  size = len(data.WindowSource(dataset, length + 1))
  batch = next(windows.make_batches(dataset, length, size, 0)(0))
  trajectory = jax.device_get(windows.to_trajectory(line.SPEC, [batch]))
  found = []
  for b in range(size):
    one = types.map_batch(lambda axis, x, b=b: np.take(x, b, axis=axis), trajectory)
    key = (int(one.timesteps.observation["a"][0]), int(batch["mask"][b].sum()))
    found.append((key, one))
  return found


def test_a_window_inside_an_episode(line, root):
  unroll = dict(unrolls(line, root, 3))[101, 4]
  assert unroll.timesteps.step_type.tolist() == [MID, MID, MID, MID]
  assert unroll.timesteps.reward.tolist() == [0, 2, 3, 4]
  assert unroll.timesteps.discount.tolist() == [1, 1, 1, 1]
  assert unroll.timesteps.observation["a"].tolist() == [101, 102, 103, 104]
  assert unroll.timesteps.observation["b"].tolist() == [[1, -1], [2, -2], [3, -3], [4, -4]]
  assert unroll.actor_outputs.action.tolist() == [1, 2, 0]
  assert unroll.actor_outputs.log_prob.tolist() == [-1.5] * 3
  assert unroll.actor_outputs.value.tolist() == [7] * 3
  assert unroll.actor_outputs.logits.tolist() == [[0.5] * 3] * 3
  assert unroll.actor_outputs.logits.dtype == np.float32
  assert unroll.actor_outputs.search_visits is None and unroll.initial_state == ()


def test_an_end_and_a_truncation(line, root):
  ended = dict(unrolls(line, root, 3))[103, 4]
  assert ended.timesteps.step_type.tolist() == [MID, MID, MID, LAST]
  assert ended.timesteps.discount.tolist() == [1, 1, 1, 0]
  cut = dict(unrolls(line, root, 3))[0, 3]
  assert cut.timesteps.step_type.tolist() == [FIRST, MID, LAST, LAST]
  assert cut.timesteps.reward.tolist() == [0, 1, 2, 0]
  assert cut.timesteps.discount[:3].tolist() == [1, 1, 1]
  assert types.is_valid_transition(cut.timesteps.step_type[:-1]).tolist() == [True, True, False]


def test_what_sticks_out_of_an_episode_is_no_experience(line, root):
  begins = dict(unrolls(line, root, 3))[100, 2]
  # Steps 0 and 1 of an episode of 6: the window ends there, the episode doesn't.
  assert begins.timesteps.step_type.tolist() == [FIRST, LAST, LAST, LAST]
  assert begins.timesteps.discount[:2].tolist() == [1, 1]
  assert begins.timesteps.reward[:2].tolist() == [0, 1]
  only_last = dict(unrolls(line, root, 3))[106, 1]
  assert only_last.timesteps.step_type.tolist() == [LAST] * 4


def test_every_transition_is_in_equally_many_windows(line, root):
  length = 3
  found = unrolls(line, root, length)
  count = {}
  for _, unroll in found:
    valid = types.is_valid_transition(unroll.timesteps.step_type[:-1])
    for a in unroll.timesteps.observation["a"][:-1][valid]:
      count[int(a)] = count.get(int(a), 0) + 1
  assert count == dict.fromkeys([0, 1, 100, 101, 102, 103, 104, 105], length)
  dataset = windows.select(root, line.SPEC, ())
  expected = sum(count.values()) / len(found)
  assert windows.mean_transitions(dataset, length) == pytest.approx(expected)


def test_transitions_are_counted(line, root):
  dataset = windows.select(root, line.SPEC, ())
  size = len(data.WindowSource(dataset, 4))
  batch = next(windows.make_batches(dataset, 3, size, 0)(0))
  assert windows.num_transitions([batch]) == 8 * 3


def test_batches_go_on_where_they_were(line, root, monkeypatch):
  dataset = windows.select(root, line.SPEC, ())
  for most_bytes in (1 << 30, 0):  # Held in memory, and read as they are needed.
    monkeypatch.setattr(windows, "_MOST_BYTES", most_bytes)
    make = windows.make_batches(dataset, 3, 4, 5)
    whole = [batch for batch, _ in zip(make(0), range(9), strict=False)]
    later = [batch for batch, _ in zip(make(6), range(3), strict=False)]
    for a, b in zip(whole[6:], later, strict=True):
      jax.tree.map(np.testing.assert_array_equal, a, b)
    orders = [tuple(batch["observation/a"][:, 0]) for batch in whole]
    assert len(set(orders)) == len(orders)


def test_held_and_read_batches_are_the_same(line, root, monkeypatch):
  dataset = windows.select(root, line.SPEC, ())
  held = next(windows.make_batches(dataset, 3, 4, 5)(2))
  monkeypatch.setattr(windows, "_MOST_BYTES", 0)
  read = next(windows.make_batches(dataset, 3, 4, 5)(2))
  jax.tree.map(np.testing.assert_array_equal, held, read)


def test_searches(line, tmp_path):
  visits = np.array([65535, 0, 0], np.uint16)
  extra = {"search_visits": visits, "search_value": np.float32(0.25)}
  root = line.write(tmp_path, [line.make_episode(0, 4, **extra)])
  dataset = windows.select(root, line.SPEC, (), ("search_visits",))
  unroll = windows.to_trajectory(line.SPEC, [next(windows.make_batches(dataset, 2, 3, 0)(0))])
  np.testing.assert_array_equal(
    unroll.actor_outputs.search_visits, np.broadcast_to([1.0, 0, 0], (2, 3, 3))
  )


def test_data_that_can_not_be_learnt_from(line, root, tmp_path):
  with pytest.raises(config.InputError, match="no search_visits, from which the agent is to learn"):
    windows.select(root, line.SPEC, (), ("search_visits",))
  other = line.SPEC._replace(
    observation={**line.SPEC.observation, "a": types.ArraySpec((4,), np.int32)}
  )
  with pytest.raises(
    config.InputError, match=r"observation/a is int32\[\] there, and int32\[4\] here"
  ):
    windows.select(root, other, ())
  with pytest.raises(config.InputError, match="observation/c is missing there"):
    extra = {**line.SPEC.observation, "c": types.ArraySpec((), np.float32)}
    windows.select(root, line.SPEC._replace(observation=extra), ())
  with pytest.raises(config.InputError, match="leaves none of the 2 episodes"):
    windows.select(root, line.SPEC, ("min_return:5",))
  with pytest.raises(config.InputError, match="no task suite_other"):
    windows.select(root, line.SPEC._replace(name="suite:Other"), ())
  with pytest.raises(config.InputError, match="is not a directory"):
    windows.select(str(tmp_path / "nowhere"), line.SPEC, ())


def test_several_tasks(line, tmp_path):
  other = line.SPEC._replace(
    name="suite:Other",
    observation=types.ArraySpec((2,), np.float32),
    action=types.DiscreteActions(5),
  )
  spec = multitask.make_spec([line.SPEC, other], "both")
  searched = line.make_episode(2, 4, search_value=np.float32(0.25))
  batch = next(windows.make_batches(_open(line, tmp_path / "a", [searched]), 3, 2, 0)(0))
  wide = line.make_episode(3, 4, policy_logits=np.full(5, 0.5, np.float16))
  alone = {**wide.steps, "observation": wide.steps["observation/b"]}
  del alone["observation/a"], alone["observation/b"]
  root = line.write(tmp_path / "b", [wide._replace(steps=alone)])
  theirs = next(windows.make_batches(data.open(root)["suite_line"], 3, 2, 0)(0))
  unroll = jax.device_get(windows.to_trajectory(spec, [batch, theirs]))
  observation, acted = unroll.timesteps.observation, unroll.actor_outputs
  assert observation["task_id"].tolist() == [[0, 0, 1, 1]] * 4
  assert observation["action_mask"][0].tolist() == [[True] * 3 + [False] * 2] * 2 + [[True] * 5] * 2
  own = jax.device_get(windows.to_trajectory(line.SPEC, [batch]))
  views = [
    multitask.task_timestep(spec, types.map_batch(_columns(part), unroll).timesteps, task)
    for task, part in enumerate((slice(0, 2), slice(2, 4)))
  ]
  jax.tree.map(np.testing.assert_array_equal, views[0], own.timesteps)
  np.testing.assert_array_equal(np.swapaxes(views[1].observation, 0, 1), theirs["observation"])
  np.testing.assert_array_equal(acted.logits[:, :2, :3], own.actor_outputs.logits)
  assert (acted.logits[:, :2, 3:] < -1e8).all()
  expected = np.swapaxes(theirs["policy_logits"], 0, 1)[:-1]
  assert np.any(expected) and (acted.logits[:, 2:] == expected).all()
  assert acted.action.shape == (3, 4) and acted.search_value is None
  assert own.actor_outputs.search_value is not None


def _open(line, root, episodes):
  return windows.select(line.write(root, episodes), line.SPEC, ())


def _columns(part):
  return lambda axis, x: x[:, part] if axis else x[part]
