"""What is in a collection, for a person: a table of each task, and histograms of the returns."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table

from podracer import config, plotting

from . import dataset as dataset_lib
from . import index as index_lib
from . import layout
from . import schema as schema_lib

NUM_BINS = 40
PANEL_INCHES = (4.2, 2.9)


class TaskReport(NamedTuple):
  """What is known of the episodes of a task that are in view.

  Attributes:
    task: its name.
    num_episodes: in view.
    num_total: before the filters.
    num_steps: transitions in view.
    num_histories: learning histories with an episode in view.
    returns: `[N]`.
    scores: who -> score.
    counts: `phase`, `policy_mode`, `teacher_id` and `control` -> value -> episodes.
    bytes_per_step: on the disk, of a step that is stored, the final ones included, of any episode.
    raw_bytes: of a step without compression.
    duplicates: share of the episodes whose actions are all those of one before, or None where it was
      not looked for.
    dropped: what the filters did.
  """

  task: str
  num_episodes: int
  num_total: int
  num_steps: int
  num_histories: int
  returns: np.ndarray
  scores: dict[str, Any]
  counts: dict[str, dict[str, int]]
  bytes_per_step: float
  raw_bytes: int
  duplicates: float | None
  dropped: Sequence[dataset_lib.Dropped]


def describe(dataset: dataset_lib.Dataset, duplicates: bool = True) -> TaskReport:
  """Describes a view.

  Args:
    dataset: the view.
    duplicates: whether to look for duplicates, for which all episodes are read.
  """
  stored = index_lib.read(dataset.folder / layout.EPISODES)
  paths = [dataset.folder / layout.SHARDS / name for name in stored.shards]
  for path in paths:
    config.check(path.is_file(), f"{path} is missing; `podracer data verify` lists what is wrong")
  num_bytes = sum(path.stat().st_size for path in paths)
  return TaskReport(
    task=dataset.task,
    num_episodes=len(dataset),
    num_total=dataset.num_total,
    num_steps=dataset.num_steps,
    num_histories=len(dataset.histories()),
    returns=dataset.column("episode_return"),
    scores=dataset.scores,
    counts={
      name: dict(collections.Counter(dataset.column(name).tolist()).most_common())
      for name in ("phase", "policy_mode", "control", "teacher_id")
    },
    bytes_per_step=num_bytes / int((stored.column("episode_length") + 1).sum()),
    raw_bytes=sum(_num_bytes(field) for field in dataset.schema.fields),
    duplicates=duplicate_rate(dataset) if duplicates else None,
    dropped=dataset.dropped,
  )


def duplicate_rate(dataset: dataset_lib.Dataset) -> float:
  """Returns the share of episodes whose action sequence is that of one before; reads all of them.

  A greedy teacher in an environment without chance copies itself. Where episodes are short and actions
  few they are the same by chance, too.
  """
  seen = set()
  for episode in dataset.episodes([schema_lib.ACTION]):
    # The last step has no action.
    actions = episode.steps[schema_lib.ACTION][:-1]
    seen.add(hashlib.blake2b(actions.tobytes(), digest_size=16).digest())
  return 1 - len(seen) / len(dataset)


def make_table(report: TaskReport) -> rich.table.Table:
  """Returns what is known of a task as a table."""
  table = rich.table.Table(
    title=report.task, title_justify="left", show_header=False, box=rich.box.SIMPLE_HEAD
  )
  table.add_column()
  table.add_column(overflow="fold")
  for name, text in _lines(report):
    table.add_row(name, text)
  return table


def _lines(report: TaskReport) -> Iterable[tuple[str, str]]:
  of = f" of {report.num_total:,}" if report.dropped else ""
  yield "episodes", f"{report.num_episodes:,}{of}"
  for dropped in report.dropped:
    yield f"  {dropped.filter}", f"{dropped.kept:,} kept, {dropped.dropped:,} dropped"
  mean_length = report.num_steps / report.num_episodes
  yield "steps", f"{report.num_steps:,}, {mean_length:,.1f} an episode"
  if report.num_histories:
    yield "histories", f"{report.num_histories:,}"
  returns = report.returns
  yield "return", f"{returns.mean():,.2f} mean, {returns.min():,.2f} to {returns.max():,.2f}"
  for who in ("random", "expert", "human"):
    score = report.scores.get(who) or {}
    if score.get("mean") is not None:
      number = f" over {score['n']:,} episodes" if "n" in score else ""
      yield f"{who} score", f"{score['mean']:,.2f}{number}"
    elif who != "human":
      yield f"{who} score", "not measured"
  names = {
    "phase": "phases",
    "policy_mode": "modes",
    "control": "control",
    "teacher_id": "teachers",
  }
  for column, name in names.items():
    yield name, _counted(report.counts[column])
  share = report.bytes_per_step / report.raw_bytes
  yield "bytes a step", f"{report.bytes_per_step:,.1f} of {report.raw_bytes:,} raw ({share:.1%})"
  if report.duplicates is not None:
    yield "duplicates", f"{report.duplicates:.1%} of episodes have the actions of another"


def _counted(counts: dict[str, int], most: int = 4) -> str:
  shown = [name if len(counts) == 1 else f"{name} {n:,}" for name, n in counts.items()][:most]
  rest = len(counts) - len(shown)
  return ", ".join([*shown, f"and {rest:,} more"] if rest else shown)


def _num_bytes(field: schema_lib.Field) -> int:
  return int(np.dtype(field.dtype).itemsize * np.prod(field.shape, dtype=np.int64))


def draw_returns(reports: Sequence[TaskReport], out: str | os.PathLike[str]) -> pathlib.Path:
  """Draws a histogram of the returns of each task, with the random and the expert score.

  Args:
    reports: of the tasks.
    out: the picture, which must end in .png.

  Returns:
    The picture's path.
  """
  from matplotlib import figure as figure_lib
  from matplotlib.backends import backend_agg

  path = pathlib.Path(out)
  config.check(path.suffix == ".png", f"png must end in .png, got {out}")
  columns = min(3, len(reports))
  rows = -(-len(reports) // columns)
  size = (PANEL_INCHES[0] * max(columns, 1.4), PANEL_INCHES[1] * rows + 0.4)
  figure = figure_lib.Figure(figsize=size, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  panels = figure.subplots(rows, columns, squeeze=False).ravel()
  for i, (axes, report) in enumerate(zip(panels, reports, strict=False)):
    _draw_panel(axes, report)
    axes.set_ylabel("" if i % columns else "episodes", fontsize=9)
  for axes in panels[len(reports) :]:
    axes.set_visible(False)
  handles = {
    label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
  }
  if handles:
    figure.legend(
      handles.values(),
      handles,
      loc="outside upper right",
      ncols=len(handles),
      frameon=False,
      fontsize=9,
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.tmp")
  figure.savefig(temporary, format="png", dpi=130)
  os.replace(temporary, path)
  return path


def _draw_panel(axes: Any, report: TaskReport) -> None:
  from matplotlib import ticker

  axes.hist(report.returns, bins=_bins(report.returns), color=plotting.PALETTE[0], linewidth=0)
  for who, style, colour in (("random", ":", "#666666"), ("expert", "--", plotting.PALETTE[1])):
    mean = (report.scores.get(who) or {}).get("mean")
    if mean is not None:
      axes.axvline(mean, color=colour, linestyle=style, linewidth=1.5, label=f"{who} score")
  axes.set_title(f"{report.task}  ·  {report.num_episodes:,} episodes", loc="left", fontsize=10)
  axes.set_xlabel("episode return", fontsize=9)
  axes.tick_params(labelsize=8)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
  axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
  axes.grid(axis="y", alpha=0.25, linewidth=0.6)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.margins(x=0.03)


def _bins(returns: np.ndarray) -> np.ndarray:
  """Returns the edges of bins; where returns lie on a grid, each has equally many of its values."""
  values = np.unique(returns)
  low, high = values[0], values[-1]
  if len(values) == 1:
    return low + np.array([-0.5, 0.5])
  step = np.min(np.diff(values))
  if (high - low) / step > 100 * NUM_BINS:
    return np.linspace(low, high, NUM_BINS + 1)
  width = step * np.ceil((high - low) / step / NUM_BINS)
  while (high - low) / width < 10:
    width /= 2
  # Every value in the middle of a bin, or between two values.
  return np.arange(low - min(step, width) / 2, high + width, width)
