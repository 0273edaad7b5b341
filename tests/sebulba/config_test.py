from typing import NamedTuple

import pytest

from podracer import config
from podracer.sebulba import config as config_lib
from podracer.sebulba import topology

SPLITS = [
  # number of devices, actor_devices, learner_devices -> who acts, who learns
  (1, (), (), (0,), (0,)),
  (2, (), (), (0,), (1,)),
  (4, (), (), (0,), (1, 2)),
  (8, (), (), (0, 1), (2, 3, 4, 5)),
  (4, (0, 1), (), (0, 1), (2, 3)),
  (4, (), (0, 1, 2), (3,), (0, 1, 2)),
  (4, (), (0, 1, 2, 3), (0,), (0, 1, 2, 3)),
  (4, (1,), (1, 2), (1,), (1, 2)),
  (2, (0, 1), (), (0, 1), (0, 1)),
]


@pytest.mark.parametrize(("num", "actors", "learners", "act", "learn"), SPLITS)
def test_split(num, actors, learners, act, learn):
  made = config_lib.SebulbaConfig(actor_devices=actors, learner_devices=learners)
  assert made.split(num) == (act, learn)


WRONG = [
  ({"lag": "fixed"}, "lag must be latest, lockstep or fixed:k"),
  ({"lag": "fixed:-1"}, "lag must be latest, lockstep or fixed:k"),
  ({"lag": "newest"}, "got newest"),
  ({"refresh": "step", "lag": "fixed:1"}, "refresh=step needs lag=latest"),
  ({"environment_mode": "async", "lag": "lockstep"}, "environment_mode=async needs lag=latest"),
  ({"actor_devices": (0, 0)}, "different indices"),
  ({"learner_devices": (-1,)}, "different indices"),
  ({"queue_size": 0}, "queue_size must be above 0"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_wrong_values(values, message):
  with pytest.raises(config.InputError, match=message):
    config_lib.SebulbaConfig(**values)


WRONG_SHARES = [
  ({"actor_devices": (3,)}, 2, 1, "there are 2 devices"),
  ({"num_environments": 63}, 1, 1, "not divisible by the 2 actor threads"),
  ({"num_environments": 6, "learner_devices": (0, 1)}, 2, 1, "3 environments of an actor thread"),
  ({"num_environments": 6}, 1, 4, "num_minibatches=4 does not divide the 6"),
  ({"num_environments": 2, "environment_mode": "async"}, 1, 1, "2 environments a thread"),
  ({"environment_mode": "async", "async_batch_size": 32}, 1, 1, "must be below the 32"),
]


@pytest.mark.parametrize(("values", "devices", "minibatches", "message"), WRONG_SHARES)
def test_what_cannot_be_shared_out(values, devices, minibatches, message):
  with pytest.raises(config.InputError, match=message):
    config_lib.SebulbaConfig(**values).check(devices, minibatches)


def test_lags():
  lags = {"latest": None, "lockstep": 0, "fixed:0": 0, "fixed:3": 3}
  assert {lag: config_lib.SebulbaConfig(lag=lag).fixed_lag for lag in lags} == lags


class Device(NamedTuple):
  process_index: int
  number: int


def test_actors_of_a_process_are_its_own_and_all_processes_learn():
  made = config_lib.SebulbaConfig(num_environments=8, actor_devices=(0,), learner_devices=(1, 2))
  devices = [Device(process, i) for process in (1, 0) for i in range(3)]
  found = topology.make_topology(made, devices)
  assert found.actor_devices == (Device(0, 0),)
  assert found.learners == (Device(0, 1), Device(0, 2))
  assert found.all_learners == (Device(1, 1), Device(1, 2), Device(0, 1), Device(0, 2))


def test_topology():
  made = config_lib.SebulbaConfig(num_environments=36, threads_per_actor_device=3)
  a, b, *others = devices = [Device(0, i) for i in range(8)]
  found = topology.make_topology(made, devices)
  assert found.actors == (a, a, a, b, b, b)
  assert found.learners == found.all_learners == tuple(others)
  assert found.actor_devices == (a, b)
  assert (found.environments_per_actor, found.unrolls_per_update) == (6, 6)
