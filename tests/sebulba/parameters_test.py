import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.sebulba import parameters
from podracer.sebulba import stop as stop_lib


def make(devices=None, num_kept=2):
  stop = stop_lib.Stop()
  return parameters.ParameterStore(devices or jax.devices()[:1], num_kept, stop), stop


def test_newest_and_exact_versions():
  store, _ = make()
  for number in range(4):
    store.publish(number, jax.device_put(jnp.asarray(number * 10), jax.devices()[0]))
  device = jax.devices()[0]
  assert store.newest(device).number == 3
  version = store.exactly(2, device)
  assert (version.number, int(version.params)) == (2, 20)
  with pytest.raises(KeyError, match="version 1 of the parameters is no longer kept"):
    store.exactly(1, device)


def test_waits_for_a_version_to_come():
  store, _ = make()
  device = jax.devices()[0]
  found = []
  thread = threading.Thread(target=lambda: found.append(store.exactly(1, device)), daemon=True)
  thread.start()
  store.publish(0, jnp.zeros(()))
  store.publish(1, jnp.ones(()))
  thread.join(10.0)
  assert [version.number for version in found] == [1]


def test_parameters_lie_on_the_device_that_asks_and_are_copied_only_there():
  learners = jax.devices()[:2]
  mesh = jax.sharding.Mesh(np.asarray(learners), ("learners",))
  params = jax.device_put(
    jnp.arange(3.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )
  store, _ = make([jax.devices()[1], jax.devices()[3]])
  store.publish(0, params)
  here = store.newest(jax.devices()[1]).params
  there = store.newest(jax.devices()[3]).params
  assert here.devices() == {jax.devices()[1]} and there.devices() == {jax.devices()[3]}
  assert here.unsafe_buffer_pointer() == params.addressable_shards[1].data.unsafe_buffer_pointer()
  np.testing.assert_array_equal(there, params)


def test_the_end_ends_the_wait():
  store, stop = make()
  stop.request()
  with pytest.raises(stop_lib.Stopped):
    store.newest(jax.devices()[0])
  with pytest.raises(stop_lib.Stopped):
    store.exactly(3, jax.devices()[0])
