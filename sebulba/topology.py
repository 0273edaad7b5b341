"""Which device acts, which learns, and which actor thread is where."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from . import config


class Topology(NamedTuple):
  """The threads and devices of one host.

  Attributes:
    actors: the device of each actor thread; threads of one device are neighbours.
    learners: the devices that learn.
    environments_per_actor: B, environments of one actor thread.
    unrolls_per_update: unrolls in the batch of an update.
  """

  actors: tuple[jax.Device, ...]
  learners: tuple[jax.Device, ...]
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
    machine_config: of the machine.
    devices: of this host, in the order that the configuration's indices mean.
    num_minibatches: of the learner.
    num_tasks: of the environment.

  Raises:
    InputError: if they can't be.
  """
  machine_config.check(len(devices), num_minibatches, num_tasks)
  acting, learning = machine_config.split(len(devices))
  actors = tuple(devices[i] for i in acting for _ in range(machine_config.threads_per_actor_device))
  return Topology(
    actors=actors,
    learners=tuple(devices[i] for i in learning),
    environments_per_actor=machine_config.num_environments // len(actors),
    unrolls_per_update=machine_config.unrolls_per_update or len(actors),
  )
