"""`podracer launch gke`: a JobSet with one process a host, which Kubernetes starts again as a whole."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from podracer import config

from . import command_line

JOB = "host"
PORT = 8476
MOUNT = "/podracer"
INDEX = "batch.kubernetes.io/job-completion-index"
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
# What JobSet adds to the name is at most -host-0-<index>-<5 letters>, of 63.
MAX_NAME = 40


@dataclasses.dataclass(frozen=True)
class GkeConfig:
  """Prints a Kubernetes JobSet for kubectl apply; takes the options of `podracer train`, too."""

  print: bool = False
  """Print the manifest: nothing is applied."""
  num_hosts: int = 0
  """Hosts, with one process on each."""
  image: str = ""
  """Container image that has podracer installed."""
  volume_claim: str = ""
  """PersistentVolumeClaim, ReadWriteMany, that is mounted on each host at /podracer, where the command runs:
  a --workdir without a / before it lies there."""
  name: str = "podracer"
  """Name of the JobSet."""
  tpu_accelerator: str = ""
  """Kind of TPU, as GKE calls it: tpu-v6e-slice."""
  tpu_topology: str = ""
  """Chips of the TPU slice: 4x4."""
  chips_per_host: int = 4
  """TPU chips of each host."""
  gpus_per_host: int = 0
  """NVIDIA GPUs of each host."""
  cpus_per_host: int = 0
  """CPU cores that each host asks for; 0 asks for none."""
  lead_seconds: int = 120
  """Seconds that a process told to end has for its checkpoint."""
  max_restarts: int = 100
  """Times that the whole set is started again."""

  def __post_init__(self) -> None:
    config.check_positive(
      num_hosts=self.num_hosts, lead_seconds=self.lead_seconds, chips_per_host=self.chips_per_host
    )
    config.check_at_least(
      0,
      gpus_per_host=self.gpus_per_host,
      cpus_per_host=self.cpus_per_host,
      max_restarts=self.max_restarts,
    )
    config.check(bool(self.image), "no image given: --image=IMAGE, with podracer installed")
    config.check(
      bool(self.volume_claim),
      "no volume given: --volume_claim=NAME, of a ReadWriteMany PersistentVolumeClaim",
    )
    config.check(
      re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name) is not None
      and len(self.name) <= MAX_NAME,
      f"name must be up to {MAX_NAME} of a-z, 0-9 and -, a letter first, got {self.name!r}",
    )
    config.check(
      bool(self.tpu_accelerator) == bool(self.tpu_topology),
      "tpu_accelerator and tpu_topology go together",
    )
    config.check(
      not (self.tpu_topology and self.gpus_per_host), "a host has TPU chips or GPUs, not both"
    )
    _check_topology(self)


def _check_topology(wanted: GkeConfig) -> None:
  """Raises InputError unless the hosts make up the slice."""
  if not wanted.tpu_topology:
    return
  sizes = wanted.tpu_topology.split("x")
  config.check(
    all(size.isdecimal() for size in sizes),
    f"tpu_topology must be like 4x4 or 2x2x4, got {wanted.tpu_topology}",
  )
  num_chips = math.prod(int(size) for size in sizes)
  config.check(
    num_chips == wanted.num_hosts * wanted.chips_per_host,
    f"tpu_topology {wanted.tpu_topology} has {num_chips} chips, but {wanted.num_hosts} hosts of "
    f"{wanted.chips_per_host} (--chips_per_host) have {wanted.num_hosts * wanted.chips_per_host}",
  )


def run(wanted: GkeConfig, training: Sequence[str]) -> None:
  """Prints the manifest."""
  config.check(
    wanted.print,
    "add --print: the manifest is only printed; `... --print | kubectl apply -f -` applies it",
  )
  workdir = command_line.peek(training, "workdir")
  config.check(
    workdir is None or (pathlib.PurePosixPath(MOUNT) / workdir).is_relative_to(MOUNT),
    f"workdir {workdir} is not on the volume, which is mounted at {MOUNT}",
  )
  import yaml  # type: ignore[import-untyped]

  print(yaml.safe_dump(manifest(wanted, training), sort_keys=False, width=100), end="")


def manifest(wanted: GkeConfig, training: Sequence[str]) -> dict[str, Any]:
  """Returns the JobSet.

  Args:
    wanted: the set.
    training: flags of `podracer train`.
  """
  flags = [
    # Kubernetes puts variables into a command: $$ is a $.
    *(flag.replace("$", "$$") for flag in training),
    f"--coordinator={wanted.name}-{JOB}-0-0.{wanted.name}:{PORT}",
    f"--num_processes={wanted.num_hosts}",
    "--process_id=$(JOB_COMPLETION_INDEX)",
  ]
  container: dict[str, Any] = {
    "name": "podracer",
    "image": wanted.image,
    "workingDir": MOUNT,
    "command": ["podracer", "train", *flags],
    "env": [
      {
        "name": "JOB_COMPLETION_INDEX",
        "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}},
      },
      {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
      # The name of the pod may not be known yet when process 0 begins to listen.
      {"name": "JAX_COORDINATOR_BIND_ADDRESS", "value": f"$(POD_IP):{PORT}"},
      {"name": "PYTHONUNBUFFERED", "value": "1"},
    ],
    "ports": [{"containerPort": PORT}],
    "resources": _resources(wanted),
    "volumeMounts": [
      {"name": "workdir", "mountPath": MOUNT},
      {"name": "shm", "mountPath": "/dev/shm"},
    ],
  }
  pod: dict[str, Any] = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": wanted.lead_seconds,
    "containers": [container],
    "volumes": [
      {"name": "workdir", "persistentVolumeClaim": {"claimName": wanted.volume_claim}},
      {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ],
  }
  if wanted.tpu_topology:
    pod["nodeSelector"] = {
      "cloud.google.com/gke-tpu-accelerator": wanted.tpu_accelerator,
      "cloud.google.com/gke-tpu-topology": wanted.tpu_topology,
    }
  job = {
    "completionMode": "Indexed",
    "parallelism": wanted.num_hosts,
    "completions": wanted.num_hosts,
    # One process lost is the group lost: the set starts all again.
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {
          "action": "FailJob",
          "onExitCodes": {
            "containerName": "podracer",
            "operator": "In",
            "values": [*command_line.FINAL],
          },
        }
      ]
    },
    "template": {"spec": pod},
  }
  metadata: dict[str, Any] = {"name": wanted.name}
  if wanted.tpu_topology:
    # A slice is a node pool: no other job gets a host of it.
    metadata["annotations"] = {EXCLUSIVE: "cloud.google.com/gke-nodepool"}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "network": {"enableDNSHostnames": True, "subdomain": wanted.name},
      "failurePolicy": {
        "maxRestarts": wanted.max_restarts,
        "rules": [
          # These, and only these, stay wrong however often they are tried.
          {
            "name": "cannotGoOn",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "replicatedJobs": [{"name": JOB, "replicas": 1, "template": {"spec": job}}],
    },
  }


def _resources(wanted: GkeConfig) -> dict[str, dict[str, int]]:
  """Returns what each host asks for."""
  limits: dict[str, int] = {}
  if wanted.tpu_topology:
    limits["google.com/tpu"] = wanted.chips_per_host
  if wanted.gpus_per_host:
    limits["nvidia.com/gpu"] = wanted.gpus_per_host
  requests = {**limits, **({"cpu": wanted.cpus_per_host} if wanted.cpus_per_host else {})}
  return {name: values for name, values in (("requests", requests), ("limits", limits)) if values}
