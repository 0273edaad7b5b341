"""The parameter store: what the learner publishes, by version, on every actor device."""

import collections
import threading
from collections.abc import Sequence
from typing import NamedTuple

import jax

from podracer import types

from . import stop as stop_lib


class Version(NamedTuple):
  """Parameters and how many updates made them."""

  number: int
  params: types.Params


class ParameterStore:
  """The newest versions of the parameters, on each device that acts."""

  def __init__(self, devices: Sequence[jax.Device], num_kept: int, stop: stop_lib.Stop):
    """Makes an empty store.

    Args:
      devices: that act.
      num_kept: newest versions kept, at least 1.
      stop: ends every wait.
    """
    self._devices = tuple(devices)
    self._num_kept = num_kept
    self._stop = stop
    self._changed = threading.Condition()
    self._versions: collections.OrderedDict[int, dict[jax.Device, types.Params]] = (
      collections.OrderedDict()
    )

  def publish(self, number: int, params: types.Params) -> None:
    """Publishes a version; copies start here and are waited for by whoever takes them.

    Args:
      number: updates that made them.
      params: on one or more learner devices, the same on each; never donated afterwards.
    """
    placed = {device: _place(params, device) for device in self._devices}
    with self._changed:
      self._versions[number] = placed
      while len(self._versions) > self._num_kept:
        self._versions.popitem(last=False)
      self._changed.notify_all()

  def newest(self, device: jax.Device) -> Version:
    """Returns the newest version there is, waiting only for the very first; raises Stopped."""
    with self._changed:
      while not self._versions:
        self._stop.check()
        self._changed.wait(stop_lib.POLL_SECONDS)
      number = next(reversed(self._versions))
      params = self._versions[number][device]
    return Version(number, jax.block_until_ready(params))

  def exactly(self, number: int, device: jax.Device) -> Version:
    """Waits for one version and returns it; raises Stopped at the end.

    Raises:
      KeyError: if it is so old that it is no longer kept.
    """
    with self._changed:
      while number not in self._versions:
        self._stop.check()
        if self._versions and next(iter(self._versions)) > number:
          raise KeyError(f"version {number} of the parameters is no longer kept")
        self._changed.wait(stop_lib.POLL_SECONDS)
      params = self._versions[number][device]
    return Version(number, jax.block_until_ready(params))


def _place(params: types.Params, device: jax.Device) -> types.Params:
  """Returns the parameters on one device, without a copy where they are there already."""
  leaves = jax.tree.leaves(params)
  if all(leaf.sharding.device_set == {device} for leaf in leaves):
    return params

  def place(x: jax.Array) -> jax.Array:
    for shard in x.addressable_shards:
      if shard.device == device:
        return shard.data
    return jax.device_put(x.addressable_data(0), device)

  return jax.tree.map(place, params)
