"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from types import TracebackType
from typing import Any

import rich.console
import rich.progress

LINE_PERIOD_SECONDS = 10.0


class Display:
  """Shows progress, speed, return and time left; entered while a run goes on."""

  def __init__(
    self,
    total: int,
    completed: int,
    num_seeds: int = 1,
    console: rich.console.Console | None = None,
    is_shown: bool = True,
  ):
    """Shows nothing yet.

    Args:
      total: environment steps of the run.
      completed: of them already taken.
      num_seeds: runs side by side, each of which takes that many; a speed is that of all together.
      console: standard output by default.
      is_shown: False says nothing at all.
    """
    self._is_live = is_shown and (console.is_terminal if console else sys.stdout.isatty())
    self.console = console or rich.console.Console(highlight=False, soft_wrap=True)
    self.console.quiet |= not is_shown
    self._total, self._completed, self._num_seeds = total, completed, num_seeds
    self._last_line = -math.inf
    self._progress = rich.progress.Progress(
      rich.progress.BarColumn(bar_width=None),
      rich.progress.TaskProgressColumn(),
      rich.progress.TextColumn("{task.fields[text]}"),
      rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
      console=self.console,
      disable=not self._is_live,
      refresh_per_second=4,
    )
    self._task = self._progress.add_task("", total=total, completed=completed, text="compiling ...")

  def __enter__(self) -> "Display":
    self._progress.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._progress.stop()

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    self._progress.console.print(text, markup=False)

  def update(self, row: dict[str, Any], note: str = "") -> None:
    """Shows a report, and of the machine's own note the part before a semicolon."""
    self._completed = min(row["env_steps"], self._total)
    text = f"{row['env_steps']:,} steps  {row['steps_per_second']:,.0f}/s"
    frames = row.get("frames_per_second", row["steps_per_second"])
    if frames != row["steps_per_second"]:
      text += f" ({frames:,.0f} frames/s)"
    episode_return = row.get("episode_return_mean", math.nan)
    if math.isfinite(episode_return):
      text += f"  return {episode_return:.2f}"
    if "evaluation/return_mean" in row:
      text += f"  evaluation {row['evaluation/return_mean']:.2f}"
    if note:
      text += f"  {note.partition(';')[0]}"
    self._progress.update(self._task, completed=self._completed, text=text)
    if self._is_live:
      return
    now = time.monotonic()
    if now - self._last_line >= LINE_PERIOD_SECONDS or "evaluation/return_mean" in row:
      self._last_line = now
      done = self._completed / self._total
      left = (self._total - self._completed) * self._num_seeds
      seconds = left / row["steps_per_second"]
      self.say(f"{done:4.0%}  {text}" + (f"  {seconds:.0f} s left" if seconds else ""))
