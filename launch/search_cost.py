"""What one search of an agent costs, measured before training begins."""

import time

import jax

from podracer import agent as agent_lib
from podracer import types

NUM_CALLS = 3


def measure(
  agent: agent_lib.Agent, spec: types.EnvironmentSpec, batch_size: int, device: jax.Device
) -> str:
  """Returns a line with the time, the memory and the compilation of one batch of searches.

  Args:
    agent: that searches.
    spec: of the environment.
    batch_size: of the environments that are acted in together on one device.
    device: that acts.
  """
  with jax.default_device(device):
    params = jax.jit(agent.init)(jax.random.key(0))
    timestep = types.zero_timestep(spec, batch_size)
    begin = time.perf_counter()
    act = jax.jit(lambda p, key, t: agent.act(p, key, t, agent.initial_state(batch_size), True))
    compiled = act.lower(params, jax.random.key(0), timestep).compile()
    compilation = time.perf_counter() - begin
    seconds = []
    for i in range(NUM_CALLS):
      begin = time.perf_counter()
      jax.block_until_ready(compiled(params, jax.random.key(i), timestep))
      seconds.append(time.perf_counter() - begin)
  memory = compiled.memory_analysis()
  text = f"search: {min(seconds) * 1e3:,.1f} ms for {batch_size:,} environments"
  text += f" ({batch_size / min(seconds):,.0f} searches/s), "
  if memory is not None:
    text += f"{memory.temp_size_in_bytes / 1e6:,.1f} MB, "
  return text + f"compiled in {compilation:.1f} s"
