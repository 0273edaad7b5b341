"""Four virtual CPU devices for the whole run, set before JAX starts."""

import os
import tempfile

import jax

NUM_DEVICES = 4

# Programs that tests start share what they compile with each other, and leave the user's cache alone.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"podracer-tests-{os.getuid()}")
)
jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
