"""Pictures of runs: the learning curve of one, and several runs compared.

matplotlib is imported when something is drawn, and used without pyplot, so that a thread may draw.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from podracer import config as config_lib
from podracer import metrics

CURVE_FILE = "learning_curve.png"
# Okabe and Ito's palette, which colour-blind people can tell apart, without its faint yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")
NUM_GRID_POINTS = 500
LABELS = {
  "episode_return_mean": "episode return",
  "episode_length_mean": "episode length",
  "evaluation/return_mean": "evaluation return",
  "steps_per_second": "steps / s",
}


class NoPointsError(config_lib.InputError):
  """A run has reported nothing that could be drawn yet."""


class Curve(NamedTuple):
  """One line.

  Attributes:
    x: `[N]` environment steps, ascending.
    y: `[N]` values, all finite.
  """

  x: np.ndarray
  y: np.ndarray


class Run(NamedTuple):
  """What is read of a run directory."""

  name: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]


class _Group(NamedTuple):
  """Runs that differ only in the seed."""

  label: str
  curves: list[Curve]


def draw_learning_curve(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Draws the return of training and of evaluations, of each task, and the speed, into learning_curve.png.

  Args:
    workdir: a run directory; config.json is used for the title if it is there.

  Returns:
    The picture's path.

  Raises:
    NoPointsError: if there is no metrics.jsonl, or no return in it.
  """
  run = read_run(workdir)
  drawn = {
    task: curves for task in ("", *_tasks(run.rows)) if any(curves := _returns(run.rows, task))
  }
  if not drawn:
    raise NoPointsError(f"{workdir} has no point of episode_return_mean to draw yet")
  if len(drawn) > 1:
    drawn.pop("", None)  # The mean over tasks tells little: their returns are of different sizes.
  figure, all_axes, speed_axes = _new_figure(len(drawn), with_speed=True)
  for axes, (task, (training, evaluation, deviation)) in zip(all_axes, drawn.items(), strict=True):
    if training:
      seeds = f", mean ± std of {len(training)} seeds" if len(training) > 1 else ""
      _draw_group(axes, _Group(f"training{seeds}", training), PALETTE[0], show_raw=True)
    if evaluation:
      _draw_evaluation(axes, evaluation, deviation)
    _finish_axes(axes, "episode return")
    axes.set_title(task or _title(run), loc="left", fontsize=11)
  all_axes[0].legend(loc="best", frameon=False, fontsize=9)

  speed = metric_curves(run.rows, "steps_per_second")
  if speed:
    _draw_group(speed_axes, _Group("speed", speed), "#666666", show_raw=True)
    speed_axes.set_ylim(bottom=0)
  _finish_axes(speed_axes, "steps / s")
  speed_axes.set_xlabel("environment steps")
  return _save(figure, pathlib.Path(workdir) / CURVE_FILE)


