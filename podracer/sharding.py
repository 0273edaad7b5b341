"""Where the parts of a machine's state lie on its mesh, and the state as the items of a checkpoint.

A tree of shardings is a prefix of the state: one entry stands for all that lies below it.
"""

from collections.abc import Callable
from typing import Any

import jax

from podracer import config

P = jax.sharding.PartitionSpec


def on_mesh(mesh: jax.sharding.Mesh, specs: Any) -> Any:
  """Returns a tree of partition specs as shardings over a mesh."""
  return jax.tree.map(
    lambda spec: jax.sharding.NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
  )


def abstract(shapes: Any, shardings: Any) -> Any:
  """Returns jax.ShapeDtypeStruct with shardings, for a checkpoint to be restored onto."""

  def with_sharding(sharding: jax.sharding.Sharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  return jax.tree.map(with_sharding, shardings, shapes)


def place_empty(state: Any, shardings: Any) -> Any:
  """Returns a state whose arrays without elements are sharded as all else: JAX itself forgets it."""

  def place(sharding: jax.sharding.Sharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: x if x.size else jax.device_put(x, sharding), tree)

  return jax.tree.map(place, shardings, state)


def check_empty(name: str, num_devices: int, shapes: Callable[[], Any]) -> None:
  """Refuses arrays without elements on several devices where XLA's compiler crashes on them.

  Args:
    name: of the environment that has them.
    num_devices: that the state is shared out over.
    shapes: returns the shapes of the state.

  Raises:
    config.InputError: with jax 0.11.2 (not 0.11.1, nor 0.12).
  """
  if jax.__version__ != "0.11.2" or num_devices == 1:
    return
  config.check(
    all(x.size for x in jax.tree.leaves(shapes())),
    f"environment {name} has an array without elements in its state, on which jax 0.11.2 crashes with "
    f"{num_devices} devices; take one (on CPU: JAX_NUM_CPU_DEVICES=1), or another version of jax",
  )


def to_checkpoint(state: Any) -> dict[str, Any]:
  """Returns the items of a checkpoint; `params` by themselves, for whoever only acts.

  Args:
    state: a NamedTuple with a `learner.LearnerState` as its `learner`.
  """
  return {
    "params": state.learner.params,
    "state": state._replace(learner=state.learner._replace(params=None)),
  }


def from_checkpoint(items: dict[str, Any]) -> Any:
  """Returns the state of which `to_checkpoint` made the items."""
  state = items["state"]
  return state._replace(learner=state.learner._replace(params=items["params"]))
