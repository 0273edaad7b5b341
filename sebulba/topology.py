"""Which device acts, which learns, and which actor thread is where."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from . import config


class Topology(NamedTuple):
  """The threads and devices of one process.

  Attributes:
    actors: the device of each actor thread; threads of one device are neighbours.
    learners: the devices that learn, of this process.
    all_learners: those of all processes, of each as many.
    environments_per_actor: B, environments of one actor thread.
    unrolls_per_update: unrolls in the batch of an update.
  """

  actors: tuple[jax.Device, ...]
  learners: tuple[jax.Device, ...]
  all_learners: tuple[jax.Device, ...]
  environments_per_actor: int
  unrolls_per_update: int

  @property
  def actor_devices(self) -> tuple[jax.Device, ...]:
    """The devices that act, each once."""
    return tuple(dict.fromkeys(self.actors))


def make_topology(
  machine_config: config.SebulbaConfig,
  devices: Sequence[jax.Device],
  num_minibatches: int = 1,
  num_tasks: int = 1,
) -> Topology:
  """Shares out threads over devices.

  Args:
    machine_config: of one process of the machine.
    devices: of all processes; the configuration's indices are those within a process.
    num_minibatches: of the learner.
    num_tasks: of the environment.

  Raises:
    InputError: if they can't be.
  """
  by_process: dict[int, list[jax.Device]] = {}
  for device in devices:
    by_process.setdefault(device.process_index, []).append(device)
  own = by_process[jax.process_index()]
  machine_config.check(len(own), num_minibatches, num_tasks)
  acting, learning = machine_config.split(len(own))
  actors = tuple(own[i] for i in acting for _ in range(machine_config.threads_per_actor_device))
  return Topology(
    actors=actors,
    learners=tuple(own[i] for i in learning),
    all_learners=tuple(those[i] for those in by_process.values() for i in learning),
    environments_per_actor=machine_config.num_environments // len(actors),
    unrolls_per_update=machine_config.unrolls_per_update or len(actors),
  )
