"""`podracer plot runs/*`: draws the learning curves of one or several runs."""

import dataclasses
import pathlib
from collections.abc import Sequence

import tyro

from podracer import config

from . import command_line


@dataclasses.dataclass(frozen=True)
class PlotConfig:
  """Draws learning curves; runs that differ only in their seed become one mean and band."""

  workdirs: tyro.conf.Positional[tuple[str, ...]]
  """Run directories."""
  out: str = "learning_curves.png"
  """The picture to write."""
  metric: str = "episode_return_mean"
  """Any name in metrics.jsonl."""

  def __post_init__(self) -> None:
    config.check(bool(self.workdirs), "no run directory given: podracer plot runs/*")
    config.check(
      pathlib.Path(self.out).suffix in (".png", ".pdf", ".svg"),
      f"out must end in .png, .pdf or .svg, got {self.out}",
    )


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  wanted: PlotConfig = command_line.parse(PlotConfig, "podracer plot", args)
  from podracer import plotting

  plotting.plot_runs(wanted.workdirs, wanted.out, metric=wanted.metric)
  print(f"wrote {wanted.out}")
