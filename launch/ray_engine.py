"""`podracer launch ray`: Ray starts the processes of several hosts, watches them and starts them again.

Ray Train's `JaxTrainer` holds one worker a host and makes all anew where one is lost. A worker runs `podracer
train` as its child, so the devices are the child's: what JaxTrainer itself would do to JAX is off. Nothing is
reported to Ray, and nothing restored by it: the same command goes on from its own newest checkpoint.
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from podracer import config, report

from . import command_line, interrupts, train

POLL_SECONDS = 0.5
MARGIN_SECONDS = 10.0
# The child dies with the worker, however that ends.
CHILD = (
  "import sys; from podracer.launch import guard, main; "
  "guard._die_with(int(sys.argv[1])); main.main(sys.argv[2:])"
)


@dataclasses.dataclass(frozen=True)
class RayConfig:
  """Trains on the hosts of a Ray cluster; takes the options of `podracer train`, too."""

  num_hosts: int = 0
  """Hosts, with one process on each."""
  address: str = "auto"
  """Of the cluster: host:port; `auto` takes the one this machine is in; `local` starts one here."""
  cpus_per_host: float = 1
  """CPU cores that each process takes of Ray's count."""
  gpus_per_host: int = 0
  """GPUs of each process."""
  tpu_topology: str = ""
  """Chips of the TPU slice: 4x4."""
  tpu_accelerator: str = ""
  """Kind of TPU, as Ray calls it: TPU-V6E."""
  resources_per_host: str = ""
  """In place of the numbers before, JSON as Ray takes it: '{"CPU": 8, "GPU": 8, "special": 1}'."""
  max_failures: int = 10
  """Times that all processes are started again after one was lost; -1 for no end."""
  lead_seconds: int = 120
  """Seconds that a process told to end has for its checkpoint."""

  def __post_init__(self) -> None:
    config.check_positive(num_hosts=self.num_hosts, lead_seconds=self.lead_seconds)
    config.check_at_least(0, cpus_per_host=self.cpus_per_host, gpus_per_host=self.gpus_per_host)
    config.check_at_least(-1, max_failures=self.max_failures)
    config.check(
      bool(self.tpu_accelerator) == bool(self.tpu_topology),
      "tpu_accelerator and tpu_topology go together",
    )
    self.resources()

  def resources(self) -> dict[str, float]:
    """Returns what each process takes, of a TPU slice but for its chips."""
    if not self.resources_per_host:
      named = {"CPU": self.cpus_per_host, "GPU": self.gpus_per_host}
      return {name: number for name, number in named.items() if number}
    try:
      resources = json.loads(self.resources_per_host)
    except ValueError:
      resources = None
    config.check(
      isinstance(resources, dict)
      and all(isinstance(x, int | float) and x >= 0 for x in resources.values()),
      f'resources_per_host must be JSON like {{"CPU": 8}}, got {self.resources_per_host}',
    )
    return dict(resources)


def run(wanted: RayConfig, training: Sequence[str]) -> None:
  """Trains until it is done; exits with 0, or as `podracer train` does after a signal."""
  # Before Ray is imported.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  ray = _import_ray()
  try:
    ray.init(address=wanted.address, log_to_driver=True)
  except (ConnectionError, ValueError) as error:
    reason = " ".join(str(error).split())[:300]
    raise config.InputError(
      f"no Ray cluster at {wanted.address}: {reason} (--address=local starts one here)"
    ) from error
  with interrupts.Interrupts() as signals:
    try:
      fit(training, wanted, lambda: signals.requested)
    finally:
      ray.shutdown()
  sys.exit(signals.exit_code)


