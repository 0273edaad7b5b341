"""`podracer tune`: measures the parts of Sebulba on this machine, and says which settings to take."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from podracer import config as config_lib

from . import command_line, experiment

NUM_MEASURED = 3


@dataclasses.dataclass(frozen=True)
class TuneConfig:
  """Measures environment, inference and learner alone, and finds the settings that are fastest."""

  env: str
  """`suite:environment` (see `podracer envs`)."""
  agent: str = "impala"
  """The agent, with its preset for the environment."""
  num_environments: tuple[int, ...] = (32, 64, 128, 256)
  """Numbers of environments to try; with more of them the batch of an update is larger, too."""
  threads_per_actor_device: tuple[int, ...] = (1, 2, 3)
  """Numbers of actor threads to try."""
  num_devices: int = 0
  """Devices to use; with more than one, splits of them into actors and learners are tried."""
  seconds: float = 1.0
  """Of each measurement."""

  def __post_init__(self) -> None:
    config_lib.check_positive(seconds=self.seconds)
    config_lib.check_at_least(0, num_devices=self.num_devices)
    for name in ("num_environments", "threads_per_actor_device"):
      values = getattr(self, name)
      config_lib.check(
        bool(values) and all(value > 0 for value in values),
        f"{name} must all be above 0, got {values}",
      )


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  wanted: TuneConfig = command_line.parse(TuneConfig, "podracer tune", args)
  command_line.check_choice("agent", wanted.agent, tuple(experiment.AGENTS))
  base = experiment.default_experiment(wanted.agent, "sebulba", wanted.env)
  base.check()
  candidates = list(_candidates(base.machine, wanted, max(1, wanted.num_devices)))
  config_lib.check(
    bool(candidates), "no num_environments given is divisible by a threads_per_actor_device given"
  )
  from . import host

  devices = host.start_jax(wanted.num_devices)
  if len(devices) > max(1, wanted.num_devices):
    candidates = list(_candidates(base.machine, wanted, len(devices)))
  environment = base.make_environment()
  agent = base.make_agent(environment.spec)
  print(f"{wanted.env}, {len(devices)} x {devices[0].device_kind}; steps/s of each part alone:")
  print(f"{'settings':44}{'environment':>12}{'inference':>12}{'learner':>12}{'predicted':>12}")
  found = []
  for machine_config in candidates:
    machine = experiment.make_machine(
      dataclasses.replace(base, machine=machine_config), agent, environment, devices
    )
    found.append((_limits(machine, wanted.seconds), machine_config, machine))
    limits = found[-1][0]
    speeds = (limits.environment, limits.inference, limits.learner, limits.predicted)
    print(f"{_short(machine_config):44}" + "".join(f"{speed:12,.0f}" for speed in speeds))
  found.sort(key=lambda entry: -entry[0].predicted)
  print("\nthe best of them, measured as a whole:")
  best: Any = None
  for limits, machine_config, machine in found[:NUM_MEASURED]:
    speed, summary = _whole(machine, 3 * wanted.seconds)
    print(
      f"{_short(machine_config):44}predicted {limits.predicted:,.0f}/s, measured {speed:,.0f}/s; "
      f"{summary.partition(';')[0]}"
    )
    best = max(best or (speed, machine_config), (speed, machine_config), key=lambda entry: entry[0])
  flags = [f"--num_environments={best[1].num_environments}"]
  flags.append(f"--threads_per_actor_device={best[1].threads_per_actor_device}")
  for name in ("actor_devices", "learner_devices"):
    indices = getattr(best[1], name)
    if indices:
      flags.append(f"--{name} {' '.join(map(str, indices))}")
  print(f"\nfastest here, {best[0]:,.0f} steps/s:")
  print(f"  podracer train --architecture=sebulba --env={wanted.env} {' '.join(flags)}")
  print("(a larger batch may need another learning rate: the speed of learning is not measured)")


def _candidates(machine: Any, wanted: TuneConfig, num_devices: int) -> Iterator[Any]:
  """Yields the settings that can be shared out over the devices."""
  for actors, learners in _splits(num_devices):
    for num_environments in wanted.num_environments:
      for threads in wanted.threads_per_actor_device:
        candidate = dataclasses.replace(
          machine,
          num_environments=num_environments,
          threads_per_actor_device=threads,
          actor_devices=actors,
          learner_devices=learners,
        )
        try:
          candidate.check(num_devices, 1)
        except config_lib.InputError:
          continue
        yield candidate


def _splits(num_devices: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
  """Yields one split for one device; for several, all sharing and every power of two of actors."""
  everything = tuple(range(num_devices))
  if num_devices == 1:
    yield (), ()
    return
  yield everything, everything
  num_actors = 1
  while num_actors < num_devices:
    yield everything[:num_actors], everything[num_actors:]
    num_actors *= 2


def _limits(machine: Any, seconds: float) -> Any:
  from podracer.sebulba import measure

  return measure.limits(machine, seconds)


def _whole(machine: Any, seconds: float) -> tuple[float, str]:
  """Returns the steps/s of the whole machine after its first report, and its summary."""
  from podracer.sebulba import machine as machine_lib

  begin, first = 0.0, None
  for news in machine_lib.run(machine, machine.init(0), num_env_steps=10**12):
    now = time.perf_counter()
    if first is None:
      begin, first = now, news.env_steps
    elif now - begin >= seconds:
      return (news.env_steps - first) / (now - begin), news.summary
  raise AssertionError("a run without end has ended")


def _short(machine_config: Any) -> str:
  text = (
    f"{machine_config.num_environments} environments, {machine_config.threads_per_actor_device}"
  )
  text += " thread" + "s" * (machine_config.threads_per_actor_device > 1)
  if machine_config.actor_devices:
    text += f", act {machine_config.actor_devices} learn {machine_config.learner_devices}"
  return text
