"""CartPole alone, stepped with random actions: how fast this machine is today.

python benchmarks/calibration.py
"""

import statistics
import time

import jax
import jax.numpy as jnp

from podracer import environment as environment_lib
from podracer import environments

NUM_ENVIRONMENTS, NUM_STEPS = 1024, 5000


def main() -> None:
  environment = environments.make("gymnax:CartPole-v1")

  @jax.jit
  def run(state, key):
    actions = jax.random.bernoulli(key, shape=(NUM_STEPS // 50, NUM_ENVIRONMENTS)).astype(jnp.int32)

    def step(i, state):
      return environment_lib.step(environment, state, actions[i % actions.shape[0]])[0]

    return jax.lax.fori_loop(0, NUM_STEPS, step, state)

  keys = jax.random.split(jax.random.key(0), NUM_ENVIRONMENTS)
  state, _ = environment_lib.reset(environment, keys)
  state = jax.block_until_ready(run(state, jax.random.key(1)))
  speeds = []
  for i in range(7):
    begin = time.perf_counter()
    state = jax.block_until_ready(run(state, jax.random.key(i)))
    speeds.append(NUM_ENVIRONMENTS * NUM_STEPS / (time.perf_counter() - begin))
  print(
    f"CartPole alone: {statistics.median(speeds):,.0f} steps/s "
    f"({min(speeds):,.0f} .. {max(speeds):,.0f})"
  )


if __name__ == "__main__":
  main()