def plot_runs(
  workdirs: Sequence[str | os.PathLike[str]],
  out: str | os.PathLike[str],
  metric: str = "episode_return_mean",
) -> pathlib.Path:
  """Draws a metric of several runs into one picture.

  Runs whose configurations differ only in the seed are one line, their mean, with a band of one
  standard deviation; so are the seeds of a run that has several.

  Args:
    workdirs: run directories.
    out: the picture, of a type that matplotlib knows by its suffix.
    metric: a name in metrics.jsonl.

  Returns:
    The picture's path.

  Raises:
    NoPointsError: if a run has no metrics.jsonl or no point of the metric.
    config.InputError: if no run is given or the suffix is not known.
  """
  config_lib.check(len(workdirs) > 0, "no run given to plot")
  runs = [read_run(workdir) for workdir in workdirs]
  groups = _group_runs(runs, metric)
  figure, (axes,), _ = _new_figure(1)
  for i, group in enumerate(groups):
    style = LINE_STYLES[i // len(PALETTE) % len(LINE_STYLES)]
    _draw_group(axes, group, PALETTE[i % len(PALETTE)], style, show_raw=len(groups) == 1)
  _finish_axes(axes, LABELS.get(metric, metric))
  axes.set_xlabel("environment steps")
  axes.legend(loc="best", frameon=False, fontsize=9)
  environments = {str(run.config.get("env", "")) for run in runs}
  if len(environments) == 1:
    axes.set_title(environments.pop(), loc="left", fontsize=11)
  return _save(figure, pathlib.Path(out))


def read_run(workdir: str | os.PathLike[str]) -> Run:
  """Reads a run directory. Raises NoPointsError if it has no metrics.jsonl."""
  path = pathlib.Path(workdir)
  if not (path / metrics.METRICS_FILE).is_file():
    raise NoPointsError(f"{workdir} is no run directory: it has no {metrics.METRICS_FILE}")
  config: Any = {}
  with contextlib.suppress(OSError, ValueError):  # It is only wanted for names.
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
  return Run(
    name=path.resolve().name,
    config=config if isinstance(config, dict) else {},
    rows=metrics.read_metrics(path),
  )


def metric_curves(rows: Iterable[dict[str, Any]], metric: str) -> list[Curve]:
  """Returns a metric against environment steps: one curve for each seed, else one, or none."""
  points: dict[int, list[tuple[float, float]]] = {}
  has_seeds = any(f"seeds/{metric}" in row for row in rows)
  for row in rows:
    steps = row.get(metrics.ENV_STEPS)
    values = row.get(f"seeds/{metric}") if has_seeds else [row.get(metric)]
    if not isinstance(steps, int | float) or not isinstance(values, list):
      continue
    for seed, value in enumerate(values):
      if isinstance(value, int | float) and np.isfinite(value):
        points.setdefault(seed, []).append((steps, value))
  curves = []
  for _, pairs in sorted(points.items()):
    x, y = np.array(pairs, float).T
    order = np.argsort(x, kind="stable")
    curves.append(Curve(x[order], y[order]))
  return curves


def mean_and_band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Interpolates curves onto one grid.

  Args:
    curves: at least one; they may have different steps and lengths.

  Returns:
    `[N]` steps, mean and standard deviation over the curves that have got there, where at least half
    of them have.
  """
  if len(curves) == 1:
    return curves[0].x, curves[0].y, np.zeros_like(curves[0].y)
  low, high = min(c.x[0] for c in curves), max(c.x[-1] for c in curves)
  if all(np.array_equal(c.x, curves[0].x) for c in curves):
    grid = curves[0].x
  else:
    grid = np.linspace(low, high, NUM_GRID_POINTS)
  values = np.stack([np.interp(grid, c.x, c.y, left=np.nan, right=np.nan) for c in curves])
  enough = np.isfinite(values).sum(0) * 2 >= len(curves)
  values = values[:, enough]
  return grid[enough], np.nanmean(values, 0), np.nanstd(values, 0)


def smoothed(y: np.ndarray, width: int) -> np.ndarray:
  """Returns the mean over a centred window, which is cut off at the ends; `[N]` -> `[N]`."""
  total = np.concatenate([[0.0], np.cumsum(y)])
  index = np.arange(len(y))
  low, high = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(y))
  return (total[high] - total[low]) / (high - low)


def _group_runs(runs: Sequence[Run], metric: str) -> list[_Group]:
  by_config: dict[str, list[Run]] = {}
  for i, run in enumerate(runs):
    # A run without a configuration is like no other.
    key = json.dumps(_without_seed(run.config), sort_keys=True) if run.config else f"run {i}"
    by_config.setdefault(key, []).append(run)
  groups = []
  for members in by_config.values():
    curves = []
    for run in members:
      found = metric_curves(run.rows, metric)
      if not found:
        raise NoPointsError(f"{run.name} has no point of {metric} to draw")
      curves += found
    label = _common_name([run.name for run in members])
    groups.append(_Group(f"{label} ({len(curves)} seeds)" if len(curves) > 1 else label, curves))
  return _with_distinct_labels(groups, list(by_config.values()))


def _without_seed(config: Any) -> Any:
  if not isinstance(config, dict):
    return config
  left_out = ("seed", "num_seeds", "workdir")
  return {name: _without_seed(value) for name, value in config.items() if name not in left_out}


def _common_name(names: Sequence[str]) -> str:
  """Returns what the names of runs of several seeds have in common, "catch" for "catch-seed1"."""
  if len(names) == 1:
    return names[0]
  prefix = "".join(
    characters[0]
    for characters in itertools.takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False))
  )
  return re.sub(r"([-_. ]+(seed|s)?[-_. =]*\d*)$", "", prefix) or names[0]


def _with_distinct_labels(groups: list[_Group], members: list[list[Run]]) -> list[_Group]:
  """Adds to labels that are equal the settings in which their configurations differ."""
  configs = [dict(_flattened(_without_seed(runs[0].config))) for runs in members]
  labels = [group.label for group in groups]
  result = []
  for group, config in zip(groups, configs, strict=True):
    label = group.label
    if labels.count(label) > 1:
      rivals = [c for c, other in zip(configs, labels, strict=True) if other == label]
      names = [n for n in config if any(c.get(n) != config[n] for c in rivals)]
      settings = ", ".join(f"{name.rpartition('.')[2]}={config[name]}" for name in names[:3])
      label = f"{label}, {settings}" if settings else label
    result.append(group._replace(label=label))
  return result


def _flattened(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, dict):
      yield from _flattened(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def _title(run: Run) -> str:
  names = [run.config.get(name) for name in ("env", "agent", "architecture")]
  return "  ·  ".join(name for name in names if isinstance(name, str) and name) or run.name


def _tasks(rows: Iterable[dict[str, Any]]) -> list[str]:
  """Returns the names of the tasks whose returns were reported apart, in their order."""
  pattern = re.compile(
    f"{re.escape(metrics.TASK)}(.+)/(episode_return_mean|evaluation/return_mean)"
  )
  names = dict.fromkeys(name for row in rows for name in row)
  found = map(pattern.fullmatch, names)
  return list(dict.fromkeys(match[1] for match in found if match))


def _returns(rows: list[dict[str, Any]], task: str) -> tuple[list[Curve], list[Curve], list[Curve]]:
  """Returns the curves of training, of evaluations and of their deviation, of all tasks where `task` is ""."""
  training, evaluation, deviation = (
    metric_curves(rows, metrics.of_task(task, name) if task else name)
    for name in ("episode_return_mean", "evaluation/return_mean", "evaluation/return_std")
  )
  return training, evaluation, deviation


def _new_figure(num_panels: int, with_speed: bool = False) -> tuple[Any, list[Any], Any]:
  """Returns a figure, the axes of its panels one below another, and those of the speed below them."""
  from matplotlib import figure as figure_lib
  from matplotlib.backends import backend_agg

  heights = [3.8 if num_panels == 1 else 2.0] * num_panels + [1.1] * with_speed
  figure = figure_lib.Figure(figsize=(8, sum(heights) + 0.4), layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.subplots(
    len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
  )[:, 0].tolist()
  return figure, axes[:num_panels], axes[-1] if with_speed else None


def _draw_group(
  axes: Any, group: _Group, colour: str, style: str = "-", show_raw: bool = False
) -> None:
  """Draws the smoothed mean of curves and a band, or over a single curve's own faint line."""
  curves = [c._replace(y=smoothed(c.y, len(c.y) // 40)) for c in group.curves]
  x, mean, deviation = mean_and_band(curves)
  if len(curves) > 1:
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
  elif show_raw and len(x) >= 40:
    axes.plot(x, group.curves[0].y, color=colour, alpha=0.25, linewidth=0.8)
  marker = "o" if len(x) == 1 else None
  axes.plot(
    x,
    mean,
    color=colour,
    linestyle=style,
    linewidth=1.8,
    marker=marker,
    label=group.label,
    zorder=3,
  )


def _draw_evaluation(axes: Any, curves: list[Curve], deviations: list[Curve]) -> None:
  """Draws evaluations as points, with the deviation over episodes, or over seeds if several."""
  x, mean, error = mean_and_band(curves)
  label = "evaluation, mean ± std of seeds"
  if len(curves) == 1:
    by_step = dict(zip(*deviations[0], strict=True)) if deviations else {}
    error = np.array([by_step.get(step, 0.0) for step in x])
    label = "evaluation, mean ± std of episodes" if error.any() else "evaluation"
  axes.errorbar(
    x,
    mean,
    yerr=error if error.any() else None,
    color=PALETTE[1],
    linestyle="none",
    marker="o",
    markersize=5,
    capsize=3,
    elinewidth=1.2,
    zorder=4,
    label=label,
  )


def _finish_axes(axes: Any, label: str) -> None:
  from matplotlib import ticker

  axes.set_ylabel(label)
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
  if "steps / s" in label:
    axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(3))
  axes.grid(alpha=0.25, linewidth=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  axes.margins(x=0.02)
  axes.set_xlim(left=0)


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
  """Writes a picture in one step: who looks meanwhile sees the old one."""
  suffix = path.suffix.removeprefix(".").lower() or "png"
  known = figure.canvas.get_supported_filetypes()
  config_lib.check(
    suffix in known, f"{path} is no picture: its suffix must be one of {', '.join(sorted(known))}"
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.tmp")
  figure.savefig(temporary, format=suffix, dpi=130)
  os.replace(temporary, path)
  return path
