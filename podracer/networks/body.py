"""The body that agents share: torso, previous action and reward, recurrent core.

An agent steps it (`__call__`) when acting and unrolls it when learning; both give the same features.
"""

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from podracer import config as config_lib
from podracer import types

from . import cores, torsos


class BodyState(NamedTuple):
  """What the body remembers from step to step; () where the configuration has no use for a part.

  Attributes:
    previous_action: `[B]` int32 or `[B, k]` float32. The caller, who alone knows which action was
      taken, writes it by `_replace`, if `use_previous_action` is on.
    core: state of the recurrent core.
  """

  previous_action: Any = ()
  core: Any = ()


class Body(nn.Module):
  """Features of time steps; see Espeholt et al. (2018), section 5 and figure 3.

  Attributes:
    config: of the network.
    spec: of the environment.
  """

  config: config_lib.NetworkConfig
  spec: types.EnvironmentSpec

  def setup(self) -> None:
    """Builds the submodules."""
    self.torso = torsos.make_torso(self.config, self.spec.observation, self.spec.num_tasks)
    if self.config.lstm_size:
      self.core = cores.LSTM(self.config.lstm_size)

  def __call__(self, timestep: types.TimeStep, state: BodyState) -> tuple[types.Array, BodyState]:
    """Reads one time step.

    Args:
      timestep: `[B, ...]`.
      state: `[B, ...]`; what concerns the episode before is ignored where the time step is FIRST.

    Returns:
      `[B, F]` features, and the state with the same `previous_action` and the core's new state.
    """
    chex.assert_rank(timestep.step_type, 1)
    features = self._inputs(self.torso(timestep.observation), timestep, state.previous_action)
    if not self.config.lstm_size:
      return features, state
    features, core = self.core.step(features, timestep.is_first(), state.core)
    return features, state._replace(core=core)

  def unroll(
    self, timesteps: types.TimeStep, actions: types.Array, initial_state: BodyState
  ) -> types.Array:
    """Reads T consecutive time steps; the torso sees them as one batch.

    Args:
      timesteps: `[T, B, ...]`.
      actions: `[T-1, B, ...]`, the action taken in every time step but the last.
      initial_state: `[B, ...]`, the state with which time step 0 was read when acting.

    Returns:
      `[T, B, F]` features.
    """
    chex.assert_rank(timesteps.step_type, 2)
    chex.assert_axis_dimension(actions, 0, timesteps.step_type.shape[0] - 1)
    observation = jax.tree.map(  # [T, B, ...] -> [T*B, ...]
      lambda x: x.reshape(-1, *x.shape[2:]), timesteps.observation
    )
    features = self.torso(observation)
    features = features.reshape(*timesteps.step_type.shape, -1)  # [T*B, F] -> [T, B, F]
    previous_action: Any = ()
    if self.config.use_previous_action:
      previous_action = jnp.concatenate([initial_state.previous_action[None], actions])
    features = self._inputs(features, timesteps, previous_action)
    if not self.config.lstm_size:
      return features
    return self.core.unroll(features, timesteps.is_first(), initial_state.core)[0]

  def _inputs(
    self, features: types.Array, timestep: types.TimeStep, previous_action: Any
  ) -> types.Array:
    """Returns `[..., F']`: the features, then previous action and previous reward where wanted."""
    parts = [features]
    if self.config.use_previous_action:
      action = previous_action
      if isinstance(self.spec.action, types.DiscreteActions):
        action = jax.nn.one_hot(action, self.spec.action.num_actions)
      # The action before a FIRST time step belongs to another episode, and was ignored.
      parts.append(jnp.where(timestep.is_first()[..., None], 0.0, action))
    if self.config.use_previous_reward:
      parts.append(jnp.clip(timestep.reward, -1.0, 1.0)[..., None])
    return jnp.concatenate(parts, axis=-1)


def initial_state(
  config: config_lib.NetworkConfig, spec: types.EnvironmentSpec, batch_size: int
) -> BodyState:
  """Returns the state of a body before its first time step, zeros with leaves `[B, ...]`."""
  previous_action: Any = ()
  if config.use_previous_action:
    previous_action = (
      jnp.zeros((batch_size,), jnp.int32)
      if isinstance(spec.action, types.DiscreteActions)
      else jnp.zeros((batch_size, spec.action.size))
    )
  core = cores.initial_state(config.lstm_size, batch_size) if config.lstm_size else ()
  return BodyState(previous_action=previous_action, core=core)
