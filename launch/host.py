"""What one process does to JAX before a run: devices, compilation cache, the group it belongs to."""

import contextlib
import dataclasses
import functools
import ipaddress
import os
import pathlib
import socket
from collections.abc import Callable, Sequence
from typing import Any

from podracer import config

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
BIND_VARIABLE = "JAX_COORDINATOR_BIND_ADDRESS"
MAX_VIRTUAL_DEVICES = 8
DETECT = "auto"
# Of a block for documents: only where the way to it begins is asked.
OUTSIDE = "192.0.2.1"


@dataclasses.dataclass(frozen=True)
class GroupConfig:
  """The processes that train together, one a host."""

  coordinator: str = ""
  """address:port of process 0, where several processes train together: every one is started with the same
  flags but for its --process_id. `auto` takes all three from the TPU pod, SLURM, Open MPI or GKE it runs
  in."""
  num_processes: int = 0
  """Processes there are."""
  process_id: int = -1
  """Number of this one, from 0."""
  join_timeout_seconds: int = 300
  """Seconds that the processes wait for each other at the beginning."""
  peer_timeout_seconds: int = 60
  """Seconds without a sign of life after which a process is given up; all others then end with exit code
  75, for whoever starts them to start them again."""

  def __post_init__(self) -> None:
    named = self.num_processes != 0 or self.process_id != -1
    if self.coordinator in ("", DETECT):
      needs = (
        "need --coordinator=address:port" if not self.coordinator else "are found by themselves"
      )
      config.check(not named, f"--num_processes and --process_id {needs}")
      return
    _, _, port = self.coordinator.rpartition(":")
    config.check(
      port.isdecimal() and 0 < int(port) < 65536 and len(port) < len(self.coordinator) - 1,
      f"coordinator must be address:port or auto, got {self.coordinator}",
    )
    config.check_positive(
      num_processes=self.num_processes,
      join_timeout_seconds=self.join_timeout_seconds,
      peer_timeout_seconds=self.peer_timeout_seconds,
    )
    config.check(
      0 <= self.process_id < self.num_processes,
      f"process_id must be 0 .. {self.num_processes - 1}, got {self.process_id}",
    )


def cache_directory() -> pathlib.Path:
  """Returns where compiled programs are kept between runs: the user's cache directory."""
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(root) / "podracer" / "xla"


def start_jax(
  num_devices: int,
  preferred_devices: Callable[..., int] = lambda num_cores: 1,
  group: GroupConfig | None = None,
) -> list[Any]:
  """Imports and configures JAX for a run.

  Args:
    num_devices: devices to use, over all processes, or 0 for all accelerators, or for virtual devices
      where there are none.
    preferred_devices: cores, and with a group processes -> how many virtual devices to make then.
    group: the processes to join, which this waits for; None or one without a coordinator joins none.

  Returns:
    The devices, of all processes.

  Raises:
    config.InputError: if there are fewer devices than asked for, or not as many in every process, or the
      group doesn't come together.
  """
  import jax

  if CACHE_VARIABLE not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(cache_directory()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  cores = min(config.num_cores(), MAX_VIRTUAL_DEVICES)
  if group is None or not group.coordinator:
    virtual = num_devices or preferred_devices(cores)
  else:
    num_processes = _join(group)
    virtual = num_devices // num_processes or preferred_devices(cores, num_processes)
  # A user's own number of virtual devices is never overwritten.
  chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if not chosen and "JAX_NUM_CPU_DEVICES" not in os.environ:
    # Refused where JAX has started already, in a notebook say: its devices are taken as they are.
    with contextlib.suppress(RuntimeError):
      jax.config.update("jax_num_cpu_devices", virtual)
  return _share(jax.devices(), num_devices)


def _join(group: GroupConfig) -> int:
  """Joins the group; returns how many processes it has."""
  import jax

  # Where there is an accelerator it is not used.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  if hasattr(jax.config, "jax_enable_preemption_service"):
    # It would take SIGTERM for itself; the processes agree on when to save without it.
    jax.config.update("jax_enable_preemption_service", False)
  arguments: dict[str, Any] = {}
  if group.coordinator != DETECT:
    bind_address = os.environ.get(BIND_VARIABLE) or _bind_address(group.coordinator)
    if group.process_id == 0:
      _check_free(bind_address)
    arguments = {
      "coordinator_address": group.coordinator,
      "num_processes": group.num_processes,
      "process_id": group.process_id,
      "coordinator_bind_address": bind_address,
      # Under SLURM or Open MPI it would take one GPU for each process.
      "cluster_detection_method": "deactivate",
    }
  try:
    jax.distributed.initialize(
      initialization_timeout=group.join_timeout_seconds,
      heartbeat_timeout_seconds=group.peer_timeout_seconds,
      **arguments,
    )
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:300]
    raise config.InputError(
      f"the group at coordinator {group.coordinator} did not come together within "
      f"{group.join_timeout_seconds} s: {reason}"
    ) from error
  from jax._src import distributed  # The public process_count() would start the devices already.

  joined = distributed.global_state
  _check_number(joined, group.join_timeout_seconds)
  _connect_by(str(joined.coordinator_address))
  return int(joined.num_processes)


