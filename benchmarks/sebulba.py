"""Sebulba against its limits: raw envpool, and environment, inference and learner each alone.

Every repetition measures one after the other in this process, so that the ratios are of the same
minutes. Prints medians and ranges.
"""

import argparse
import statistics
import time

import muzero as muzero_benchmark
import numpy as np

from podracer import config as config_lib
from podracer import environments, host_environment, sebulba
from podracer.agents import impala, muzero
from podracer.sebulba import machine as machine_lib
from podracer.sebulba import measure

NETWORKS = {
  "tiny": config_lib.NetworkConfig(torso="mlp", hidden_sizes=(16,)),
  "mlp": config_lib.NetworkConfig(torso="mlp", hidden_sizes=(64, 64), activation="tanh"),
  "nature_cnn": config_lib.NetworkConfig(torso="nature_cnn", hidden_sizes=(512,)),
}
NUM_WARM_UPDATES = 8
"""By then the unrolls that the actors made while the learner compiled have been learnt from."""


def make_agent(args, spec):
  """Agent and configuration; MuZero is that of `muzero.py`."""
  if args.agent == "impala":
    config = impala.ImpalaConfig(network=NETWORKS[args.network])
    return impala.make_agent(config, spec), config
  config = muzero_benchmark.make_config(num_epochs=args.num_epochs)
  return muzero.make_agent(config, spec), config


def raw_speed(factory, num_environments, num_threads, seconds, batch_size=0):
  """Steps/s of one pool, synchronous or with `batch_size` at a time, and nothing else."""
  options = host_environment.HostOptions(num_threads=num_threads, batch_size=batch_size)
  made = factory.make(host_environment.make_seeds(0, num_environments), options)
  pool = made._pool
  size = batch_size or num_environments
  dtype = np.int32 if hasattr(factory.spec.action, "num_actions") else np.float32
  action = measure.random_actions(factory.spec, size, np.random.default_rng(0)).astype(dtype)
  count = 0
  if batch_size:
    pool.async_reset()
  else:
    pool.reset()

  def step():
    if batch_size:
      pool.send(action, pool.recv()[-1]["env_id"])
    else:
      pool.step(action)

  for _ in range(20):
    step()
  begin = time.perf_counter()
  while time.perf_counter() - begin < seconds:
    for _ in range(10):
      step()
    count += 10
  speed = count * size / (time.perf_counter() - begin)
  made.close()
  return speed


def sebulba_speed(machine, seconds, seed):
  """Steps/s of the whole, once what waited for the compiler is learnt from; and its last report."""
  begin, steps, said = None, 0, ""
  for news in machine_lib.run(machine, machine.init(seed), num_env_steps=10**12, seed=seed):
    now = time.perf_counter()
    if news.updates < NUM_WARM_UPDATES:
      continue
    if begin is None:
      begin, first = now, news.env_steps
    steps, said = news.env_steps, news.summary
    if now - begin >= seconds:
      break
  return (steps - first) / (now - begin), said, news.metrics


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--env", default="envpool:CartPole-v1")
  parser.add_argument("--agent", choices=("impala", "muzero"), default="impala")
  parser.add_argument("--network", choices=NETWORKS, default="mlp", help="of impala")
  parser.add_argument("--num_epochs", type=int, default=1, help="of muzero")
  parser.add_argument("--num_environments", type=int, default=64)
  parser.add_argument("--threads", type=int, default=2, help="on each actor device")
  parser.add_argument("--actor_devices", type=int, nargs="*", default=[])
  parser.add_argument("--learner_devices", type=int, nargs="*", default=[])
  parser.add_argument("--environment_threads", type=int, default=0)
  parser.add_argument("--raw_threads", type=int, default=1, help="threads of the raw pool")
  parser.add_argument("--unroll_length", type=int, default=20)
  parser.add_argument("--lag", default="latest")
  parser.add_argument("--mode", choices=("sync", "async"), default="sync")
  parser.add_argument("--updates_per_report", type=int, default=0)
  parser.add_argument("--repetitions", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=5.0)
  parser.add_argument("--limits", action="store_true", help="also environment, inference, learner")
  args = parser.parse_args()

  factory = environments.make(args.env)
  agent, agent_config = make_agent(args, factory.spec)
  machine_config = sebulba.SebulbaConfig(
    num_environments=args.num_environments,
    unroll_length=args.unroll_length,
    threads_per_actor_device=args.threads,
    actor_devices=tuple(args.actor_devices),
    learner_devices=tuple(args.learner_devices),
    environment_threads=args.environment_threads,
    environment_mode=args.mode,
    lag=args.lag,
    updates_per_report=args.updates_per_report or max(1, 20_000 // args.num_environments // 20),
  )
  machine = machine_lib.Sebulba(
    agent,
    factory,
    agent_config,
    machine_config,
    num_env_steps=10**9,
  )
  columns = {"raw": [], "sebulba": [], "ratio": [], "limit": [], "of limit": []}
  for repetition in range(args.repetitions):
    raw = raw_speed(factory, args.num_environments, args.raw_threads, args.seconds / 2)
    speed, said, metrics = sebulba_speed(machine, args.seconds, repetition)
    again = raw_speed(factory, args.num_environments, args.raw_threads, args.seconds / 2)
    raw = (raw + again) / 2
    columns["raw"].append(raw)
    columns["sebulba"].append(speed)
    columns["ratio"].append(speed / raw)
    if args.limits:
      limits = measure.limits(machine, args.seconds / 2)
      columns["limit"].append(limits.predicted)
      columns["of limit"].append(speed / limits.predicted)
      print({name: round(value) for name, value in limits._asdict().items()})
    print(
      f"{repetition}: raw {raw:,.0f}/s  sebulba {speed:,.0f}/s  ratio {speed / raw:.3f}  {said}"
    )
  shares = {k[6:]: v * metrics["steps_per_second"] for k, v in metrics.items() if "stage/" in k}
  print("stages, as shares of wall time:", {k: round(v, 2) for k, v in shares.items()})
  for name, values in columns.items():
    if values:
      low, high = min(values), max(values)
      print(f"{name:10} median {statistics.median(values):12,.3f}  range {low:,.3f} .. {high:,.3f}")


if __name__ == "__main__":
  main()
