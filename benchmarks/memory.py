"""Peak memory of a run of Anakin after n updates and after ten times as many: it must stay flat.

python benchmarks/memory.py
"""

import resource

from podracer import anakin, environments
from podracer.agents import impala

UPDATES = 500


def main() -> None:
  environment = environments.make("gymnax:CartPole-v1")
  config = impala.ImpalaConfig()
  machine = anakin.AnakinConfig(num_environments=256, unroll_length=20, updates_per_call=10)
  reports = anakin.train(
    impala.make_agent(config, environment.spec), environment, config, machine, num_env_steps=10**9
  )
  peaks = {}
  for report in reports:
    if report.updates in (UPDATES, 10 * UPDATES):
      peaks[report.updates] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if report.updates >= 10 * UPDATES:
      break
  first, last = peaks[UPDATES], peaks[10 * UPDATES]
  print(f"peak RSS after {UPDATES} updates {first:.1f} MiB, after {10 * UPDATES} {last:.1f} MiB")
  print(f"ratio {last / first:.4f}")


if __name__ == "__main__":
  main()