def _check_number(joined: Any, timeout_seconds: int) -> None:
  """Raises InputError in a process that was told of another number of processes than process 0."""
  key = "podracer/num_processes"
  if joined.process_id == 0:
    joined.client.key_value_set(key, str(joined.num_processes))
  first = int(joined.client.blocking_key_value_get(key, 1000 * timeout_seconds))
  config.check(
    joined.num_processes == first,
    f"num_processes={joined.num_processes}, but process 0 was started with {first}",
  )


def _connect_by(coordinator: str) -> None:
  """Has the collectives of CPUs listen on the address by which this host reaches the coordinator.

  By themselves they take the one that the host's name leads to: an outer one where the coordinator is on the
  loopback, or the loopback (Debian's 127.0.1.1) where it is not. JAX has no public option for it.
  """
  from jax._src.lib import _jax

  address = own_address(coordinator)
  if address is not None:
    _jax.make_gloo_tcp_collectives = functools.partial(
      _jax.make_gloo_tcp_collectives, hostname=address
    )


def own_address(coordinator: str) -> str | None:
  """Returns this host's address on the way to address:port, or None where there is no way."""
  host, _, port = coordinator.rpartition(":")
  address = _source_address(host.strip("[]"), port)
  if address is None or not ipaddress.ip_address(address).is_loopback or _is_loopback(host):
    return address
  # A name that others reach from outside, and that leads here to the loopback: so Debian's /etc/hosts.
  return _source_address(OUTSIDE, port) or address


def _source_address(host: str, port: str) -> str | None:
  try:
    kind, _, _, _, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(kind, socket.SOCK_DGRAM) as way:
      way.connect(there)  # Of a datagram socket: nothing is sent.
      address: str = way.getsockname()[0]
    return address
  except OSError:
    return None


def _is_loopback(host: str) -> bool:
  """Returns whether an address or name says by itself that it is the loopback."""
  try:
    return ipaddress.ip_address(host.strip("[]")).is_loopback
  except ValueError:
    return host == "localhost"


def _bind_address(coordinator: str) -> str:
  """Returns where the coordinator listens: on the one address by which it is reached."""
  address, port = own_address(coordinator), coordinator.rpartition(":")[2]
  if address is None:
    return coordinator
  return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _check_free(bind_address: str) -> None:
  """Raises InputError where nothing can listen there: JAX would end without a word."""
  host, _, port = bind_address.rpartition(":")
  try:
    kind, _, _, _, here = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    with socket.socket(kind, socket.SOCK_STREAM) as listener:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(here)
  except OSError as error:
    raise config.InputError(
      f"process 0 can't listen on {bind_address}: {error.strerror or error} (--coordinator is an address of "
      "the host of process 0, with a free port)"
    ) from error


def _share(devices: Sequence[Any], num_devices: int) -> list[Any]:
  """Returns the devices to use, of every process as many."""
  by_process: dict[int, list[Any]] = {}
  for device in devices:
    by_process.setdefault(device.process_index, []).append(device)
  config.check(
    num_devices <= len(devices),
    f"num_devices={num_devices}, but there are {len(devices)} {devices[0].platform} devices",
  )
  counts = {len(own) for own in by_process.values()}
  config.check(
    len(counts) == 1 or num_devices > 0,
    f"the processes have different numbers of devices: {sorted(counts)}; take num_devices",
  )
  share = num_devices // len(by_process) or len(next(iter(by_process.values())))
  config.check(
    share <= min(counts) and num_devices in (0, share * len(by_process)),
    f"num_devices={num_devices} is no equal share of each of {len(by_process)} processes, which have "
    f"{', '.join(str(len(own)) for own in by_process.values())} devices",
  )
  return [device for own in by_process.values() for device in own[:share]]
