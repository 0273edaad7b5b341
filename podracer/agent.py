"""An agent: pure functions and nothing else, so that either machine or a user's own loop can run it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from podracer import types


class LossInfo(NamedTuple):
  """What a loss says beside its value.

  Attributes:
    metrics: name -> scalar, averaged over devices and updates for the report.
    statistics: pytree of sums or means over the batch that `Agent.update_statistics` consumes, () if
      there are none. They are averaged over devices together with the gradient.
  """

  metrics: types.Metrics
  statistics: Any = ()


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
  """

  init: Callable[[types.Key], types.Params]
  initial_state: Callable[[int], types.State]
  act: Callable[..., tuple[types.ActorOutput, types.State]]
  loss: Callable[..., tuple[types.Array, LossInfo]]
  update_statistics: Callable[[types.Params, Any], types.Params] | None = None
