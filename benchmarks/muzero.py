"""MuZero against its limits: bare mctx, acting alone, learning alone, each in turn in one process.

Prints medians and ranges over repetitions.

python benchmarks/muzero.py --env gymnax:CartPole-v1

With `JAX_NUM_CPU_DEVICES=2` it also measures Anakin on both of them.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import mctx

from podracer import agent as agent_lib
from podracer import anakin, environments, learner, types
from podracer import config as config_lib
from podracer.agents import muzero
from podracer.agents.muzero import model as model_lib
from podracer.anakin import machine as machine_lib
from podracer.anakin import rollout


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--env", default="gymnax:CartPole-v1")
  parser.add_argument("--num_environments", type=int, default=64)
  parser.add_argument("--num_simulations", type=int, default=25)
  parser.add_argument("--unroll_length", type=int, default=16)
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--num_minibatches", type=int, default=8)
  parser.add_argument("--num_epochs", type=int, default=1)
  parser.add_argument("--repetitions", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
  return parser.parse_args()


def make_config(
  *,
  policy: str = "gumbel",
  num_simulations: int = 25,
  width: int = 64,
  num_minibatches: int = 8,
  num_epochs: int = 1,
) -> muzero.MuZeroConfig:
  return muzero.MuZeroConfig(
    num_minibatches=num_minibatches,
    num_epochs=num_epochs,
    network=config_lib.NetworkConfig(hidden_sizes=(width,)),
    model=muzero.ModelConfig(latent_size=width, hidden_sizes=(width,)),
    search=muzero.SearchConfig(policy=policy, num_simulations=num_simulations),
  )


def bare_search(config: muzero.MuZeroConfig, spec: types.EnvironmentSpec):
  """The same network under `mctx.gumbel_muzero_policy`, and nothing else."""
  model = model_lib.Model(config.network, config.model, spec)
  value = model_lib.make_transform(config.model.num_bins, config.model.max_value)
  reward = model_lib.make_transform(config.model.num_bins, config.model.max_reward)

  def predict(params, latent):
    prediction = model.apply(params, latent, method="predict")
    return prediction.policy_logits, value.apply_inv(jax.nn.softmax(prediction.value_logits))

  def recurrent_fn(params, key, action, latent):
    del key
    latent, reward_logits = model.apply(params, latent, action, method="step")
    logits, values = predict(params, latent)
    output = mctx.RecurrentFnOutput(
      reward=reward.apply_inv(jax.nn.softmax(reward_logits)),
      discount=jnp.full(action.shape, config.discount),
      prior_logits=logits,
      value=values,
    )
    return output, latent

  @jax.jit
  def search(params, key, observation):
    latent = model.apply(params, observation, method="represent")
    logits, values = predict(params, latent)
    root = mctx.RootFnOutput(prior_logits=logits, value=values, embedding=latent)
    found = mctx.gumbel_muzero_policy(
      params, key, root, recurrent_fn, num_simulations=config.search.num_simulations
    )
    return found.action, found.action_weights

  return search


def speed(call, work: int, seconds: float) -> float:
  """Returns the work done a second by a function of the number of the call."""
  begin, count = time.perf_counter(), 0
  while time.perf_counter() - begin < seconds:
    jax.block_until_ready(call(count))
    count += 1
  return count * work / (time.perf_counter() - begin)


def main() -> None:
  flags = parse()
  environment = environments.make(flags.env)
  batch, length = flags.num_environments, flags.unroll_length
  configure = functools.partial(
    make_config,
    num_simulations=flags.num_simulations,
    width=flags.width,
    num_minibatches=flags.num_minibatches,
    num_epochs=flags.num_epochs,
  )
  config = configure()
  agent = muzero.make_agent(config, environment.spec)
  classic = muzero.make_agent(configure(policy="muzero"), environment.spec)
  params = jax.jit(agent.init)(jax.random.key(0))
  timestep = types.zero_timestep(environment.spec, batch)
  key = jax.random.key(1)

  def act_of(made: agent_lib.Agent):
    act = jax.jit(lambda p, k, t: made.act(p, k, t, (), True)[0])
    return lambda i: act(params, jax.random.fold_in(key, i), timestep)

  bare = bare_search(config, environment.spec)
  start = jax.jit(lambda k: rollout.initial_state(agent, environment, k))
  acting = start(jax.random.split(key, batch))
  unroll = jax.jit(lambda p, k, s: rollout.unroll(agent, environment, p, k, s, length))
  _, trajectory = unroll(params, key, acting)
  learning = learner.make_learner(
    agent,
    config,
    unroll=agent_lib.trajectory_shapes(agent, environment.spec, length, batch),
  )
  state = jax.jit(learning.init)(key)
  update = jax.jit(learning.update)

  def anakin_on(devices: list[jax.Device]):
    machine = machine_lib.Anakin(
      agent,
      environment,
      config,
      anakin.AnakinConfig(num_environments=batch, unroll_length=length),
      num_env_steps=10**6,
      devices=devices,
    )
    whole = [machine.init(0)]

    def advance(i: int):
      del i
      whole[0], totals = machine.advance(whole[0], 4)
      return totals

    return advance

  steps = batch * length
  calls = {
    "agent's search": (act_of(agent), batch),
    "bare mctx": (
      lambda i: bare(params["model"], jax.random.fold_in(key, i), timestep.observation),
      batch,
    ),
    "muzero_policy": (act_of(classic), batch),
    "acting alone": (lambda i: unroll(params, jax.random.fold_in(key, i), acting), steps),
    "learning alone": (lambda i: update(state, jax.random.fold_in(key, i), trajectory), steps),
    "Anakin": (anakin_on(jax.devices()[:1]), 4 * steps),
  }
  if len(jax.devices()) > 1:
    calls[f"Anakin x {len(jax.devices())}"] = (anakin_on(jax.devices()), 4 * steps)
  for call, _ in calls.values():
    jax.block_until_ready(call(0))
  found: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(flags.repetitions):
    for name, (call, work) in calls.items():
      found[name].append(speed(call, work, flags.seconds))
  roots = steps * flags.num_epochs
  gradient_steps = flags.num_minibatches * flags.num_epochs
  print(
    f"{flags.env}, {batch} environments, {flags.num_simulations} simulations, width {flags.width}; "
    f"{gradient_steps} gradient steps on {roots // gradient_steps} roots x {config.unroll_steps} unroll "
    f"steps for each {steps} environment steps; {jax.devices()[0].device_kind}"
  )
  for name, speeds in found.items():
    print(
      f"  {name:15} {statistics.median(speeds):10,.0f}/s ({min(speeds):,.0f} .. {max(speeds):,.0f})"
    )
  sums = [
    1 / (1 / a + 1 / b) for a, b in zip(found["acting alone"], found["learning alone"], strict=True)
  ]
  ratio = functools.partial(_print_ratio, found)
  ratio("agent's search", found["bare mctx"], "bare mctx")
  ratio("agent's search", found["muzero_policy"], "muzero_policy")
  ratio("Anakin", sums, "acting and learning, each alone")


def _print_ratio(found: dict[str, list[float]], name: str, limit: list[float], what: str) -> None:
  ratios = [a / b for a, b in zip(found[name], limit, strict=True)]
  print(
    f"  {name} / {what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
  )


if __name__ == "__main__":
  main()
