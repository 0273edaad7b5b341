"""envpool's pools as batches of host environments.

A pool's own `step` puts all that the environments tell into nested dictionaries, which takes a fifth of
the time of 64 steps of CartPole. These batches call what that calls, `_send` and `_recv`, and take from the
list of arrays those that an agent sees; `envpool_test.py` holds them to `step`.
"""

from typing import Any

import numpy as np

from podracer import host_environment, types
from podracer.environments import _spaces


class _Pool:
  """What the two kinds share.

  Attributes:
    spec: see HostEnvironment.
    num_environments: B.
  """

  def __init__(
    self, pool: Any, spec: types.EnvironmentSpec, action_space: Any, num_environments: int
  ):
    self.spec = spec
    self.num_environments = num_environments
    self._pool = pool
    self._space = action_space
    self._everyone = np.arange(num_environments, dtype=np.int32)
    # Of an environment, whether its last time step was LAST, so that its next is a reset.
    self._was_last = np.ones((num_environments,), bool)
    *ids, action = pool._action_keys
    if ids != ["env_id", "players.env_id"]:
      raise RuntimeError(f"envpool takes other actions than it did: {pool._action_keys}")
    self._action_dtype = pool.spec.action_array_spec[action].dtype
    keys = list(pool._state_keys)
    # Called with indices instead of arrays, envpool's own `_to` returns where in the list each is.
    self._observation, info = pool._to(list(range(len(keys))), True, True)
    self._env_id = info["env_id"]
    # Atari clips its rewards where asked to; the true ones are beside them.
    self._reward = info.get("reward", keys.index("reward"))
    self._done, self._truncated = keys.index("done"), keys.index("trunc")

  def render(self) -> np.ndarray:
    """See HostEnvironment."""
    return np.asarray(self._pool.render(0))[0]

  def close(self) -> None:
    """See HostEnvironment."""
    self._pool.close()

  def _send(self, action: np.ndarray, index: np.ndarray) -> None:
    action = _spaces.to_action(self.spec.action, self._space, action)
    # Copies: envpool keeps what it is given after this has returned, and takes nothing read-only.
    action = action.astype(self._action_dtype, order="C")
    self._pool._send([index, index, action])

  def _timestep(self, state: list[np.ndarray], was_last: np.ndarray) -> types.TimeStep:
    truncated = state[self._truncated]
    return host_environment.make_timestep(
      was_last,
      reward=state[self._reward],
      terminated=state[self._done] & ~truncated,
      truncated=truncated,
      observation=_spaces.to_observation(self.spec.observation, _taken(state, self._observation)),
    )


class EnvPool(_Pool):
  """A synchronous pool as a `host_environment.HostEnvironment`."""

  def reset(self) -> types.TimeStep:
    """See HostEnvironment."""
    # Each counts as LAST before, so that these are FIRST, with reward 0 and discount 1.
    self._was_last = np.ones((self.num_environments,), bool)
    self._pool._reset(self._everyone)
    return self._receive()

  def step(self, action: np.ndarray) -> types.TimeStep:
    """See HostEnvironment."""
    self._send(action, self._everyone)
    return self._receive()

  def _receive(self) -> types.TimeStep:
    state = self._pool._recv()
    timestep = self._timestep(state, self._was_last)
    self._was_last = state[self._done]  # Terminated or truncated.
    return timestep


class AsyncEnvPool(_Pool):
  """A pool as a `host_environment.AsyncHostEnvironment`.

  Attributes:
    batch_size: M, environments that are served at a time.
  """

  def __init__(
    self, pool: Any, spec: types.EnvironmentSpec, action_space: Any, num_environments: int
  ):
    super().__init__(pool, spec, action_space, num_environments)
    self.batch_size = pool.config["batch_size"]

  def start(self) -> None:
    """See AsyncHostEnvironment."""
    self._was_last[:] = True
    self._pool.async_reset()

  def receive(self) -> tuple[types.TimeStep, np.ndarray]:
    """See AsyncHostEnvironment."""
    state = self._pool._recv()
    index = state[self._env_id]
    timestep = self._timestep(state, self._was_last[index])
    self._was_last[index] = state[self._done]
    return timestep, index

  def send(self, action: np.ndarray, index: np.ndarray) -> None:
    """See AsyncHostEnvironment."""
    self._send(action, np.array(index, np.int32))


def _taken(state: list[np.ndarray], places: Any) -> Any:
  """Returns the arrays at `places`, a place or a nested dict of them."""
  if isinstance(places, dict):
    return {name: _taken(state, part) for name, part in places.items()}
  return state[places]
