"""Digests: every value and its place counts. Of sharded arrays: see `checkpointer_test.py`."""

import jax.numpy as jnp
import numpy as np
import pytest

from podracer import checkpoint


@pytest.mark.parametrize(
  "dtype", ["bool", "int8", "uint16", "int32", "bfloat16", "float32", "int4"]
)
def test_digest_depends_on_every_value_and_its_place(dtype):
  x = (jnp.arange(24) % 2).reshape(2, 3, 4).astype(dtype)
  digest = checkpoint.compute_digests(x)
  assert digest == checkpoint.compute_digests(x)
  changed = {
    checkpoint.compute_digests(x.at[index].set((1 - x[index].astype(jnp.int32)).astype(dtype)))
    for index in np.ndindex(2, 3, 4)
  }
  assert len(changed) == 24
  assert digest not in changed
  assert digest != checkpoint.compute_digests(x[::-1, :, ::-1])
  assert checkpoint.compute_digests([jnp.float32(0.0)]) != checkpoint.compute_digests(
    [-jnp.float32(0.0)]
  )
