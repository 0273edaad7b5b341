"""A trained policy from a run directory: load, reset, act."""

import pathlib
from typing import Any

import jax

from podracer import agent as agent_lib
from podracer import checkpoint, host_environment, types
from podracer import config as config_lib

from . import experiment, teachers


class Policy:
  """A trained agent that acts on batches of time steps.

  Attributes:
    agent: the agent's pure functions.
    params: its parameters.
    spec: of the environment it was trained in.
    env_steps: environment steps it was trained for.
  """

  def __init__(
    self,
    agent: agent_lib.Agent,
    params: types.Params,
    spec: types.EnvironmentSpec,
    env_steps: int,
    *,
    greedy: bool = True,
    seed: int = 0,
  ):
    self.agent = agent
    self.params = params
    self.spec = spec
    self.env_steps = env_steps
    self._key = jax.random.key(seed)
    self._act = jax.jit(lambda p, key, t, s: _act(agent, p, key, t, s, not greedy))

  def initial_state(self, batch_size: int) -> types.State:
    """Returns the recurrent state at the beginning of `batch_size` episodes."""
    return self.agent.initial_state(batch_size)

  def __call__(
    self, timestep: types.TimeStep, state: types.State
  ) -> tuple[types.Array, types.State]:
    """Acts.

    Args:
      timestep: `[B, ...]`; the state is reset by itself where it is FIRST.
      state: from `initial_state` or the call before.

    Returns:
      Actions `[B]` or `[B, k]`, and the new state.
    """
    output, state, self._key = self._act(self.params, self._key, timestep, state)
    return output.action, state


def _act(
  agent: agent_lib.Agent, params: Any, key: Any, timestep: Any, state: Any, explore: bool
) -> tuple[types.ActorOutput, types.State, types.Key]:
  key, act_key = jax.random.split(key)
  output, state = agent.act(params, act_key, timestep, state, explore)
  return output, state, key


class LoadedRun:
  """A run read back: its configuration, environment, agent and newest valid parameters.

  Attributes:
    experiment: its configuration, on a machine that plays.
    environment: that it was trained in.
    factory: of the environment outside JAX.
    agent: that acts by what it has learnt alone.
    recording_agent: the same, that also says what its teachers would do if it has any.
    env_steps: environment steps it was trained for.
  """

  def __init__(self, workdir: str, search: bool = True):
    """Reads a run.

    Args:
      workdir: the run directory.
      search: False lets an agent that searches act by its network alone.

    Raises:
      config.InputError: if it is not a run, or has no checkpoint yet; or for search=False of an agent that
        doesn't search.
      checkpoint.CheckpointError: if all its checkpoints are bad.
    """
    self.experiment = experiment.to_play(experiment.read(workdir))
    self.environment = self.experiment.make_environment()
    self.factory = host_environment.as_factory(self.environment)
    config = self.experiment.config.for_evaluation()
    members = teachers.shapes(self.experiment)
    self.agent = self.experiment.make_agent(self.environment.spec, config, members)
    self.recording_agent = self.agent
    if config.for_recording() != config:
      self.recording_agent = self.experiment.make_agent(
        self.environment.spec, config.for_recording(), members
      )
    if not search:
      self.agent = self.recording_agent = agent_lib.without_search(self.agent)
    one = jax.eval_shape(self.agent.init, jax.random.key(0))
    seeds = (self.experiment.num_seeds,) if self.experiment.num_seeds > 1 else ()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((*seeds, *x.shape), x.dtype, sharding=device), one
    )
    checkpointer = checkpoint.Checkpointer(pathlib.Path(workdir) / "checkpoints")
    restored = checkpointer.restore({"params": target})
    checkpointer.close()
    if restored is None:
      raise config_lib.InputError(f"workdir {workdir} has no checkpoint yet")
    self.env_steps = min(restored.metadata["counters"]["env_steps"])
    self._params = restored.items["params"]

  def params(self, index: int = 0) -> types.Params:
    """Returns the parameters of one of the run's seeds; raises InputError for one it hasn't."""
    num_seeds = self.experiment.num_seeds
    config_lib.check(
      0 <= index < num_seeds, f"seed_index must be 0 .. {num_seeds - 1}, got {index}"
    )
    return self._params if num_seeds == 1 else jax.tree.map(lambda x: x[index], self._params)


def load_policy(
  workdir: str,
  *,
  greedy: bool = True,
  search: bool = True,
  seed_index: int = 0,
  seed: int = 0,
  task: str = "",
) -> Policy:
  """Loads the newest valid policy of a run.

  Args:
    workdir: the run directory.
    greedy: False samples the policy.
    search: False lets an agent that searches act by its network alone.
    seed_index: which of the run's `num_seeds` policies.
    seed: of the sampling.
    task: of a generalist, the one to act in.

  Returns:
    `policy(timestep, state) -> (action, state)`, with `policy.initial_state(batch_size)`.

  Raises:
    config.InputError: if it is not a run, or has no checkpoint yet; or for search=False of an agent that
      doesn't search.
    checkpoint.CheckpointError: if all its checkpoints are bad.
  """
  if task:
    from . import generalist

    return generalist.load_policy(workdir, task, greedy=greedy, seed=seed)
  loaded = LoadedRun(workdir, search)
  return Policy(
    loaded.agent,
    loaded.params(seed_index),
    loaded.environment.spec,
    loaded.env_steps,
    greedy=greedy,
    seed=seed,
  )
