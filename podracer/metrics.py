"""Writes what a run reports: metrics.jsonl, TensorBoard, Weights & Biases, the learning curve.

One daemon thread writes; training only puts rows into a bounded queue and never waits. A sink that
fails is switched off with one line, and the others go on.
"""

import contextlib
import json
import math
import os
import pathlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from podracer import config as config_lib

METRICS_FILE = "metrics.jsonl"
ENV_STEPS = "env_steps"
TASK = "task/"
"""Prefix of the metrics of one of several tasks, see `of_task`."""
QUEUE_SIZE = 1000

Row = dict[str, Any]


def of_task(task: str, metric: str) -> str:
  """Returns the name of a metric of one of several tasks."""
  return f"{TASK}{task}/{metric}"


class MetricsWriter:
  """Writes rows of metrics into a run directory, from a thread of its own."""

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    tensorboard: bool = True,
    wandb_project: str | None = None,
    config: Mapping[str, Any] | None = None,
    resume_env_steps: int | None = None,
    draw_curve: bool = True,
    curve_period_seconds: float = 30.0,
  ):
    """Opens the files.

    Args:
      workdir: the run directory; made if missing.
      tensorboard: also write `tensorboard/`.
      wandb_project: also log to this project; nothing if None or empty.
      config: shown by Weights & Biases.
      resume_env_steps: where the run resumes; what was written after it is removed, so that the file
        becomes that of a run never interrupted.
      draw_curve: also draw `learning_curve.png`.
      curve_period_seconds: at least this much time between two drawings.

    Raises:
      config.InputError: if Weights & Biases is asked for and not installed.
    """
    self._workdir = pathlib.Path(workdir)
    if wandb_project:
      _import_wandb()
    self._workdir.mkdir(parents=True, exist_ok=True)
    _trim(self._workdir / METRICS_FILE, resume_env_steps)
    makers: list[tuple[str, Callable[[], Any]]] = [
      (METRICS_FILE, lambda: _Jsonl(self._workdir / METRICS_FILE))
    ]
    if tensorboard:
      makers.append(
        ("TensorBoard", lambda: _TensorBoard(self._workdir / "tensorboard", resume_env_steps))
      )
    if wandb_project:
      makers.append(
        ("Weights & Biases", lambda: _Wandb(self._workdir, wandb_project, dict(config or {})))
      )
    if draw_curve:
      makers.append(("the learning curve", lambda: _Curve(self._workdir, curve_period_seconds)))
    self._makers = makers
    self._sinks: dict[str, Any] = {}
    self._queue: queue.Queue[Row] = queue.Queue(maxsize=QUEUE_SIZE)
    self._closing = threading.Event()
    self._num_dropped = 0
    self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
    self._thread.start()

  @property
  def num_dropped(self) -> int:
    """Rows that were not written because the queue was full or the writer closed."""
    return self._num_dropped

  def write(self, row: Mapping[str, Any]) -> None:
    """Hands over a row; never blocks and never raises. Array values must not be written to after."""
    try:
      if self._closing.is_set():
        raise queue.Full
      self._queue.put_nowait(dict(row))
    except Exception as error:
      self._num_dropped += 1
      if self._num_dropped == 1:
        logging.warning(
          "A row of metrics is lost: %s. Training goes on; further losses are only counted.",
          "they come faster than they can be written"
          if isinstance(error, queue.Full)
          else _one_line(error),
        )

  def flush(self, timeout_seconds: float = 10.0) -> bool:
    """Waits until all rows are in the files, as before a checkpoint; returns False if it took longer.

    A run killed after a checkpoint, and resumed from it, would lack a row that was still queued.
    """
    deadline = time.monotonic() + timeout_seconds
    with self._queue.all_tasks_done:
      while self._queue.unfinished_tasks:
        if not self._queue.all_tasks_done.wait(deadline - time.monotonic()):
          return False
    return True

  def close(self, timeout_seconds: float = 10.0) -> None:
    """Writes what is queued, draws the curve once more and closes the files. May be called twice."""
    self._closing.set()
    self._thread.join(timeout_seconds)
    if self._thread.is_alive():
      logging.warning(
        "Metrics are still being written after %g s; up to %d rows may be lost.",
        timeout_seconds,
        self._queue.qsize() + 1,
      )

  def _run(self) -> None:
    for name, make in self._makers:
      with self._switching_off(name):
        self._sinks[name] = make()
    while not (self._closing.is_set() and self._queue.empty()):
      self._write_next(timeout_seconds=0.2)
    for name, sink in list(self._sinks.items()):
      with self._switching_off(name):
        sink.close()

  def _write_next(self, timeout_seconds: float) -> None:
    try:
      row = self._queue.get(timeout=timeout_seconds)
    except queue.Empty:
      return
    try:
      row = {str(name): _to_json(value) for name, value in row.items()}
      for name, sink in list(self._sinks.items()):
        with self._switching_off(name):
          sink.write(row)
    except Exception as error:
      logging.warning("A row of metrics can't be written: %s", _one_line(error))
    finally:
      self._queue.task_done()

  @contextlib.contextmanager
  def _switching_off(self, name: str) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      self._sinks.pop(name, None)
      logging.warning("Metrics go no more to %s: %s", name, _one_line(error))


