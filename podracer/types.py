"""The data that every part of podracer exchanges, and its one convention of time.

A transition goes from time t-1 to time t. `reward` and `discount` of the time step at t belong to the
transition that *arrived* at t. `discount` is 0 only where the episode truly ended on arrival; a
truncated episode keeps 1, so a learner bootstraps from the last observation, which is always in the
data: environments reset on the step *after* the last one (NEXT_STEP), and that step, whose action is
ignored, returns FIRST with reward 0 and discount 1.

The transition that leaves a LAST time step is therefore no experience. `is_valid_transition` says so,
losses mask it, and counts of environment steps leave it out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Key = jax.Array
Params = Any
State = Any
Observation = Any
Metrics = dict[str, Array]

FIRST = 0
MID = 1
LAST = 2

ACTION_MASK = "action_mask"
"""Key of a dict observation under which a `[A]` bool array says which actions are legal."""


class TimeStep(NamedTuple):
  """What an environment says on arriving at a time t; dm_env's meaning, arrays for fields.

  Attributes:
    step_type: `[...]` int8, FIRST, MID or LAST.
    reward: `[...]` float32, of the transition that arrived at t; 0 where FIRST.
    discount: `[...]` float32, 0 where the episode ended (not: was truncated) on arrival, else 1.
    observation: a pytree of `[..., *shape]` arrays.
  """

  step_type: Array
  reward: Array
  discount: Array
  observation: Observation

  def is_first(self) -> Array:
    """True where an episode begins; the recurrent state is reset there."""
    return self.step_type == FIRST

  def is_last(self) -> Array:
    """True where an episode has ended or was truncated; the next action is ignored."""
    return self.step_type == LAST


class ActorOutput(NamedTuple):
  """What an agent says on acting at a time t: what the machine, the learner and a recording need.

  Attributes:
    action: `[...]` int32, or `[..., k]` float32.
    logits: `[..., A]` of the behaviour policy mu; for a Gaussian `[..., 2k]`, the means and then the
      logarithms of the scales.
    log_prob: `[...]` float32, log mu(action).
    value: `[...]` float32, the estimate of the value of the state acted in.
    search_visits: `[..., A]` visit distribution of a search agent, else None.
    search_value: `[...]` root value of a search agent, else None.
    search_depth: `[...]` float32 depth that the search tree reached, else None.
    teacher_logits: `[..., A]` of the policy of a student's teacher, else None; with K teachers of one
      task, all three are `[..., K, *]`.
    teacher_value: `[...]` what the teacher takes the state to be worth, else None.
    teacher_action: `[...]` int32 or `[..., k]` float32, the teacher's best action, else None.
  """

  action: Array
  logits: Array
  log_prob: Array
  value: Array
  search_visits: Array | None = None
  search_value: Array | None = None
  search_depth: Array | None = None
  teacher_logits: Array | None = None
  teacher_value: Array | None = None
  teacher_action: Array | None = None


class Trajectory(NamedTuple):
  """An unroll of T transitions of B environments; consecutive unrolls share one time step.

  Attributes:
    timesteps: `[T+1, B, ...]`.
    actor_outputs: `[T, B, ...]`; entry t was computed from time step t.
    initial_state: `[B, ...]` recurrent state with which time step 0 was acted on.
    importance_weights: `[B]` by which the losses of what a replay drew are multiplied, or None.
  """

  timesteps: TimeStep
  actor_outputs: ActorOutput
  initial_state: State
  importance_weights: Array | None = None


class ArraySpec(NamedTuple):
  """Shape, dtype and, where known, bounds of one array without its batch axes."""

  shape: tuple[int, ...]
  dtype: Any
  minimum: float | None = None
  maximum: float | None = None


class DiscreteActions(NamedTuple):
  """Actions 0 .. num_actions-1."""

  num_actions: int


class ContinuousActions(NamedTuple):
  """Actions in a box of `size` dimensions; an action outside is clipped by the environment."""

  minimum: tuple[float, ...]
  maximum: tuple[float, ...]

  @property
  def size(self) -> int:
    """k, the number of dimensions."""
    return len(self.minimum)


ActionSpec = DiscreteActions | ContinuousActions


class EnvironmentSpec(NamedTuple):
  """What an agent must know of an environment to be built.

  Attributes:
    name: the name the user gave, for messages and records.
    observation: pytree of ArraySpec (a dict, or one ArraySpec).
    action: DiscreteActions or ContinuousActions.
    num_tasks: more than 1 for a multi-task environment, whose observation is then a dict with an
      int32 scalar `task_id`.
    num_players: 2 for a zero-sum game of two players who move in turn, both of them the agent: the
      observation is that of the player to move, the reward that of the player who moved. The value of
      a state is then the opponent's, with its sign turned.
    tasks: of a multi-task environment that `podracer.multitask` made the specs of its tasks, in order, of
      which a batch has equal shares, one after the other; () else.
  """

  name: str
  observation: Any
  action: ActionSpec
  num_tasks: int = 1
  num_players: int = 1
  tasks: tuple["EnvironmentSpec", ...] = ()


def is_valid_transition(step_type_tm1: Array) -> Array:
  """Returns True where the transition leaving `step_type_tm1` is experience, False at a reset."""
  return step_type_tm1 != LAST


def action_mask(observation: Observation) -> Array | None:
  """Returns the `[..., A]` bool mask of legal actions, or None where all actions always are."""
  if isinstance(observation, dict):
    return observation.get(ACTION_MASK)
  return None


def is_array_spec(value: Any) -> bool:
  """Returns True for an ArraySpec; the `is_leaf` of a map over a tree of them."""
  return isinstance(value, ArraySpec)


def map_batch(function: Callable[..., Any], *trajectories: Trajectory) -> Trajectory:
  """Maps over the leaves of trajectories, telling where their environments are.

  Args:
    function: (axis, *leaves) -> leaf; `axis` is that of the environments, 1 of what is time-major and 0
      of the initial state and the weights.
    *trajectories: of the same structure.

  Returns:
    A trajectory of what `function` returned.
  """

  def over(axis: int, parts: Sequence[Any]) -> Any:
    return jax.tree.map(functools.partial(function, axis), *parts)

  timesteps, outputs, states, weights = zip(*trajectories, strict=True)
  return Trajectory(over(1, timesteps), over(1, outputs), over(0, states), over(0, weights))


def first_environments(trajectory: Trajectory, size: int) -> Any:
  """Returns what is to be recorded of an unroll: that of its first environments, or () of none."""
  if not size:
    return ()
  bare = trajectory._replace(initial_state=(), importance_weights=None)
  return map_batch(lambda axis, x: jax.lax.slice_in_dim(x, 0, size, axis=axis), bare)


def zeros_like(tree: Any, batch_shape: tuple[int, ...] = ()) -> Any:
  """Returns zeros, `[*batch_shape, *shape]`, for a pytree of ArraySpec, jax.ShapeDtypeStruct or arrays."""
  return jax.tree.map(
    lambda leaf: jnp.zeros((*batch_shape, *leaf.shape), leaf.dtype), tree, is_leaf=is_array_spec
  )


def zero_timestep(spec: EnvironmentSpec, batch_size: int) -> TimeStep:
  """Returns a FIRST time step `[B, ...]` whose observation is zeros."""
  return TimeStep(
    step_type=jnp.zeros((batch_size,), jnp.int8),
    reward=jnp.zeros((batch_size,)),
    discount=jnp.ones((batch_size,)),
    observation=zeros_like(spec.observation, (batch_size,)),
  )


def to_numpy(tree: Any) -> Any:
  """Returns a pytree with every array copied to host memory."""
  return jax.tree.map(np.asarray, tree)
