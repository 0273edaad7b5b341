"""Configuration of the Anakin machine; free of JAX."""

import dataclasses
from typing import ClassVar

from podracer import config


@dataclasses.dataclass(frozen=True)
class AnakinConfig:
  """How Anakin runs an agent."""

  takes_host_environments: ClassVar[bool] = False
  takes_several_seeds: ClassVar[bool] = True
  plays: ClassVar[bool] = True
  batch_field: ClassVar[str] = "num_environments"

  num_environments: int = 1024
  """Environments over all devices, for each seed."""
  unroll_length: int = 20
  """Time steps T between updates."""
  updates_per_call: int = 0
  """Updates between two reports, in one call of the compiled program; 0 takes about 100 reports a run,
  at most 262,144 environment steps each."""

  def __post_init__(self) -> None:
    config.check_positive(num_environments=self.num_environments, unroll_length=self.unroll_length)
    config.check_at_least(0, updates_per_call=self.updates_per_call)

  def preferred_devices(self, num_cores: int, num_tasks: int = 1, num_processes: int = 1) -> int:
    """Returns how many virtual devices a process makes: one a core, or the next number that divides."""
    return config.even_shares(self.num_environments, num_cores, num_tasks * num_processes)

  def check(
    self, num_devices: int, num_minibatches: int, num_tasks: int = 1, num_processes: int = 1
  ) -> None:
    """Raises InputError unless devices, minibatches and tasks get whole shares of the environments."""
    del num_processes  # Their devices are one mesh.
    config.check(
      self.num_environments % num_devices == 0,
      f"num_environments={self.num_environments} is not divisible by the {num_devices} devices",
    )
    local = self.num_environments // num_devices
    config.check(
      local % num_minibatches == 0,
      f"num_minibatches={num_minibatches} does not divide the {local} environments of a device",
    )
    config.check(
      local % num_tasks == 0,
      f"num_environments={self.num_environments}: the {local} environments of a device are not divisible "
      f"by the {num_tasks} tasks; take a multiple of {num_devices * num_tasks}",
    )

  def resolved_updates_per_call(self, num_env_steps: int) -> int:
    """Returns `updates_per_call`, or what 0 stands for in a run of `num_env_steps`."""
    if self.updates_per_call:
      return self.updates_per_call
    steps = self.num_environments * self.unroll_length
    return max(1, min(num_env_steps // 100, 262_144) // steps)
