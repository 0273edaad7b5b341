import builtins
import json
import math
import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config as config_lib
from podracer import metrics


def make_writer(tmp_path, **options):
  return metrics.MetricsWriter(tmp_path, **{"tensorboard": False, "draw_curve": False, **options})


def lines(tmp_path):
  return (tmp_path / metrics.METRICS_FILE).read_text().splitlines()


def read_events(tmp_path):
  """Reads TensorBoard's files by their format: length, checksum, event, checksum."""
  from tensorboardX.proto import event_pb2

  events = []
  for path in sorted((tmp_path / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      length = int.from_bytes(data[:8], "little")
      events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return events


def test_every_kind_of_value_becomes_json(tmp_path):
  writer = make_writer(tmp_path)
  writer.write(
    {
      "env_steps": np.int64(3),
      "float": np.float32(0.5),
      "nan": math.nan,
      "infinite": np.float64(math.inf),
      "seeds/episode_return_mean": [1.0, math.nan],
      "array": np.array([1, 2]),
      "jax": jnp.float32(2.0),
      "bfloat16": jnp.ones((2,), jnp.bfloat16),
      "flag": np.bool_(True),
      "text": "x",
      "nothing": None,
    }
  )
  writer.close()
  (line,) = lines(tmp_path)
  assert json.loads(line, parse_constant=pytest.fail) == {
    "env_steps": 3,
    "float": 0.5,
    "nan": None,
    "infinite": None,
    "seeds/episode_return_mean": [1.0, None],
    "array": [1, 2],
    "jax": 2.0,
    "bfloat16": [1.0, 1.0],
    "flag": True,
    "text": "x",
    "nothing": None,
  }
  assert metrics.read_metrics(tmp_path) == [json.loads(line)]


def test_flush_returns_when_rows_are_in_the_file(tmp_path):
  writer = make_writer(tmp_path)
  for i in range(50):
    writer.write({"env_steps": i})
  assert writer.flush()
  assert len(lines(tmp_path)) == 50
  writer.close()
  writer.close()


def test_a_resumed_file_equals_that_of_an_uninterrupted_run(tmp_path):
  def write(workdir, steps, **options):
    writer = make_writer(workdir, **options)
    for i in steps:
      writer.write({"env_steps": i, "episode_return_mean": i / 7})
    writer.close()

  write(tmp_path / "whole", range(10))
  write(tmp_path / "resumed", range(8))
  with open(tmp_path / "resumed" / metrics.METRICS_FILE, "a") as file:
    file.write('{"env_steps": 8, "episode_re')
  assert len(metrics.read_metrics(tmp_path / "resumed")) == 8
  write(tmp_path / "resumed", range(6, 10), resume_env_steps=5)
  assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")
  assert [p.name for p in (tmp_path / "resumed").iterdir()] == [metrics.METRICS_FILE]


def test_a_torn_last_line_is_removed_before_more_is_written(tmp_path):
  (tmp_path / metrics.METRICS_FILE).write_text('{"env_steps": 1}\n{"env_st')
  writer = make_writer(tmp_path)
  writer.write({"env_steps": 2})
  writer.close()
  assert metrics.read_metrics(tmp_path) == [{"env_steps": 1}, {"env_steps": 2}]


def test_a_bad_line_before_the_last_is_an_error(tmp_path):
  (tmp_path / metrics.METRICS_FILE).write_text('{"env_steps": 1}\nnonsense\n{"env_steps": 2}\n')
  with pytest.raises(config_lib.InputError, match=r"line 2 of .* is no JSON object"):
    metrics.read_metrics(tmp_path)


def test_tensorboard_has_the_scalars_at_their_environment_steps(tmp_path):
  writer = make_writer(tmp_path, tensorboard=True)
  writer.write({"env_steps": 10, "loss/total": 0.5, "text": "x", "seeds/a": [1], "nan": math.nan})
  writer.write({"env_steps": 20, "loss/total": 0.25})
  writer.close()
  writer = make_writer(tmp_path, tensorboard=True, resume_env_steps=15)
  writer.write({"env_steps": 20, "loss/total": 0.125})
  writer.close()
  events = read_events(tmp_path)
  scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
  assert sorted(scalars) == [
    (10, "loss/total", 0.5),
    (20, "loss/total", 0.125),
    (20, "loss/total", 0.25),
  ]
  # TensorBoard forgets what an earlier file has from this step on.
  starts = [e.step for e in events if e.HasField("session_log")]
  assert starts == [16]


class BrokenSink:
  def write(self, row):
    raise OSError("no space left")

  def close(self):
    raise AssertionError("closed after it was switched off")


def test_a_raising_sink_is_switched_off_with_one_line_and_others_go_on(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(metrics, "_TensorBoard", lambda *arguments: BrokenSink())
  writer = make_writer(tmp_path, tensorboard=True)
  for i in range(5):
    writer.write({"env_steps": i})
  writer.close()
  assert len(lines(tmp_path)) == 5
  (record,) = caplog.records
  assert record.getMessage() == "Metrics go no more to TensorBoard: OSError: no space left"


def test_training_never_waits_and_lost_rows_are_counted(tmp_path, monkeypatch, caplog):
  release = threading.Event()

  class SlowSink(BrokenSink):
    def write(self, row):
      release.wait(30)

    def close(self):
      pass

  monkeypatch.setattr(metrics, "QUEUE_SIZE", 3)
  monkeypatch.setattr(metrics, "_TensorBoard", lambda *arguments: SlowSink())
  writer = make_writer(tmp_path, tensorboard=True)
  start = time.monotonic()
  for i in range(20):
    writer.write({"env_steps": i})
  assert not writer.flush(timeout_seconds=0.1)
  assert time.monotonic() - start < 5
  # At most one row is with the thread and three are queued.
  assert 16 <= writer.num_dropped <= 17
  assert len(caplog.records) == 1
  assert "A row of metrics is lost" in caplog.records[0].getMessage()
  writer.close(timeout_seconds=0.1)
  assert "still being written" in caplog.records[1].getMessage()
  release.set()
  writer.close()
  assert len(lines(tmp_path)) == 20 - writer.num_dropped
  writer.write({"env_steps": 21})
  writer.write(None)


def test_a_row_that_cannot_be_read_does_not_end_the_thread(tmp_path, caplog):
  class Unreadable:
    def __array__(self, *arguments, **options):
      raise RuntimeError("Array has been deleted")

  writer = make_writer(tmp_path)
  writer.write({"x": Unreadable()})
  writer.write({"env_steps": 1})
  writer.close()
  assert metrics.read_metrics(tmp_path) == [{"env_steps": 1}]
  assert "Array has been deleted" in caplog.records[0].getMessage()


def test_the_learning_curve_is_drawn_at_close(tmp_path):
  writer = make_writer(tmp_path, draw_curve=True)
  writer.write({"env_steps": 1, "episode_return_mean": 0.5})
  writer.close(timeout_seconds=60)
  assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_points_there_is_no_curve_and_no_warning(tmp_path, caplog):
  writer = make_writer(tmp_path, draw_curve=True, curve_period_seconds=0)
  writer.write({"env_steps": 1, "episode_return_mean": None})
  writer.close(timeout_seconds=60)
  assert not (tmp_path / "learning_curve.png").exists()
  assert not caplog.records


def fake_wandb(monkeypatch, log):
  calls = []
  run = types.SimpleNamespace(
    define_metric=lambda *a, **k: None, log=log or calls.append, finish=lambda: calls.append("end")
  )
  module = types.ModuleType("wandb")
  module.init = lambda **options: calls.append(options) or run
  monkeypatch.setitem(sys.modules, "wandb", module)
  return calls


def test_wandb_gets_the_scalars_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
  calls = fake_wandb(monkeypatch, None)
  for _ in range(2):
    writer = make_writer(tmp_path, wandb_project="races", config={"seed": 1})
    writer.write({"env_steps": 1, "loss/total": 0.5, "seeds/x": [1]})
    writer.close()
  first, row, end, second = calls[:4]
  assert (first["project"], first["config"]) == ("races", {"seed": 1})
  assert row == {"env_steps": 1, "loss/total": 0.5}
  assert end == "end"
  assert second["id"] == first["id"]
  assert second["resume"] == "allow"


def test_a_failing_wandb_is_one_warning(tmp_path, monkeypatch, caplog):
  def fail(row):
    raise ConnectionError("no network")

  fake_wandb(monkeypatch, fail)
  writer = make_writer(tmp_path, wandb_project="races")
  writer.write({"env_steps": 1})
  writer.write({"env_steps": 2})
  writer.close()
  assert len(lines(tmp_path)) == 2
  (record,) = caplog.records
  assert "Weights & Biases: ConnectionError: no network" in record.getMessage()


def test_a_missing_wandb_is_one_line_that_names_the_extra(tmp_path, monkeypatch):
  real_import = builtins.__import__

  def without_wandb(name, *arguments, **options):
    if name == "wandb":
      raise ImportError(name)
    return real_import(name, *arguments, **options)

  monkeypatch.setattr(builtins, "__import__", without_wandb)
  with pytest.raises(ValueError, match=r"pip install 'podracer-rl\[wandb\]'"):
    make_writer(tmp_path / "run", wandb_project="races")
  assert not (tmp_path / "run").exists()
