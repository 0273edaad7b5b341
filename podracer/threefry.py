"""The random numbers of `jax.random`, for programs that draw a few at every step.

On a CPU `jax.random` runs the rounds of Threefry as a loop: eleven operations and a `while`, a third of
the time of acting for 64 environments with a small network. Written out they become part of the kernel
that uses the numbers. The numbers are the same.

Salmon et al. (2011), *Parallel Random Numbers: As Easy as 1, 2, 3*.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from podracer import types

_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_NUM_GROUPS = 5  # Of four rounds each.


def uniform(
  key: types.Key, shape: Sequence[int], minval: float = 0.0, maxval: float = 1.0
) -> types.Array:
  """Is `jax.random.uniform`: float32 of `shape`, in [minval, maxval)."""
  if not _is_threefry(key) or math.prod(shape) >= 2**32:
    return jax.random.uniform(key, shape, minval=minval, maxval=maxval)
  low, high = np.float32(minval), np.float32(maxval)
  # The upper 23 bits are the mantissa of a number in [1, 2).
  mantissa = (_bits(key, shape) >> np.uint32(9)) | np.uint32(0x3F800000)
  fraction = lax.bitcast_convert_type(mantissa, jnp.float32) - 1.0
  return jnp.maximum(low, fraction * (high - low) + low)


def normal(key: types.Key, shape: Sequence[int]) -> types.Array:
  """Is `jax.random.normal`: float32 of `shape`."""
  above_minus_one = np.nextafter(np.float32(-1.0), np.float32(0.0))
  return math.sqrt(2.0) * lax.erf_inv(uniform(key, shape, above_minus_one, 1.0))


def _is_threefry(key: types.Key) -> bool:
  is_typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
  # Without it the same bits are laid out in another order.
  is_partitionable = bool(getattr(jax.config, "jax_threefry_partitionable", True))
  return is_typed and is_partitionable and str(jax.random.key_impl(key)) == "threefry2x32"


def _bits(key: types.Key, shape: Sequence[int]) -> types.Array:
  """Returns uint32 of `shape`: the hash of each number's flat index, fewer than 2^32."""
  index = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
  first, second = _hash(jax.random.key_data(key), jnp.zeros_like(index), index)
  return first ^ second


def _hash(
  key: types.Array, first: types.Array, second: types.Array
) -> tuple[types.Array, types.Array]:
  """Threefry-2x32 with 20 rounds, of a key `[2]` and words of any shape."""
  keys = key[0], key[1], key[0] ^ key[1] ^ _PARITY
  first, second = first + keys[0], second + keys[1]
  for group in range(_NUM_GROUPS):
    for rotation in _ROTATIONS[group % 2]:
      first = first + second
      second = first ^ _rotated(second, rotation)
    first = first + keys[(group + 1) % 3]
    second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
  return first, second


def _rotated(word: types.Array, bits: int) -> types.Array:
  return (word << np.uint32(bits)) | (word >> np.uint32(32 - bits))
