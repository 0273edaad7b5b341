"""Configuration of the Sebulba machine; free of JAX."""

import dataclasses
from typing import ClassVar, Literal

from podracer import config

LATEST = "latest"
LOCKSTEP = "lockstep"


@dataclasses.dataclass(frozen=True)
class SebulbaConfig:
  """How Sebulba runs an agent."""

  takes_host_environments: ClassVar[bool] = True
  takes_several_seeds: ClassVar[bool] = False
  plays: ClassVar[bool] = True
  batch_field: ClassVar[str] = "num_environments"

  num_environments: int = 64
  """Environments over all actor threads, of all processes."""
  unroll_length: int = 20
  """Time steps T of an unroll."""
  threads_per_actor_device: int = 2
  """Actor threads on each actor device, each with environments of its own: while one waits for its
  environments, another uses the device."""
  actor_devices: tuple[int, ...] = ()
  """Indices of the devices that act; by default all of one device, or of several about a quarter."""
  learner_devices: tuple[int, ...] = ()
  """Indices of the devices that learn, which may be the same; by default those that don't act, as many
  of them as divide the environments of an actor thread."""
  lag: str = LATEST
  """Whose parameters act: `latest` takes the newest there are; `fixed:k` those of exactly k updates
  before, whatever the timing; `lockstep` is fixed:0, in which acting and learning take turns."""
  refresh: Literal["unroll", "step"] = "unroll"
  """Take new parameters at each unroll, or at each step (with lag=latest)."""
  unrolls_per_update: int = 0
  """Unrolls of a process's actor threads in the batch of an update; 0 takes one of every thread."""
  queue_size: int = 1
  """Finished unrolls an actor thread may have waiting; then it waits itself."""
  environment_threads: int = 0
  """Threads or processes that step the environments of one actor thread; 0 gives it twice its share of
  the cores, which the others leave idle while they act."""
  environment_mode: Literal["sync", "async"] = "sync"
  """`async` steps whichever environments are ready first (envpool, with lag=latest)."""
  async_batch_size: int = 0
  """Environments stepped together in `async`; 0 takes half of an actor thread's."""
  stall_timeout_seconds: float = 300.0
  """A thread that stays in one place for longer ends the run with a word on where it was."""
  updates_per_report: int = 0
  """Updates between two reports; 0 takes about 100 reports a run, at most 32,768 environment steps each."""

  def __post_init__(self) -> None:
    config.check_positive(
      num_environments=self.num_environments,
      unroll_length=self.unroll_length,
      threads_per_actor_device=self.threads_per_actor_device,
      queue_size=self.queue_size,
      stall_timeout_seconds=self.stall_timeout_seconds,
    )
    config.check_at_least(
      0,
      unrolls_per_update=self.unrolls_per_update,
      environment_threads=self.environment_threads,
      async_batch_size=self.async_batch_size,
      updates_per_report=self.updates_per_report,
    )
    for name in ("actor_devices", "learner_devices"):
      indices = getattr(self, name)
      config.check(
        all(i >= 0 for i in indices) and len(set(indices)) == len(indices),
        f"{name} must be different indices of at least 0, got {indices}",
      )
    lag = self.fixed_lag
    config.check(self.refresh == "unroll" or lag is None, "refresh=step needs lag=latest")
    config.check(
      self.environment_mode == "sync" or lag is None, "environment_mode=async needs lag=latest"
    )

  @property
  def fixed_lag(self) -> int | None:
    """Updates between the parameters that act and those that learn; None where it is not fixed."""
    if self.lag in (LATEST, LOCKSTEP):
      return 0 if self.lag == LOCKSTEP else None
    kind, _, k = self.lag.partition(":")
    config.check(
      kind == "fixed" and k.isdecimal(),
      f"lag must be latest, lockstep or fixed:k with a whole number k, got {self.lag}",
    )
    return int(k)

  def preferred_devices(self, num_cores: int, num_tasks: int = 1, num_processes: int = 1) -> int:
    """Returns how many virtual devices a process makes: as many as are named; threads use the cores."""
    del num_cores, num_tasks, num_processes
    return max((0, *self.actor_devices, *self.learner_devices)) + 1

  def split(self, num_devices: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the indices of the actor devices and of the learner devices.

    Args:
      num_devices: there are.

    Raises:
      InputError: for an index that there is not.
    """
    for name in ("actor_devices", "learner_devices"):
      indices = getattr(self, name)
      config.check(
        all(i < num_devices for i in indices),
        f"{name}={indices}, but there are {num_devices} devices (indices 0 .. {num_devices - 1})",
      )
    everything = tuple(range(num_devices))
    # The paper's rule for agents without a model: about three learner cores for an actor core.
    free = tuple(i for i in everything if i not in self.learner_devices)
    actors = self.actor_devices or free[: max(1, num_devices // 4)] or everything[:1]
    learners = self.learner_devices
    if not learners:
      rest = tuple(i for i in everything if i not in actors) or actors
      # As many as get whole shares of an actor thread's environments.
      per_thread = self.num_environments // (len(actors) * self.threads_per_actor_device)
      learners = rest[: max(n for n in range(1, len(rest) + 1) if per_thread % n == 0)]
    return actors, learners

  def of_process(self, num_processes: int) -> "SebulbaConfig":
    """Returns the configuration of one process of several: its share of the environments."""
    config.check(
      self.num_environments % num_processes == 0,
      f"num_environments={self.num_environments} is not divisible by the {num_processes} processes",
    )
    return dataclasses.replace(self, num_environments=self.num_environments // num_processes)

  def check(
    self, num_devices: int, num_minibatches: int, num_tasks: int = 1, num_processes: int = 1
  ) -> None:
    """Raises InputError for what can't be shared out over devices, threads, minibatches and tasks."""
    if num_processes > 1:
      own = self.of_process(num_processes)
      own.check(num_devices // num_processes, num_minibatches, num_tasks)
      return
    actors, learners = self.split(num_devices)
    num_threads = len(actors) * self.threads_per_actor_device
    config.check(
      self.num_environments % num_threads == 0,
      f"num_environments={self.num_environments} is not divisible by the {num_threads} actor threads "
      f"({len(actors)} actor devices x {self.threads_per_actor_device})",
    )
    per_thread = self.num_environments // num_threads
    config.check(
      per_thread % num_tasks == 0,
      f"num_environments={self.num_environments}: the {per_thread} environments of an actor thread are "
      f"not divisible by the {num_tasks} tasks; take a multiple of {num_threads * num_tasks}",
    )
    config.check(
      num_tasks == 1 or self.environment_mode == "sync",
      "environment_mode=async is for environments of one task",
    )
    config.check(
      per_thread % len(learners) == 0,
      f"the {per_thread} environments of an actor thread are not divisible by the {len(learners)} "
      "learner devices",
    )
    local = (self.unrolls_per_update or num_threads) * per_thread // len(learners)
    config.check(
      local % num_minibatches == 0,
      f"num_minibatches={num_minibatches} does not divide the {local} environments that a learner "
      "device learns from",
    )
    if self.environment_mode == "async":
      config.check(per_thread >= 2, "environment_mode=async needs 2 environments a thread at least")
      config.check(
        self.async_batch_size < per_thread,
        f"async_batch_size must be below the {per_thread} environments of an actor thread, got "
        f"{self.async_batch_size}",
      )

  def resolved_updates_per_report(self, num_env_steps: int, steps_per_update: int) -> int:
    """Returns `updates_per_report`, or what 0 stands for in a run of `num_env_steps`."""
    return self.updates_per_report or max(1, min(num_env_steps // 100, 32_768) // steps_per_update)