def read_metrics(workdir: str | os.PathLike[str]) -> list[Row]:
  """Returns the rows of a run; a torn last line, as a killed run leaves it, is left out.

  Raises:
    FileNotFoundError: if there is no metrics.jsonl.
    config.InputError: if another line is no JSON object.
  """
  path = pathlib.Path(workdir) / METRICS_FILE
  lines = path.read_bytes().splitlines()
  rows = []
  for i, line in enumerate(lines):
    row = _parse(line)
    if row is not None:
      rows.append(row)
    elif i < len(lines) - 1:
      raise config_lib.InputError(f"line {i + 1} of {path} is no JSON object")
  return rows


def _trim(path: pathlib.Path, resume_env_steps: int | None) -> None:
  """Removes, atomically, a torn last line and the rows after `resume_env_steps`."""
  if not path.exists():
    return
  content = path.read_bytes()
  kept = []
  for line in content.splitlines():
    row = _parse(line)
    steps = None if row is None else row.get(ENV_STEPS)
    is_after = resume_env_steps is not None and steps is not None and steps > resume_env_steps
    if row is not None and not is_after:
      kept.append(line + b"\n")
  trimmed = b"".join(kept)
  if trimmed != content:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
      file.write(trimmed)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)


def _parse(line: bytes) -> Row | None:
  try:
    row = json.loads(line)
  except ValueError:
    return None
  return row if isinstance(row, dict) else None


def _to_json(value: Any) -> Any:
  """Returns a plain JSON value; what is not finite becomes None, as JSON has no NaN."""
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {str(key): _to_json(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_to_json(item) for item in value]
  if hasattr(value, "__array__"):
    array = np.asarray(value)
    if array.dtype.kind not in "biuOUS":  # bfloat16 and its kin have kind V.
      array = array.astype(np.float64)
    return _to_json(array.tolist())
  return str(value)


def _one_line(error: BaseException) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _import_wandb() -> Any:
  try:
    import wandb
  except ImportError:
    raise config_lib.InputError(
      "Weights & Biases is not installed: pip install 'podracer-rl[wandb]'"
    ) from None
  return wandb


class _Jsonl:
  """One JSON object a line, each on disk at once."""

  def __init__(self, path: pathlib.Path):
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

  def write(self, row: Row) -> None:
    self._file.write(json.dumps(row, allow_nan=False) + "\n")
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class _TensorBoard:
  """Event files of the scalar metrics against environment steps."""

  def __init__(self, directory: pathlib.Path, resume_env_steps: int | None):
    # SummaryWriter would add a process queue and a thread, on which a failing disk is never seen.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._event, self._summary = event_pb2, summary
    directory.mkdir(parents=True, exist_ok=True)
    # A suffix, as its names are whole seconds and two starts in one would share a file.
    self._writer = event_file_writer.EventsWriter(
      str(directory / "events"), filename_suffix=f".{uuid.uuid4().hex[:8]}"
    )
    if resume_env_steps is not None:
      # Tells TensorBoard to forget what was written after.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(session_log=start, step=resume_env_steps + 1)
    self._writer.flush()

  def write(self, row: Row) -> None:
    values = [
      value
      for name, number in row.items()
      if isinstance(number, int | float) and name != ENV_STEPS
      for value in self._summary.scalar(name, number).value
    ]
    if values and row.get(ENV_STEPS) is not None:
      self._write(
        summary=type(self._summary.scalar("", 0.0))(value=values), step=int(row[ENV_STEPS])
      )
      self._writer.flush()

  def close(self) -> None:
    self._writer.close()

  def _write(self, **fields: Any) -> None:
    self._writer.write_event(self._event.Event(wall_time=time.time(), **fields))


class _Wandb:
  """Weights & Biases; a resumed run goes on under the same id."""

  def __init__(self, workdir: pathlib.Path, project: str, config: dict[str, Any]):
    id_file = workdir / "wandb" / "podracer_run_id"
    id_file.parent.mkdir(exist_ok=True)
    if not id_file.exists():
      id_file.write_text(uuid.uuid4().hex[:8])
    self._run = _import_wandb().init(
      project=project,
      config=config,
      dir=str(workdir),
      name=workdir.resolve().name,
      id=id_file.read_text(),
      resume="allow",
    )
    # Its own step may not go back, as ours does when a run resumes.
    self._run.define_metric("*", step_metric=ENV_STEPS)

  def write(self, row: Row) -> None:
    self._run.log({name: value for name, value in row.items() if isinstance(value, int | float)})

  def close(self) -> None:
    self._run.finish()


class _Curve:
  """Redraws learning_curve.png from metrics.jsonl."""

  def __init__(self, workdir: pathlib.Path, period_seconds: float):
    self._workdir = workdir
    self._period_seconds = period_seconds
    self._next_time = time.monotonic() + period_seconds

  def write(self, row: Row) -> None:
    if time.monotonic() < self._next_time:
      return
    start = time.monotonic()
    self._draw()
    # Drawing holds the interpreter, which training needs too: at most a hundredth of the time.
    seconds = time.monotonic() - start
    self._next_time = time.monotonic() + max(self._period_seconds, 100 * seconds)

  def close(self) -> None:
    self._draw()

  def _draw(self) -> None:
    from podracer import plotting

    with contextlib.suppress(plotting.NoPointsError):
      plotting.draw_learning_curve(self._workdir)
