"""Names, metadata and quotas of recorded episodes."""

import numpy as np
import pytest

from podracer import types
from podracer.data import card, episode, layout, recorder, schema, scores, store, writer

F, M, L = types.FIRST, types.MID, types.LAST
# Episodes of 1, 2 and 3 transitions, again and again, and one of 5 in the other environment.
SHORT = [F, L, F, M, L, F, M, M, L, F, L, F, L, F]
LONG = [F, M, M, M, M, L, F, M, M, M, M, L, F, M]


def unroll():
  step_type = np.asarray([SHORT, LONG], np.int8).T
  num, batch = step_type.shape
  ones = np.ones((num, batch), np.float32)
  timesteps = types.TimeStep(
    step_type, ones, 1 - (step_type == L).astype(np.float32), ones[..., None]
  )
  zeros = np.zeros((num - 1, batch), np.float32)
  outputs = types.ActorOutput(zeros.astype(np.int32), zeros[..., None], zeros, zeros)
  return types.Trajectory(timesteps, outputs, initial_state=())


class Sink:
  def __init__(self):
    self.episodes = []

  def write(self, written):
    self.episodes.append(written)
    return True


def make(sink, **keywords):
  slots = [recorder.Slot(slot=7, seed=70, number=3), recorder.Slot(slot=9, seed=90)]
  return recorder.Recorder(
    sink,
    recorder.common_metadata(task="toy", teacher_step=11),
    slots,
    name=lambda slot, found: f"{slot.slot}-{slot.number + found.number}",
    **keywords,
  )


def test_each_environment_plays_its_quota():
  sink = Sink()
  recording = make(sink, quotas=[2, 2])
  recording.add(unroll())
  assert recording.is_done and recording.num_episodes == 4 and recording.num_steps == 1 + 2 + 5 + 5
  rows = [written.metadata for written in sink.episodes]
  # Five short ones had ended by the second long one; they don't count.
  assert sorted(row["episode_id"] for row in rows) == ["7-3", "7-4", "9-0", "9-1"]
  assert {(row["slot"], row["seed"]) for row in rows} == {(7, 70), (9, 90)}
  assert sorted(row["seed_index"] for row in rows) == [0, 0, 1, 1]
  assert sorted(row["episode_length"] for row in rows) == [1, 2, 5, 5]
  assert [row["episode_return"] for row in rows] == [row["episode_length"] for row in rows]
  assert {row["teacher_step"] for row in rows} == {11}


def test_without_quotas_all_are_written_with_the_step_of_their_teacher():
  sink = Sink()
  recording = make(sink)
  recording.add(unroll(), teacher_step=50)
  assert not recording.is_done and len(sink.episodes) == 5 + 2
  assert {written.metadata["teacher_step"] for written in sink.episodes} == {50}
  lifetimes = [w.metadata["lifetime_step"] for w in sink.episodes if w.metadata["slot"] == 7]
  assert lifetimes == [0, 2, 5, 9, 11]


def test_metadata_is_complete_and_known():
  assert set(recorder.common_metadata()) == set(episode.METADATA)
  with pytest.raises(KeyError, match="colour"):
    recorder.common_metadata(colour="red")


def test_a_card_tells_what_is_there(tmp_path):
  fields = tuple(
    sorted(
      [
        schema.Field("observation", (1,), "float32"),
        schema.Field("action", (), "int32"),
        schema.Field("policy_logits", (1,), "float16"),
        *(schema.Field(name, (), "float32") for name in ("value", "behaviour_log_prob")),
        *(schema.Field(name, (), "float32") for name in ("reward", "discount")),
        *(schema.Field(name, (), "bool") for name in ("is_first", "is_last", "is_terminal")),
      ]
    )
  )
  writing = writer.Writer(tmp_path, "toy", schema.Schema(fields))
  make(writing).add(unroll())
  writing.close()
  store.finalise(tmp_path)
  scores.write(tmp_path, "toy", {scores.RANDOM: {"mean": 1.5, "n": 8}})
  scores.write(tmp_path, "toy", {scores.EXPERT: {"mean": 4.0, "n": 9}})
  card.write(tmp_path)
  text = (tmp_path / layout.README).read_text()
  # 1 + 2 + 3 + 1 + 1 and 5 + 5 transitions.
  assert "| `toy` | 7 | 18 | 2.57 ± 1.68 | 1.50 (n = 8) | 4.00 (n = 9) |" in text
  assert "| `policy_logits` | [1] | float16 |" in text