def fit(
  training: Sequence[str],
  wanted: RayConfig,
  should_stop: Callable[[], bool] = lambda: False,
) -> None:
  """Trains on the hosts of the cluster that Ray is connected to; returns when it is done.

  Args:
    training: flags of `podracer train`; the run directory is seen by all hosts under one path.
    wanted: the hosts; its `address` is not used.
    should_stop: asked again and again; True has all processes save and end, and then this returns.

  Raises:
    config.InputError: for wrong flags.
    report.RunError: if a process says that it can't go on, or was lost more often than `max_failures`.
  """
  ray = _import_ray()
  from ray.train.v2.api import config as ray_config
  from ray.train.v2.api import exceptions
  from ray.train.v2.jax import JaxConfig, JaxTrainer

  _say_what_is_missing(ray, wanted)
  workdir = train.parse([*training, *_group("localhost:1", wanted.num_hosts, 0)]).workdir

  class Trainer(JaxTrainer):
    """One without what asks a dashboard each second, and says each second where there is none."""

    def _create_default_callbacks(self) -> list[Any]:
      callbacks = super()._create_default_callbacks()
      return [x for x in callbacks if type(x).__name__ != "PlacementGroupCleanerCallback"]

  stopper = ray.remote(num_cpus=0, label_selector=_here(ray))(_Stopper).remote()
  with tempfile.TemporaryDirectory() as unused:
    trainer = Trainer(
      _run_host,
      train_loop_config={
        # The last of a flag counts.
        "training": [*training, f"--workdir={pathlib.Path(workdir).absolute()}"],
        "directory": os.getcwd(),
        "lead_seconds": wanted.lead_seconds,
        "stopper": stopper,
      },
      jax_config=JaxConfig(use_tpu=False, use_gpu=False),
      scaling_config=_scaling(wanted),
      run_config=ray_config.RunConfig(
        storage_path=unused,
        logging_config=ray_config.LoggingConfig(log_level="ERROR"),
        failure_config=ray_config.FailureConfig(max_failures=wanted.max_failures),
      ),
    )
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
      # Not in the main thread, whose Ctrl-C JaxTrainer would take for itself.
      training_ends = executor.submit(trainer.fit)
      try:
        deadline = math.inf
        while not concurrent.futures.wait([training_ends], POLL_SECONDS).done:
          if deadline == math.inf and should_stop():
            stopper.stop.remote(0)
            deadline = time.monotonic() + wanted.lead_seconds + MARGIN_SECONDS
          if time.monotonic() > deadline:
            # Ray still waits for hosts: nothing was there to be told.
            ray.shutdown()
            return
      except BaseException:
        stopper.stop.remote(0)
        raise
    error = training_ends.exception()
  if isinstance(error, exceptions.WorkerGroupError):
    hosts = sorted(error.worker_failures.items())
    reasons = "; ".join(f"host {rank}: {_last_line(failure)}" for rank, failure in hosts)
    raise report.RunError(f"given up after {wanted.max_failures} restarts: {reasons}") from error
  if error is not None:
    raise error
  code = ray.get(stopper.code.remote())
  config.check(
    code != command_line.USAGE_ERROR, "a host can't train with these flags: it says above why"
  )
  if code == command_line.RUN_ERROR:
    raise report.RunError("a host can't go on: it says above why")


def _say_what_is_missing(ray: Any, wanted: RayConfig) -> None:
  """Says where the cluster is too small as it is: Ray waits until it has grown."""
  there = ray.cluster_resources()
  for name, number in wanted.resources().items():
    if wanted.num_hosts * number > there.get(name, 0):
      print(
        f"podracer: {wanted.num_hosts} hosts with {number:g} {name} each, but the cluster has "
        f"{there.get(name, 0):g}: training waits until it has grown",
        file=sys.stderr,
      )


def _scaling(wanted: RayConfig) -> Any:
  """Returns the hosts as Ray Train takes them."""
  from ray.train.v2.api import config as ray_config

  resources = wanted.resources()
  try:
    return ray_config.ScalingConfig(
      num_workers=wanted.num_hosts,
      use_gpu=resources.get("GPU", 0) > 0,
      use_tpu=bool(wanted.tpu_topology),
      topology=wanted.tpu_topology or None,
      accelerator_type=wanted.tpu_accelerator or None,
      # Of a slice Ray knows what a host has.
      resources_per_worker=None
      if wanted.tpu_topology and not wanted.resources_per_host
      else resources,
      placement_strategy="SPREAD",
    )
  except ValueError as error:
    raise config.InputError(" ".join(str(error).split())) from error


