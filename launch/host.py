"""What one host does to JAX before a run: devices, compilation cache."""

import contextlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

from podracer import config

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MAX_VIRTUAL_DEVICES = 8


def cache_directory() -> pathlib.Path:
  """Returns where compiled programs are kept between runs: the user's cache directory."""
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(root) / "podracer" / "xla"


def start_jax(
  num_devices: int, preferred_devices: Callable[[int], int] = lambda num_cores: 1
) -> list[Any]:
  """Imports and configures JAX for a run.

  Args:
    num_devices: devices to use, or 0 for all accelerators, or for virtual devices where there are
      none.
    preferred_devices: cores -> how many virtual devices to make then.

  Returns:
    The devices.

  Raises:
    config.InputError: if there are fewer devices than asked for.
  """
  import jax

  if CACHE_VARIABLE not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(cache_directory()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  virtual = num_devices or preferred_devices(min(config.num_cores(), MAX_VIRTUAL_DEVICES))
  # A user's own number of virtual devices is never overwritten.
  chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if not chosen and "JAX_NUM_CPU_DEVICES" not in os.environ:
    # Refused where JAX has started already, in a notebook say: its devices are taken as they are.
    with contextlib.suppress(RuntimeError):
      jax.config.update("jax_num_cpu_devices", virtual)
  devices = jax.devices()
  config.check(
    num_devices <= len(devices),
    f"num_devices={num_devices}, but there are {len(devices)} {devices[0].platform} devices",
  )
  return devices[: num_devices or len(devices)]
