"""The agent that knows nothing: the lower end of every score."""

import jax
import jax.numpy as jnp

from podracer import agent, distributions, types


def make_agent(spec: types.EnvironmentSpec) -> agent.Agent:
  """Builds an agent that draws each action that is allowed alike, over the whole box where continuous.

  It learns nothing: its loss is 0.
  """

  def act(
    params: types.Params,
    key: types.Key,
    timestep: types.TimeStep,
    state: types.State,
    explore: bool,
  ) -> tuple[types.ActorOutput, types.State]:
    del params, explore
    batch_shape = timestep.reward.shape
    zeros = jnp.zeros(batch_shape, jnp.float32)
    if isinstance(spec.action, types.ContinuousActions):
      low, high = jnp.asarray(spec.action.minimum), jnp.asarray(spec.action.maximum)
      # A side without an end is drawn from as far as most policies begin.
      low, high = jnp.where(jnp.isfinite(low), low, -1.0), jnp.where(jnp.isfinite(high), high, 1.0)
      size = (*batch_shape, spec.action.size)
      action = jax.random.uniform(key, size, minval=low, maxval=high)
      logits = jnp.zeros((*batch_shape, 2 * spec.action.size))
      return types.ActorOutput(action, logits, zeros, zeros), state
    logits = jnp.zeros((*batch_shape, spec.action.num_actions))
    logits = distributions.mask_logits(logits, types.action_mask(timestep.observation))
    action = jax.random.categorical(key, logits).astype(jnp.int32)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]
    return types.ActorOutput(action, logits, log_prob, zeros), state

  def loss(
    params: types.Params, target_params: types.Params, key: types.Key, trajectory: types.Trajectory
  ) -> tuple[types.Array, agent.LossInfo]:
    del params, target_params, key, trajectory
    return jnp.zeros(()), agent.LossInfo(metrics={})

  return agent.Agent(init=lambda key: {}, initial_state=lambda batch_size: (), act=act, loss=loss)
