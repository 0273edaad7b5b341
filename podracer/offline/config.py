"""Configuration of learning from recorded data; free of JAX."""

import dataclasses
from typing import ClassVar

from podracer import config


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
  """How an agent is trained from recorded data."""

  takes_host_environments: ClassVar[bool] = True
  takes_several_seeds: ClassVar[bool] = False
  plays: ClassVar[bool] = False
  batch_field: ClassVar[str] = "num_windows"

  data: str = ""
  """The collection of expert data to learn from (`podracer record` makes one)."""
  filters: tuple[str, ...] = ()
  """Filters of its episodes, one after the other: norm80, top_fraction:0.1 and so on."""
  num_windows: int = 64
  """Windows of a batch, over all devices."""
  unroll_length: int = 20
  """Transitions of a window."""
  updates_per_report: int = 0
  """Updates between two reports; 0 takes about 100 reports a run."""

  def __post_init__(self) -> None:
    config.check_positive(num_windows=self.num_windows, unroll_length=self.unroll_length)
    config.check_at_least(0, updates_per_report=self.updates_per_report)

  def preferred_devices(self, num_cores: int, num_tasks: int = 1, num_processes: int = 1) -> int:
    """Returns how many virtual devices a process makes: one a core, or the next number that divides."""
    return config.even_shares(self.num_windows, num_cores, num_tasks * num_processes)

  def check(
    self, num_devices: int, num_minibatches: int, num_tasks: int = 1, num_processes: int = 1
  ) -> None:
    """Raises InputError unless devices, minibatches and tasks get whole shares of the windows."""
    config.check(
      num_processes == 1, "architecture offline runs in one process (of several devices)"
    )
    config.check(bool(self.data), "no data given: --data=DIR, a collection of `podracer record`")
    shares = num_devices * num_tasks
    tasks = f" of {num_tasks} tasks each" if num_tasks > 1 else ""
    config.check(
      self.num_windows % shares == 0,
      f"num_windows={self.num_windows} is not divisible by the {num_devices} devices{tasks}",
    )
    local = self.num_windows // num_devices
    config.check(
      local % num_minibatches == 0,
      f"num_minibatches={num_minibatches} does not divide the {local} windows of a device",
    )
