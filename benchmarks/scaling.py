"""Anakin over virtual devices and over processes, against as many runs that know nothing of each other.

Weak scaling: every device has as many environments, however many devices there are. For 1, 2 and 4 devices the same
work is done by (a) processes of one device each that share nothing, the limit of this machine; (b) one process with
all devices; (c) a group of processes of one device each. All are started once and take turns. The mean of the
gradients is timed by itself, too: its share of an update is what scaling costs.

From that and the stated assumptions it writes a table on paper of a pod; nothing in that table was measured there.

python benchmarks/scaling.py --repetitions 5
"""

import argparse
import statistics
import subprocess
import sys
import time

COUNTS = (1, 2, 4)
# The assumptions of the table on paper: a TPU v3's links, and the latency of one step of a ring over them.
LINK_BYTES_PER_SECOND = 70e9
HOP_SECONDS = 1e-6
CORES = (8, 32, 128, 512, 2048)


def work(num_devices: int, coordinator: str, num_processes: int, process_id: int) -> None:
  """Trains, or only reduces, for as long as each line of the standard input asks; prints the seconds."""
  from podracer.launch import experiment, host

  group = None
  if coordinator:
    group = host.GroupConfig(
      coordinator=coordinator, num_processes=num_processes, process_id=process_id
    )
  devices = host.start_jax(num_devices, group=group)

  import dataclasses

  import jax
  import jax.numpy as jnp

  P = jax.sharding.PartitionSpec
  made = experiment.default_experiment("impala", "anakin", "gymnax:CartPole-v1")
  size = PER_DEVICE * num_devices
  made = dataclasses.replace(
    made, machine=dataclasses.replace(made.machine, num_environments=size, updates_per_call=1)
  )
  environment = made.make_environment()
  machine = experiment.make_machine(made, made.make_agent(environment.spec), environment, devices)
  state = machine.init(0)

  def mean(params: object) -> object:
    return jax.lax.fori_loop(0, REDUCTIONS, lambda i, p: jax.lax.pmean(p, "devices"), params)

  reduce = jax.jit(
    jax.shard_map(mean, mesh=machine.mesh, in_specs=P(), out_specs=P(), check_vma=False)
  )
  params = jax.tree.map(jnp.copy, state.learner.params)
  jax.block_until_ready(reduce(params))
  state, _ = machine.advance(state, 1)
  jax.block_until_ready(state)
  num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  print("ready", made.machine.unroll_length * PER_DEVICE, num_bytes, flush=True)
  for line in sys.stdin:
    begin = time.perf_counter()
    if line.startswith("reduce"):
      jax.block_until_ready(reduce(params))
    else:
      state, _ = machine.advance(state, UPDATES)
      jax.block_until_ready(state)
    print(time.perf_counter() - begin, flush=True)


class Workers:
  """The processes of one way to use some devices."""

  def __init__(self, name: str, num_devices: int, num_processes: int, is_group: bool):
    from podracer.launch import rehearse

    self.name, self.num_devices = name, num_devices
    coordinator = f"127.0.0.1:{rehearse.free_port()}" if is_group else ""
    each = num_devices if is_group or num_processes == 1 else 1
    self._processes = [
      subprocess.Popen(
        [sys.executable, __file__, "--worker", str(each), coordinator, str(num_processes), str(i)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
      )
      for i in range(num_processes)
    ]
    for process in self._processes:
      while not (line := process.stdout.readline()).startswith("ready"):
        if not line:
          raise RuntimeError(f"a worker of {name} ended")
      self.steps, self.num_bytes = map(int, line.split()[1:])

  def seconds(self, what: str) -> float:
    """Has all of them do something at the same time; returns how long the slowest took."""
    for process in self._processes:
      process.stdin.write(what + "\n")
      process.stdin.flush()
    return max(float(process.stdout.readline()) for process in self._processes)

  def close(self) -> None:
    """Ends them."""
    for process in self._processes:
      process.stdin.close()
      process.wait()


def on_paper(update: float, num_bytes: int) -> None:
  """Prints efficiency on a pod, from the seconds of an update without its reduction."""
  print(
    f"\non paper, NOT measured: an update of {1e3 * update:.2f} ms a core as here, {num_bytes / 1e3:.0f} kB of "
    f"gradients, a ring over links of {LINK_BYTES_PER_SECOND / 1e9:.0f} GB/s with {1e6 * HOP_SECONDS:.0f} µs a "
    "hop in two dimensions, nothing overlapped"
  )
  for cores in CORES:
    side = cores**0.5
    reduction = 2 * num_bytes / LINK_BYTES_PER_SECOND + 4 * (side - 1) * HOP_SECONDS
    print(
      f"  {cores:5} cores: reduction {1e6 * reduction:6.0f} µs, efficiency {update / (update + reduction):.3f}"
    )


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--repetitions", type=int, default=5)
  repetitions = parser.parse_args().repetitions
  ways = []
  for count in COUNTS:
    ways.append(Workers(f"{count} alone", count, count, is_group=False))
    ways.append(Workers(f"{count} devices", count, 1, is_group=False))
    ways.append(Workers(f"{count} processes", count, count, is_group=True))
  speeds: dict[str, list[float]] = {way.name: [] for way in ways}
  shares: dict[str, list[float]] = {way.name: [] for way in ways}
  updates: list[float] = []
  for _ in range(repetitions):
    for way in ways:
      seconds = way.seconds("train") / UPDATES
      reduction = way.seconds("reduce") / REDUCTIONS
      speeds[way.name].append(way.num_devices * way.steps / seconds)
      shares[way.name].append(reduction / seconds)
      if way.name == "1 alone":
        updates.append(seconds)
  print(f"{PER_DEVICE} environments a device; {ways[0].num_bytes:,} bytes of parameters")
  for way in ways:
    limit = speeds[f"{way.num_devices} alone"]
    ratios = [own / best for own, best in zip(speeds[way.name], limit, strict=True)]
    print(
      f"{way.name:12} {statistics.median(speeds[way.name]):12,.0f} steps/s, of as many alone "
      f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f}); the reduction takes "
      f"{100 * statistics.median(shares[way.name]):.1f} % of an update"
    )
  on_paper(statistics.median(updates), ways[0].num_bytes)
  for way in ways:
    way.close()


PER_DEVICE, UPDATES, REDUCTIONS = 512, 20, 50

if __name__ == "__main__":
  if sys.argv[1:2] == ["--worker"]:
    devices_arg, coordinator_arg, processes_arg, id_arg = sys.argv[2:]
    work(int(devices_arg), coordinator_arg, int(processes_arg), int(id_arg))
  else:
    main()
