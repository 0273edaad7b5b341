"""Leaves of pytrees on their way to the disk and back: paths, keys of random numbers, placement."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import config as config_lib


def by_path(item: str, tree: Any) -> dict[str, Any]:
  """Returns the leaves by path; host arrays become JAX's. Raises TypeError for other leaves."""
  leaves: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if isinstance(leaf, np.ndarray | np.generic | bool | int | float):
      leaf = jnp.asarray(leaf)
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
      raise TypeError(f"{item}/{name} must be an array, got {type(leaf).__name__}")
    config_lib.check(name not in leaves, f"{item} has two leaves called {name}")
    leaves[name] = leaf
  return leaves


def is_key(leaf: Any) -> bool:
  """Returns whether a leaf is a key of random numbers."""
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_data(leaf: Any) -> jax.Array:
  """Returns the plain array to write of a leaf. Raises TypeError for what is no array."""
  if not isinstance(leaf, jax.Array):
    raise TypeError(f"only arrays can be saved, got {type(leaf).__name__}")
  return jax.random.key_data(leaf) if is_key(leaf) else leaf


def data_target(target: Any) -> jax.ShapeDtypeStruct:
  """Returns what to read from disk for a target."""
  sharding = target.sharding
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  if is_key(target):
    struct = jax.ShapeDtypeStruct(target.shape, target.dtype)
    target = jax.eval_shape(jax.random.key_data, struct)
  return jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=sharding)


def from_data(array: jax.Array, target: Any, key_impl: str | None) -> jax.Array:
  """Gives what was read the placement and type of its target."""
  is_committed = target.sharding is not None and getattr(target, "committed", True)
  if not is_committed:
    # Orbax's arrays are committed, and would then refuse to meet a mesh of several devices.
    array = jnp.array(np.asarray(array))
  if key_impl is not None:
    array = jax.random.wrap_key_data(array, impl=key_impl)
  return jax.device_put(array, target.sharding) if is_committed else array


def snapshot(arrays: list[jax.Array]) -> list[jax.Array]:
  """Copies the arrays where Orbax would not: on CPU it writes from the very buffers."""
  return [
    jax.device_put(array, array.sharding, may_alias=False)
    if next(iter(array.sharding.device_set)).platform == "cpu"  # type: ignore[attr-defined]
    else array
    for array in arrays
  ]


def number(index: int) -> str:
  """Returns the name of a leaf on the disk."""
  return f"{index:05d}"


def numbered(leaves: list[Any]) -> dict[str, Any]:
  """Names leaves for the disk: by number, as paths may hold what a file system or Orbax dislikes."""
  return {number(i): leaf for i, leaf in enumerate(leaves) if math.prod(leaf.shape)}
