"""Digests of arrays, by which a changed bit is found."""

from typing import Any

import jax
import jax.numpy as jnp


def compute_digests(tree: Any) -> Any:
  """Returns a pytree of ints: for every array a digest of its bits that depends on their places.

  A single change is always found; of others one in 2^32 is missed. The sum wraps around, so the
  sharding does not matter.
  """
  # A program for each shape, of which an optimiser's state repeats most, compiles faster than one. Each is
  # awaited, since of a sharded array it is a collective. XLA's CPU client lets 32 programs a device wait; the
  # next blocks a thread of the pool that the collectives need, which has as many as there are cores.
  return jax.tree.map(lambda x: int(_digest(x)), tree)


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
  words = _to_words(array)
  # The place is computed axis by axis: a flattened copy would gather a sharded array.
  place = jnp.zeros(words.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(words.ndim)):
    iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place += iota * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  return jnp.sum(_mixed(words ^ _mixed(place + jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)


def _to_words(array: jax.Array) -> jax.Array:
  """Returns the bits of the elements as uint32, several to an element wider than that."""
  if jnp.issubdtype(array.dtype, jnp.complexfloating):
    return jnp.stack([_to_words(jnp.real(array)), _to_words(jnp.imag(array))], axis=-1)
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  info = jnp.finfo if jnp.issubdtype(array.dtype, jnp.floating) else jnp.iinfo
  num_bits = info(array.dtype).bits
  if num_bits > 32:
    return jax.lax.bitcast_convert_type(array, jnp.uint32)
  return jax.lax.bitcast_convert_type(array, f"uint{num_bits}").astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
  """Scrambles uint32 one to one, by the finaliser of MurmurHash3."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
