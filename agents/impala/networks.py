"""The network of IMPALA: one body, and heads for policy and value."""

from typing import NamedTuple

import flax.linen as nn

from podracer import config as config_lib
from podracer import types
from podracer.networks import body, heads


class ImpalaOutput(NamedTuple):
  """What the network computes.

  Attributes:
    logits: `[..., A]` parameters of the policy.
    value: `[..., num_tasks]`, in units of the normalised return where PopArt is on.
  """

  logits: types.Array
  value: types.Array


class ImpalaNetwork(nn.Module):
  """Body, policy head and value head."""

  config: config_lib.NetworkConfig
  spec: types.EnvironmentSpec

  def setup(self) -> None:
    """Makes the parts."""
    self.body = body.Body(self.config, self.spec)
    self.policy = heads.make_policy_head(self.spec.action)
    self.value = heads.ValueHead(self.spec.num_tasks)

  def __call__(
    self, timestep: types.TimeStep, state: body.BodyState
  ) -> tuple[ImpalaOutput, body.BodyState]:
    """Reads one time step `[B, ...]`."""
    features, state = self.body(timestep, state)
    return ImpalaOutput(self.policy(features), self.value(features)), state

  def unroll(
    self, timesteps: types.TimeStep, actions: types.Array, initial_state: body.BodyState
  ) -> ImpalaOutput:
    """Reads time steps `[T+1, B, ...]` between which `actions`, `[T, B, ...]`, were taken."""
    features = self.body.unroll(timesteps, actions, initial_state)
    return ImpalaOutput(self.policy(features), self.value(features))
