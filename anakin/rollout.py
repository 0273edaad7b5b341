"""The unroll: act and step, scanned over time, inside the compiled program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from podracer import agent as agent_lib
from podracer import environment as environment_lib
from podracer import episodes, types


class ActorState(NamedTuple):
  """What acting carries from step to step, leaves `[B, ...]`.

  Attributes:
    environment: states of the environments.
    timestep: the time steps arrived at, to be acted on next.
    agent: recurrent state of the agent.
    episodes: returns and lengths.
  """

  environment: environment_lib.BatchState
  timestep: types.TimeStep
  agent: types.State
  episodes: episodes.EpisodeTracker


def initial_state(
  agent: agent_lib.Agent, environment: environment_lib.Environment, key: types.Key
) -> ActorState:
  """Starts B environments; `key` is `[B]`, one key an environment."""
  state, timestep = environment_lib.reset(environment, key)
  batch_size = key.shape[0]
  return ActorState(
    environment=state,
    timestep=timestep,
    agent=agent.initial_state(batch_size),
    episodes=episodes.make_tracker(batch_size),
  )


def unroll(
  agent: agent_lib.Agent,
  environment: environment_lib.Environment,
  params: types.Params,
  key: types.Key,
  state: ActorState,
  length: int,
  explore: bool = True,
) -> tuple[ActorState, types.Trajectory]:
  """Acts for `length` steps in B environments.

  Args:
    agent: the agent.
    environment: the environment.
    params: the agent's.
    key: consumed.
    state: `[B, ...]`, from `initial_state` or the unroll before.
    length: T.
    explore: False acts greedily.

  Returns:
    The state after, and the trajectory: T+1 time steps of which the first is `state.timestep` and the
    last is the first of the next unroll.
  """

  def step(
    carry: ActorState, step_key: types.Key
  ) -> tuple[ActorState, tuple[types.TimeStep, types.ActorOutput]]:
    output, agent_state = agent.act(params, step_key, carry.timestep, carry.agent, explore)
    env_state, timestep = environment_lib.step(environment, carry.environment, output.action)
    new = ActorState(
      environment=env_state,
      timestep=timestep,
      agent=agent_state,
      episodes=episodes.track(carry.episodes, timestep),
    )
    return new, (carry.timestep, output)

  end, (timesteps, outputs) = jax.lax.scan(step, state, jax.random.split(key, length))
  # [T, B, ...] and [B, ...] -> [T+1, B, ...]
  timesteps = jax.tree.map(
    lambda x, last: jnp.concatenate([x, last[None]]), timesteps, end.timestep
  )
  return end, types.Trajectory(timesteps, outputs, initial_state=state.agent)


def count_valid(trajectory: types.Trajectory) -> types.Array:
  """Returns the int32 number of environment steps in a trajectory: transitions but the resets."""
  step_type_tm1 = trajectory.timesteps.step_type[:-1]
  return jnp.sum(types.is_valid_transition(step_type_tm1), dtype=jnp.int32)
