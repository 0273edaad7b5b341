"""`podracer launch slurm`: a batch script with one process a node, which goes on after what ends it."""

import dataclasses
import shlex
import signal
from collections.abc import Sequence

from podracer import config

from . import command_line, guard, interrupts

AGAIN = (
  guard.PEER_LOST,
  interrupts.EXIT_OFFSET + signal.SIGKILL,
  interrupts.EXIT_OFFSET + signal.SIGTERM,
)
"""Exit codes after which the job goes on: a process or its host was lost, or all were told to end."""


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
  """Prints a batch script for sbatch; takes the options of `podracer train`, too."""

  print: bool = False
  """Print the script: nothing is submitted."""
  num_hosts: int = 0
  """Nodes, with one process on each."""
  job_name: str = "podracer"
  """Name of the job; its output goes to NAME-JOB.out."""
  time: str = ""
  """Time limit, as sbatch takes it (1-00:00:00); by default that of the partition."""
  partition: str = ""
  """Partition to run in."""
  account: str = ""
  """Account to charge."""
  cpus_per_host: int = 0
  """CPU cores of each node; 0 leaves it to SLURM."""
  gpus_per_host: int = 0
  """GPUs of each node."""
  lead_seconds: int = 120
  """Seconds before the time limit at which every process is told to save and end."""
  max_restarts: int = 100
  """Times that the job puts itself into the queue again."""

  def __post_init__(self) -> None:
    config.check_positive(num_hosts=self.num_hosts, lead_seconds=self.lead_seconds)
    config.check_at_least(
      0,
      cpus_per_host=self.cpus_per_host,
      gpus_per_host=self.gpus_per_host,
      max_restarts=self.max_restarts,
    )
    for name in ("job_name", "time", "partition", "account"):
      text = getattr(self, name)
      config.check(text.isprintable() and " " not in text, f"{name} has a blank in it: {text!r}")


def run(wanted: SlurmConfig, training: Sequence[str]) -> None:
  """Prints the script."""
  config.check(
    wanted.print, "add --print: the script is only printed; `... --print | sbatch` submits it"
  )
  print(script(wanted, training), end="")


def script(wanted: SlurmConfig, training: Sequence[str]) -> str:
  """Returns the batch script.

  Args:
    wanted: the job.
    training: flags of `podracer train`, quoted here for the shell.
  """
  options = {
    "job-name": wanted.job_name,
    "output": f"{wanted.job_name}-%j.out",
    "open-mode": "append",
    "nodes": wanted.num_hosts,
    "ntasks-per-node": 1,
    "cpus-per-task": wanted.cpus_per_host,
    "gpus-per-node": wanted.gpus_per_host,
    "time": wanted.time,
    "partition": wanted.partition,
    "account": wanted.account,
    # Without B: it goes to the processes and not to this script, which lives on to requeue the job.
    "signal": f"TERM@{wanted.lead_seconds}",
  }
  lines = ["#!/bin/bash"]
  lines += [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
  lines += ["#SBATCH --requeue", ""]
  if wanted.gpus_per_host:
    # Without it JAX takes one GPU a task under SLURM.
    devices = ",".join(str(i) for i in range(wanted.gpus_per_host))
    lines.append(f"export JAX_LOCAL_DEVICE_IDS={devices}")
  if wanted.cpus_per_host:
    # srun has not taken it from sbatch since SLURM 22.05.
    lines.append(f"export SRUN_CPUS_PER_TASK={wanted.cpus_per_host}")
  command = shlex.join(["podracer", "train", *training, "--coordinator=auto"])
  again = "|".join(map(str, AGAIN))
  lines += [
    # Of several exit codes srun returns the highest: that of the processes which lost the one at fault.
    f"export {command_line.FINAL_VARIABLE}=$PWD/{wanted.job_name}-$SLURM_JOB_ID.final",
    f"srun --kill-on-bad-exit=0 {command}",
    "code=$?",
    f"if [[ -e ${command_line.FINAL_VARIABLE} ]]; then",
    f'  code=$(<"${command_line.FINAL_VARIABLE}")',
    f'  rm "${command_line.FINAL_VARIABLE}"',
    "fi",
    f'if [[ $code =~ ^({again})$ && "${{SLURM_RESTART_COUNT:-0}}" -lt {wanted.max_restarts} ]]; then',
    '  echo "podracer: exit code $code, into the queue again"',
    '  scontrol requeue "$SLURM_JOB_ID"',
    "fi",
    "exit $code",
  ]
  return "\n".join(lines) + "\n"
