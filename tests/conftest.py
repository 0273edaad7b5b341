"""Four virtual CPU devices for the whole run, set before JAX starts."""

import os
import signal
import tempfile

# A shell that runs the tests in its background has Ctrl-C ignored, by them and by all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs that tests compile and that those they start compile are shared, and the user's own cache is
# left alone. JAX reads the variables when it is imported.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"podracer-tests-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax

NUM_DEVICES = 4

jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
