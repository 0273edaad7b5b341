"""Evaluation: a stated number of whole episodes, with no bias towards short ones.

Counting the first N episodes that end among many environments favours short ones. Here every
environment has a quota and plays exactly so many episodes, each from its beginning to its end; an
environment that is done waits for the others. Every task of several plays equally many.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer import agent as agent_lib
from podracer import environment as environment_lib
from podracer import episodes, host_environment, multitask, types

STEPS_PER_CALL = 1000
MAX_HOST_ENVIRONMENTS = 32
"""Environments of the host that are played side by side; they cost processes and memory."""


class EvaluationResult(NamedTuple):
  """Returns and lengths of the episodes played, NumPy `[num_episodes]` each.

  Attributes:
    returns: undiscounted sums of un-clipped rewards.
    lengths: environment steps.
    mode: `greedy` or `sample`.
    num_cut: episodes that the evaluation itself ended, at `max_episode_steps`.
    task_names: of a multi-task environment the names of its tasks, whose episodes, equally many, lie one
      task after the other; () else.
  """

  returns: np.ndarray
  lengths: np.ndarray
  mode: str
  num_cut: int = 0
  task_names: tuple[str, ...] = ()

  def summary(self) -> dict[str, Any]:
    """Returns what `evaluation.json` holds, but for `env_steps`."""
    summary = {"episodes": len(self.returns), "mode": self.mode, **self._statistics()}
    if self.task_names:
      num_tasks = len(self.task_names)
      shares = zip(
        self.task_names,
        np.split(self.returns, num_tasks),
        np.split(self.lengths, num_tasks),
        strict=True,
      )
      summary["tasks"] = {
        name: {
          **self._replace(returns=returns, lengths=lengths)._statistics(),
          "episodes": len(returns),
        }
        for name, returns, lengths in shares
      }
    return summary

  def _statistics(self) -> dict[str, float]:
    return {
      "return_mean": float(np.mean(self.returns)),
      "return_std": float(np.std(self.returns)),
      "return_min": float(np.min(self.returns)),
      "return_max": float(np.max(self.returns)),
      "length_mean": float(np.mean(self.lengths)),
    }


def together(results: Sequence[EvaluationResult]) -> EvaluationResult:
  """Returns the evaluations of several agents, in the same environment, as one."""
  num_tasks = max(1, len(results[0].task_names))

  def join(*arrays: np.ndarray) -> np.ndarray:
    # [E] each -> [N, E / N], so that the episodes of a task stay together.
    return np.concatenate([x.reshape(num_tasks, -1) for x in arrays], axis=1).reshape(-1)

  return results[0]._replace(
    returns=join(*(result.returns for result in results)),
    lengths=join(*(result.lengths for result in results)),
    num_cut=sum(result.num_cut for result in results),
  )


class _Slots(NamedTuple):
  """State of the environments that play, leaves `[B, ...]`, but for the key and `[B, Q]` results."""

  key: types.Key
  environment: environment_lib.BatchState
  timestep: types.TimeStep
  agent: types.State
  current_return: types.Array
  current_length: types.Array
  num_done: types.Array
  returns: types.Array
  lengths: types.Array
  is_cut: types.Array


Evaluator = Callable[..., EvaluationResult | None]


def make_evaluator(
  agent: agent_lib.Agent,
  environment: environment_lib.Environment | host_environment.HostFactory,
  *,
  num_episodes: int,
  greedy: bool = True,
  max_environments: int = 128,
  max_episode_steps: int = 108_000,
) -> Evaluator:
  """Builds the evaluation of an agent in environments of its own.

  Args:
    agent: the agent.
    environment: the environment, or what it names for its evaluation; one of the host is made anew for
      each evaluation.
    num_episodes: whole episodes to play; of N tasks the next multiple of N.
    greedy: False samples the policy.
    max_environments: environments side by side, at most.
    max_episode_steps: an episode that is longer is cut there, and counted in `num_cut`; for
      environments that never end by themselves. One of the host can't be reset by force: the next
      episode then begins where the one that was cut is.

  Returns:
    (params, key, should_stop) -> EvaluationResult, or None where `should_stop()` became True, which is
    asked about every thousand steps. It compiles when first called.
  """
  environment = environment.evaluation or environment
  task_names = multitask.task_names(environment.spec)
  if isinstance(environment, host_environment.HostFactory):
    quota = _quota(num_episodes, min(max_environments, MAX_HOST_ENVIRONMENTS), len(task_names))
    return _make_host_evaluator(agent, environment, quota, greedy, max_episode_steps)
  quota = _quota(num_episodes, max_environments, len(task_names))
  batch_size = len(quota)
  rows = np.arange(batch_size)

  def start(key: types.Key) -> _Slots:
    key, reset_key = jax.random.split(key)
    state, timestep = environment_lib.reset(environment, jax.random.split(reset_key, batch_size))
    results = (batch_size, int(quota.max()))
    return _Slots(
      key=key,
      environment=state,
      timestep=timestep,
      agent=agent.initial_state(batch_size),
      current_return=jnp.zeros((batch_size,), jnp.float32),
      current_length=jnp.zeros((batch_size,), jnp.int32),
      num_done=jnp.zeros((batch_size,), jnp.int32),
      returns=jnp.zeros(results, jnp.float32),
      lengths=jnp.zeros(results, jnp.int32),
      is_cut=jnp.zeros(results, bool),
    )

  def step(params: types.Params, slots: _Slots) -> _Slots:
    key, act_key = jax.random.split(slots.key)
    output, agent_state = agent.act(params, act_key, slots.timestep, slots.agent, not greedy)
    state, timestep = environment_lib.step(environment, slots.environment, output.action)
    episode_return, episode_length = episodes.advance(
      slots.current_return, slots.current_length, timestep
    )
    is_cut = (episode_length >= max_episode_steps) & ~timestep.is_last()
    # A cut episode is treated as a truncated one: the next step resets.
    state = state._replace(needs_reset=state.needs_reset | is_cut)
    timestep = timestep._replace(
      step_type=jnp.where(is_cut, types.LAST, timestep.step_type).astype(timestep.step_type.dtype)
    )
    counts = timestep.is_last() & (slots.num_done < quota)
    # An index past the end drops the write of an environment whose episode goes on or is not wanted.
    column = jnp.where(counts, slots.num_done, slots.returns.shape[1])
    return _Slots(
      key=key,
      environment=state,
      timestep=timestep,
      agent=agent_state,
      current_return=episode_return,
      current_length=episode_length,
      num_done=slots.num_done + counts.astype(jnp.int32),
      returns=slots.returns.at[rows, column].set(episode_return, mode="drop"),
      lengths=slots.lengths.at[rows, column].set(episode_length, mode="drop"),
      is_cut=slots.is_cut.at[rows, column].set(is_cut, mode="drop"),
    )

  def play(params: types.Params, slots: _Slots) -> _Slots:
    def goes_on(carry: tuple[types.Array, _Slots]) -> types.Array:
      return (carry[0] < STEPS_PER_CALL) & jnp.any(carry[1].num_done < quota)

    def body(carry: tuple[types.Array, _Slots]) -> tuple[types.Array, _Slots]:
      return carry[0] + 1, step(params, carry[1])

    return jax.lax.while_loop(goes_on, body, (jnp.zeros((), jnp.int32), slots))[1]

  start_jit, play_jit = jax.jit(start), jax.jit(play, donate_argnums=1)

  def evaluate(
    params: types.Params, key: types.Key, should_stop: Callable[[], bool] = lambda: False
  ) -> EvaluationResult | None:
    slots = start_jit(key)
    while np.any(np.asarray(slots.num_done) < quota):
      if should_stop():
        return None
      slots = play_jit(params, slots)
    played = np.arange(slots.returns.shape[1]) < quota[:, None]
    return EvaluationResult(
      returns=np.asarray(slots.returns)[played],
      lengths=np.asarray(slots.lengths)[played],
      mode="greedy" if greedy else "sample",
      num_cut=int(np.sum(np.asarray(slots.is_cut)[played])),
      task_names=task_names,
    )

  return evaluate


def _quota(num_episodes: int, max_environments: int, num_tasks: int) -> np.ndarray:
  """Returns the episodes of each environment, `[B]`, the same of every task."""
  num_tasks = max(1, num_tasks)
  per_task = -(-num_episodes // num_tasks)
  size = min(per_task, max(1, max_environments // num_tasks))
  quota = np.full((size,), per_task // size, np.int32)
  quota[: per_task % size] += 1
  return np.tile(quota, num_tasks)


def _make_host_evaluator(
  agent: agent_lib.Agent,
  factory: host_environment.HostFactory,
  quota: np.ndarray,
  greedy: bool,
  max_episode_steps: int,
) -> Evaluator:
  """Builds the evaluation in environments of the host; `quota` is `[B]`, episodes of each."""
  batch_size = len(quota)

  def act(params: Any, key: Any, timestep: Any, state: Any) -> tuple[Any, Any, Any]:
    key, act_key = jax.random.split(key)
    output, state = agent.act(params, act_key, timestep, state, not greedy)
    return output.action, state, key

  act_jit = jax.jit(act)

  def evaluate(
    params: types.Params, key: types.Key, should_stop: Callable[[], bool] = lambda: False
  ) -> EvaluationResult | None:
    key, seed_key = jax.random.split(key)
    seed = int(jax.random.randint(seed_key, (), 0, 2**31 - 1))
    host = factory.make(
      host_environment.make_seeds(seed, batch_size),
      host_environment.HostOptions(whole_episodes=True),
    )
    try:
      episodes_played = _play_host(
        functools.partial(act_jit, params),
        host,
        key,
        agent.initial_state(batch_size),
        quota,
        max_episode_steps,
        should_stop,
      )
    finally:
      host.close()
    if episodes_played is None:
      return None
    returns, lengths, cut = zip(*episodes_played, strict=True)
    return EvaluationResult(
      returns=np.asarray(returns, np.float32),
      lengths=np.asarray(lengths, np.int32),
      mode="greedy" if greedy else "sample",
      num_cut=sum(cut),
      task_names=multitask.task_names(factory.spec),
    )

  return evaluate


def _play_host(
  act: Callable[..., Any],
  host: host_environment.HostEnvironment,
  key: types.Key,
  state: types.State,
  quota: np.ndarray,
  max_episode_steps: int,
  should_stop: Callable[[], bool],
) -> list[tuple[float, int, bool]] | None:
  """Plays the episodes of each environment's quota; returns (return, length, was cut) of each."""
  batch_size = len(quota)
  timestep = host.reset()
  current_return, current_length = np.zeros((batch_size,)), np.zeros((batch_size,), np.int64)
  played: list[list[tuple[float, int, bool]]] = [[] for _ in quota]
  while any(len(done) < wanted for done, wanted in zip(played, quota, strict=True)):
    if should_stop():
      return None
    action, state, key = act(key, timestep, state)
    action = np.asarray(action)
    host_environment.check_action(host.spec, action, batch_size)
    timestep = host.step(action)
    host_environment.check_timestep(host.spec, timestep, batch_size)
    is_first = timestep.step_type == types.FIRST
    current_return = np.where(is_first, 0.0, current_return + timestep.reward)
    current_length = np.where(is_first, 0, current_length + 1)
    is_last = np.asarray(timestep.step_type == types.LAST)
    is_cut = (current_length >= max_episode_steps) & ~is_last
    for i in np.flatnonzero(is_last | is_cut):
      if len(played[i]) < quota[i]:
        played[i].append((current_return[i], current_length[i], bool(is_cut[i])))
    current_return[is_cut], current_length[is_cut] = 0.0, 0
  return [episode for done in played for episode in done]
