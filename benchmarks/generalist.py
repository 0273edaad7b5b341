"""The generalist against its limits, and the controls that must fail; each thing in turn in one process.

python benchmarks/generalist.py                                    # training and decoding speed
python benchmarks/generalist.py --controls --data data/three       # learning, and what must not learn

Training: model FLOP of an update against a matrix multiplication of the same width and rows. Decoding: steps
from the cache against reading the whole window anew at each step.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from podracer import offline, types
from podracer.agents import generalist
from podracer.agents.generalist import agent as agent_lib
from podracer.agents.generalist import batches, tokeniser
from podracer.agents.generalist import layout as layout_lib


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--num_layers", type=int, default=2)
  parser.add_argument("--context", type=int, default=96)
  parser.add_argument("--rows", type=int, default=64)
  parser.add_argument("--environments", type=int, default=32)
  parser.add_argument("--repetitions", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
  parser.add_argument("--controls", action="store_true")
  parser.add_argument("--only", nargs="*", choices=CONTROLS, default=[*CONTROLS], metavar="CONTROL")
  parser.add_argument("--data", nargs="*", default=["data/three"])
  parser.add_argument("--no_reads_actions", action="store_true", help="of the controls")
  parser.add_argument("--updates", type=int, default=600)
  parser.add_argument("--episodes", type=int, default=64)
  return parser.parse_args()


def speed(call, work: float, seconds: float) -> float:
  """Returns the work done a second by a function of the number of the call."""
  begin, count = time.perf_counter(), 0
  while time.perf_counter() - begin < seconds:
    jax.block_until_ready(call(count))
    count += 1
  return count * work / (time.perf_counter() - begin)


def make_batch(layout: layout_lib.Layout, rows: int, steps: int) -> dict[str, np.ndarray]:
  """Returns a batch of vectors of four numbers and two actions, as CartPole has them."""
  rng = np.random.default_rng(0)
  return {
    "observation": rng.normal(size=(rows, steps, 4)).astype(np.float32),
    "action": rng.integers(0, layout.num_actions, (rows, steps)).astype(np.int32),
    "is_last": np.zeros((rows, steps), bool),
    "mask": np.ones((rows, steps), bool),
  }


def flop_of_update(config: generalist.GeneralistConfig, rows: int) -> float:
  """Returns the floating-point operations of the matrix products, forward and twice that backward."""
  dense = 12 * config.width**2 * config.num_layers
  attention = 2 * config.context * config.width * config.num_layers
  return 6.0 * rows * config.context * (dense + attention)


def measure(flags: argparse.Namespace) -> None:
  part = layout_lib.Part("observation", "continuous", (4,))
  layout = layout_lib.Layout((part,), num_actions=2, action_size=1, patch_size=16)
  config = generalist.GeneralistConfig(
    width=flags.width, num_layers=flags.num_layers, context=flags.context, num_prompts=0
  )
  layouts = {"task": layout}
  batch = {"task": make_batch(layout, flags.rows, layout.steps_per_sequence(config.context))}
  machine = offline.OfflineLearner(
    generalist.make_agent(config, layouts), config, num_updates=10**6, devices=jax.devices()[:1]
  )
  state = [machine.init(0)]

  def train(i: int):
    del i
    state[0], metrics = machine.update(state[0], batch)
    return metrics

  tokens = flags.rows * config.context
  a = jnp.ones((tokens, flags.width))
  b = jnp.ones((flags.width, 4 * flags.width))
  multiply = jax.jit(lambda x, y: x @ y)
  product = 2.0 * tokens * flags.width * 4 * flags.width

  spec = types.EnvironmentSpec(
    "task", types.ArraySpec((4,), np.dtype("float32")), types.DiscreteActions(2)
  )
  actor = generalist.make_actor(config, layouts, "task", spec)
  params = jax.jit(actor.init)(jax.random.key(0))
  timestep = types.zero_timestep(spec, flags.environments)
  timestep = timestep._replace(step_type=jnp.ones((flags.environments,), jnp.int8))
  act = jax.jit(functools.partial(actor.act, explore=False), donate_argnums=3)
  decoder = agent_lib.make_network(config, layouts)
  window = {n: jnp.asarray(v[: flags.environments]) for n, v in batch["task"].items()}

  @jax.jit
  def anew(params, window):
    tokens = tokeniser.tokenise(layout, window)
    embedded = decoder.apply(params, layout, tokens, method="embed")
    hidden = decoder.apply(params, embedded)
    return jnp.argmax(decoder.apply(params, hidden[:, -2], method="logits")[:, :2], axis=-1)

  acting = [actor.initial_state(flags.environments)]

  def cached(i: int):
    del i
    output, acting[0] = act(params, jax.random.key(0), timestep, acting[0])
    return output.action

  flop = flop_of_update(config, flags.rows)
  calls = {
    "training, tokens": (train, tokens),
    "matrix product, FLOP": (lambda i: multiply(a, b), product),
    "decoding, cached": (cached, flags.environments),
    "decoding, anew": (lambda i: anew(params.network, window), window["mask"].shape[0]),
  }
  for call, _ in calls.values():
    jax.block_until_ready(call(0))
  found: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(flags.repetitions):
    for name, (call, work) in calls.items():
      found[name].append(speed(call, work, flags.seconds))
  print(
    f"width {flags.width}, {flags.num_layers} layers, context {flags.context}, {flags.rows} rows, "
    f"{flags.environments} environments; {jax.devices()[0].device_kind}"
  )
  for name, speeds in found.items():
    print(f"  {name:22} {describe(speeds, '{:,.0f}')} /s")
  share = [
    a * flop / tokens / b
    for a, b in zip(found["training, tokens"], found["matrix product, FLOP"], strict=True)
  ]
  ratio = [a / b for a, b in zip(found["decoding, cached"], found["decoding, anew"], strict=True)]
  print(f"  FLOP of training / matrix product: {describe(share, '{:.2f}')}")
  print(f"  cached / anew: {describe(ratio, '{:.2f}')}")


def describe(values: list[float], form: str) -> str:
  """Returns median and range."""
  median, low, high = (
    form.format(x) for x in (statistics.median(values), min(values), max(values))
  )
  return f"{median} ({low} .. {high})"


def shuffled(rng: np.random.Generator, steps: dict, num_actions: int) -> np.ndarray:
  """Returns the actions of the batch, each at a step of another."""
  del num_actions
  flat = steps["action"].reshape(-1, *steps["action"].shape[2:])
  return rng.permutation(flat).reshape(steps["action"].shape)


def off_by_one(rng: np.random.Generator, steps: dict, num_actions: int) -> np.ndarray:
  """Returns at each step the action of the one before."""
  del rng, num_actions
  return np.roll(steps["action"], 1, axis=1)


def of_random_policy(rng: np.random.Generator, steps: dict, num_actions: int) -> np.ndarray:
  """Returns uniform actions."""
  shape, dtype = steps["action"].shape, steps["action"].dtype
  if num_actions:
    return rng.integers(0, num_actions, shape).astype(dtype)
  return rng.uniform(-1, 1, shape).astype(dtype)


CONTROLS = {
  "as recorded": None,
  "shuffled actions": shuffled,
  "actions off by one": off_by_one,
  "random actions": of_random_policy,
}


def controls(flags: argparse.Namespace) -> None:
  """Trains on what was recorded and on what must not work, and prints percents of the expert."""
  from podracer.launch import generalist as command
  from podracer.launch import generalist_evaluation, generalist_tasks

  config = generalist.GeneralistConfig(
    width=flags.width,
    num_layers=flags.num_layers,
    context=flags.context,
    learning_rate=2e-3,
    num_prompts=0,
    reads_actions=not flags.no_reads_actions,
  )
  datasets = generalist_tasks.select(flags.data, (), ("norm80",))
  tasks = {name: generalist_tasks.describe(d, config) for name, d in datasets.items()}
  layouts = {name: task.layout for name, task in tasks.items()}
  samplers = {n: batches.Sampler(d, layouts[n], config) for n, d in datasets.items()}
  saved = command.TrainConfig(config=config, workdir="")
  for name in flags.only:
    change = CONTROLS[name]
    rng, begin = np.random.default_rng(0), time.perf_counter()
    machine = offline.OfflineLearner(
      generalist.make_agent(config, layouts),
      config,
      num_updates=flags.updates,
      devices=jax.devices()[:1],
    )
    state = machine.init(0)
    stream = batches.batches(samplers, config.sequences_per_task, 0, flags.updates)
    for batch in stream:
      if change is not None:
        for task, steps in batch.items():
          steps["action"] = change(rng, steps, layouts[task].num_actions)
      state, _ = machine.update(state, batch)
    params = jax.device_get(state.learner.params)
    seconds, shown = time.perf_counter() - begin, []
    for task in tasks:
      actor = generalist_evaluation.make_actor(saved, tasks, task, params, prompt=False)
      played = generalist_evaluation.play([actor], flags.episodes, 1, jax.random.key(1), True)
      assert played is not None
      percent = tasks[task].percent(float(played.returns.mean()))
      shown.append(f"{task} {percent:.1f} %")
    print(f"{name}: {', '.join(shown)} ({flags.updates} updates in {seconds:.0f} s)", flush=True)


def main() -> None:
  flags = parse()
  (controls if flags.controls else measure)(flags)


if __name__ == "__main__":
  main()
