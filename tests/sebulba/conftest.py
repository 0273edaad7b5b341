"""A host environment of NumPy with a fault at a stated step, and agents to act in it."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest

from podracer import agent as agent_lib
from podracer import host_environment, types

SPEC = types.EnvironmentSpec(
  "counter", types.ArraySpec((2,), np.dtype("float32")), types.DiscreteActions(3)
)


class Counter:
  """Observes (seed, steps); each episode has `length` steps and ends, or is cut if it is odd-seeded."""

  def __init__(self, seeds, length=5):
    self.spec = SPEC
    self.num_environments = len(seeds)
    self.seeds = np.asarray(seeds, np.float32)
    self.length = length
    self.steps = np.zeros((len(seeds),), np.int64)
    self.was_last = np.zeros((len(seeds),), bool)
    self.actions = []
    self.closed = False

  def observe(self):
    return np.stack([self.seeds, self.steps.astype(np.float32)], axis=-1)

  def reset(self):
    size = self.num_environments
    none, everywhere = np.zeros((size,), bool), np.ones((size,), bool)
    zeros = np.zeros((size,), np.float32)
    return host_environment.make_timestep(everywhere, zeros, none, none, self.observe())

  def step(self, action):
    self.actions.append(action)
    self.steps = np.where(self.was_last, 0, self.steps + 1)
    is_last = (self.steps == self.length) & ~self.was_last
    is_odd = self.seeds % 2 == 1
    reward = self.steps.astype(np.float32)
    timestep = host_environment.make_timestep(
      self.was_last, reward, is_last & ~is_odd, is_last & is_odd, self.observe()
    )
    self.was_last = is_last
    return timestep

  def close(self):
    self.closed = True


class Faulty(Counter):
  """Has a fault at its tenth step."""

  def __init__(self, seeds, fault):
    super().__init__(seeds)
    self.fault = fault
    self.released = threading.Event()

  def step(self, action):
    timestep = super().step(action)
    if len(self.actions) < 10:
      return timestep
    if self.fault == "raises":
      raise ZeroDivisionError("the environment's own fault")
    if self.fault == "blocks":
      self.released.wait()
    if self.fault == "nan":
      timestep.reward[0] = np.nan
    if self.fault == "shape":
      return timestep._replace(observation=timestep.observation[:, :1])
    return timestep


class Made:
  """A factory that remembers the environments it made."""

  def __init__(self, make):
    self.environments = []
    self._make = make
    self.factory = host_environment.HostFactory(spec=SPEC, make=self.make)

  def make(self, seeds, options):
    del options
    self.environments.append(self._make(seeds))
    return self.environments[-1]


def counting_agent():
  """Its state counts steps since the episode began; the action is the step's number modulo 3."""

  def act(params, key, timestep, state, explore):
    del key, explore
    state = jnp.where(timestep.is_first(), 0, state) + 1
    batch = timestep.reward.shape[0]
    action = (timestep.observation[:, 1].astype(jnp.int32)) % 3
    value = jnp.broadcast_to(params["version"], (batch,))
    return types.ActorOutput(action, jnp.zeros((batch, 3)), jnp.zeros((batch,)), value), state

  def loss(params, target_params, key, trajectory):
    del target_params, key
    metrics = {"loss/steps": jnp.mean(trajectory.timesteps.reward)}
    return jnp.mean(params["version"] * -1.0), agent_lib.LossInfo(metrics=metrics)

  return agent_lib.Agent(
    init=lambda key: {"version": jnp.zeros(())},
    initial_state=lambda batch_size: jnp.zeros((batch_size,), jnp.int32),
    act=act,
    loss=loss,
  )


@pytest.fixture
def counter():
  return Made(Counter)


@pytest.fixture(params=["raises", "nan", "shape"])
def faulty(request):
  return Made(lambda seeds: Faulty(seeds, request.param)), request.param


@pytest.fixture
def blocking():
  made = Made(lambda seeds: Faulty(seeds, "blocks"))
  yield made
  for environment in made.environments:
    environment.released.set()


@pytest.fixture
def agent():
  return counting_agent()