def _run_host(values: dict[str, Any]) -> None:
  """Runs `podracer train` on one host, within a worker of Ray Train."""
  import ray
  from ray.train import collective, v2

  context = v2.api.train_fn_utils.get_context()
  rank = context.get_world_rank()
  coordinator = collective.broadcast_from_rank_zero(_free_address(ray) if rank == 0 else None)
  stopper = values["stopper"]
  if rank == 0 and (restarts := ray.get(stopper.count_start.remote())):
    _say(f"podracer: restart {restarts} of all processes")
  flags = [*values["training"], *_group(coordinator, context.get_world_size(), rank)]
  directory = values["directory"]
  child = subprocess.Popen(
    [sys.executable, "-c", CHILD, str(os.getpid()), "train", *flags],
    cwd=directory if os.path.isdir(directory) else None,
    env={**os.environ, "PYTHONUNBUFFERED": "1"},
  )
  try:
    code = _watch(child, lambda: ray.get(stopper.is_asked.remote()), values["lead_seconds"])
  finally:
    child.kill()
  if code in command_line.FINAL:
    # As often as it is tried; the others would wait for this one.
    ray.get(stopper.stop.remote(code))
  if code and not ray.get(stopper.is_asked.remote()):
    reason = f"podracer train ended with exit code {code}"
    _say(f"podracer: host {rank}: {reason}")
    raise report.RunError(reason)


def _watch(
  child: "subprocess.Popen[bytes]", should_stop: Callable[[], bool], lead_seconds: float
) -> int:
  """Waits for the child, which is told to save and end when `should_stop`; returns its exit code."""
  deadline = None
  while True:
    try:
      code = child.wait(POLL_SECONDS)
      return code if code >= 0 else interrupts.EXIT_OFFSET - code
    except subprocess.TimeoutExpired:
      pass
    if deadline is None and should_stop():
      child.send_signal(signal.SIGTERM)
      deadline = time.monotonic() + lead_seconds
    elif deadline is not None and time.monotonic() > deadline:
      child.kill()


class _Stopper:
  """An actor beside the driver, that the workers ask whether to stop."""

  def __init__(self) -> None:
    self._code: int | None = None
    self._num_starts = 0

  def count_start(self) -> int:
    """Returns how often all have been started before."""
    self._num_starts += 1
    return self._num_starts - 1

  def stop(self, code: int) -> None:
    """Asks all to stop; the code tells why, 0 for a signal."""
    self._code = code if self._code is None else self._code

  def is_asked(self) -> bool:
    return self._code is not None

  def code(self) -> int | None:
    return self._code


def _group(coordinator: str, num_hosts: int, rank: int) -> list[str]:
  return [
    f"--coordinator={coordinator}",
    f"--num_processes={num_hosts}",
    f"--process_id={rank}",
  ]


def _free_address(ray: Any) -> str:
  """Returns this node's address, and a port that nobody listens on."""
  address: str = ray.util.get_node_ip_address()
  with socket.socket() as listener:
    listener.bind((address, 0))
    return f"{address}:{listener.getsockname()[1]}"


def _here(ray: Any) -> dict[str, str]:
  """Returns what has an actor run on this node."""
  return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def _say(line: str) -> None:
  """Prints in a worker, where Ray Train's `print` writes all twice."""
  sys.stderr.write(f"{line}\n")
  sys.stderr.flush()


def _last_line(error: Exception) -> str:
  return ([line for line in str(error).splitlines() if line.strip()] or [repr(error)])[-1].strip()


def _import_ray() -> Any:
  try:
    import ray
    import ray.train
  except ImportError as error:
    raise config.InputError(
      "Ray is not installed: pip install 'podracer-rl[ray]', on every host"
    ) from error
  return ray
