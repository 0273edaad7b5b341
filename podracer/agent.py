"""An agent: pure functions and nothing else, so that either machine or a user's own loop can run it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from podracer import config, types


class LossInfo(NamedTuple):
  """What a loss says beside its value.

  Attributes:
    metrics: name -> scalar, averaged over devices and updates for the report.
    statistics: pytree of sums or means over the batch that `Agent.update_statistics` consumes, () if
      there are none. They are averaged over devices together with the gradient.
    priorities: `[B]` errors of the unrolls, at least 0, by which a prioritised replay draws them, or
      None.
  """

  metrics: types.Metrics
  statistics: Any = ()
  priorities: types.Array | None = None


class Agent(NamedTuple):
  """The functions that make an agent. They hold no arrays, devices, threads or collectives.

  Attributes:
    init: key -> params.
    initial_state: batch_size -> recurrent state with leaves `[B, ...]`; () for a feed-forward agent.
    act: (params, key, timestep `[B, ...]`, state, explore) -> (ActorOutput `[B, ...]`, state).
      `explore` is a Python bool, static under jit: True samples the behaviour policy, False acts
      greedily. The agent itself resets `state` where the time step is FIRST.
    loss: (params, target_params, key, trajectory `[T+1, B, ...]`) -> (scalar, LossInfo). It must be a
      mean with constant denominators (T * B), so that the mean over devices of local losses is the
      loss of the whole batch.
    update_statistics: (params, statistics) -> params, applied after the gradient step (PopArt), or
      None.
    act_by_prior: of an agent that searches, `act` without the search, by the network's policy alone;
      else None.
    reanalyse: (params, key, trajectory `[T+1, B, ...]`) -> trajectory whose search results are those of
      new searches; None of an agent that doesn't search.
    frozen: names of the entries of `params`, then a dict, that no gradient reaches: the learner keeps no
      optimiser state and no target of them. `update_statistics` may move them.
  """

  init: Callable[[types.Key], types.Params]
  initial_state: Callable[[int], types.State]
  act: Callable[..., tuple[types.ActorOutput, types.State]]
  loss: Callable[..., tuple[types.Array, LossInfo]]
  update_statistics: Callable[[types.Params, Any], types.Params] | None = None
  act_by_prior: Callable[..., tuple[types.ActorOutput, types.State]] | None = None
  reanalyse: Callable[[types.Params, types.Key, types.Trajectory], types.Trajectory] | None = None
  frozen: tuple[str, ...] = ()


class Teacher(NamedTuple):
  """A trained agent from which a student learns.

  Attributes:
    agent: that teaches; its `act` says what it would do.
    params: its parameters without what `agent.frozen` names. jax.ShapeDtypeStruct stand for arrays that
      will come from the student's own checkpoint.
    spec: of the environment it was trained in.
    task: number of the task that it teaches, 0 where the student's environment has one; None for all
      tasks of the student's environment, in which it was trained as a whole.
    action_distribution: over continuous actions, see `distributions.make_distribution`.
  """

  agent: Agent
  params: types.Params
  spec: types.EnvironmentSpec
  task: int | None = 0
  action_distribution: str = "gaussian"


def split_frozen(agent: Agent, params: types.Params) -> tuple[types.Params, dict[str, Any]]:
  """Returns what gradients reach, and the entries they don't; `merge_frozen` puts them together."""
  if not agent.frozen:
    return params, {}
  frozen = {name: params[name] for name in agent.frozen}
  return {name: value for name, value in params.items() if name not in frozen}, frozen


def merge_frozen(params: types.Params, frozen: dict[str, Any]) -> types.Params:
  """Returns the parameters that `split_frozen` took apart."""
  return {**params, **frozen} if frozen else params


def without_search(agent: Agent) -> Agent:
  """Returns an agent that acts by its network alone.

  Raises:
    InputError: for an agent that doesn't search.
  """
  config.check(agent.act_by_prior is not None, "search=False is for an agent that searches")
  assert agent.act_by_prior is not None
  return agent._replace(act=agent.act_by_prior)


def output_shapes(
  agent: Agent, spec: types.EnvironmentSpec, batch_size: int
) -> tuple[types.ActorOutput, types.State]:
  """Returns what `act` returns for `batch_size` environments, as jax.ShapeDtypeStruct."""

  def act(key: types.Key) -> tuple[types.ActorOutput, types.State]:
    timestep = types.zero_timestep(spec, batch_size)
    return agent.act(agent.init(key), key, timestep, agent.initial_state(batch_size), True)

  return jax.eval_shape(act, jax.random.key(0))


def trajectory_shapes(
  agent: Agent, spec: types.EnvironmentSpec, length: int, batch_size: int
) -> types.Trajectory:
  """Returns the unrolls of T steps of `batch_size` environments, as jax.ShapeDtypeStruct."""
  output, state = output_shapes(agent, spec, batch_size)

  def over_time(num: int, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), tree)

  timestep = jax.eval_shape(lambda: types.zero_timestep(spec, batch_size))
  return types.Trajectory(over_time(length + 1, timestep), over_time(length, output), state)
