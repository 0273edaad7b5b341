"""Anakin against the same thing written by hand as one fused loop, interleaved in one process.

python benchmarks/anakin.py --env CartPole-v1 --devices 2
"""

import argparse
import json
import statistics
import time
from unittest import mock

import fused_loop
import jax
import jax.numpy as jnp
import numpy as np

from podracer import anakin, environments
from podracer import config as config_lib
from podracer.agents import impala
from podracer.anakin import config as anakin_config
from podracer.networks import convolution


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--env", default="CartPole-v1", help="a gymnax environment")
  parser.add_argument("--devices", type=int, default=1, help="(virtual) devices")
  parser.add_argument("--num_environments", type=int, default=1024)
  parser.add_argument("--unroll_length", type=int, default=20)
  parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
  parser.add_argument("--channels", type=int, default=0, help="of a 3x3 convolution; 0 has none")
  parser.add_argument(
    "--xla_convolution",
    action="store_true",
    help="also with XLA's own convolution, on every platform",
  )
  parser.add_argument("--updates", type=int, default=25, help="a call")
  parser.add_argument("--repetitions", type=int, default=9)
  parser.add_argument("--json", help="append the result to this file")
  return parser.parse_args()


def make_hand(flags: argparse.Namespace):
  state, advance = fused_loop.make(
    f"{flags.env}",
    num_environments=flags.num_environments,
    unroll_length=flags.unroll_length,
    hidden=tuple(flags.hidden),
    channels=flags.channels,
    num_devices=flags.devices,
  )
  box = [state]

  def call() -> int:
    box[0], steps = advance(box[0], jnp.int32(flags.updates))
    return int(steps)

  return call


def make_anakin(flags: argparse.Namespace):
  environment = environments.make(f"gymnax:{flags.env}")
  network = {"hidden_sizes": tuple(flags.hidden), "torso": "conv" if flags.channels else "mlp"}
  if flags.channels:
    network["conv_channels"] = (flags.channels,)
  config = impala.ImpalaConfig(network=config_lib.NetworkConfig(**network))
  machine = anakin.Anakin(
    impala.make_agent(config, environment.spec),
    environment,
    config,
    anakin_config.AnakinConfig(
      num_environments=flags.num_environments, unroll_length=flags.unroll_length
    ),
    num_env_steps=10**9,
    devices=jax.devices()[: flags.devices],
  )
  box = [machine.init(0)]

  def call() -> int:
    box[0], totals = machine.advance(box[0], flags.updates)
    return int(jax.device_get(totals).env_steps)

  return call


def make_xla_convolution(flags: argparse.Namespace):
  with mock.patch.object(convolution, "_convolve", convolution._as_convolution):
    call = make_anakin(flags)
    call()  # It is traced here.
  return call


def speed(call) -> float:
  begin = time.perf_counter()
  steps = call()
  return steps / (time.perf_counter() - begin)


def main() -> None:
  flags = parse()
  if jax.default_backend() == "cpu" and len(jax.devices()) < flags.devices:
    raise SystemExit("set JAX_NUM_CPU_DEVICES to the number of --devices")
  calls = {"hand-written": make_hand(flags), "anakin": make_anakin(flags)}
  if flags.xla_convolution:
    calls["XLA's conv"] = make_xla_convolution(flags)
  seconds = {}
  for name, call in calls.items():
    begin = time.perf_counter()
    call()
    seconds[name] = time.perf_counter() - begin
    call()
  speeds = {name: [] for name in calls}
  for _ in range(flags.repetitions):
    for name, call in calls.items():
      speeds[name].append(speed(call))
  ratios = {
    name: np.asarray(speeds["anakin"]) / np.asarray(values)
    for name, values in speeds.items()
    if name != "anakin"
  }
  device = jax.devices()[0]
  print(f"{flags.env}, {flags.devices} x {device.device_kind}, jax {jax.__version__}")
  for name, values in speeds.items():
    print(
      f"  {name:13} {statistics.median(values):12,.0f} steps/s "
      f"({min(values):,.0f} .. {max(values):,.0f}), first call {seconds[name]:.1f} s"
    )
  for name, ratio in ratios.items():
    print(f"  anakin over {name}: {np.median(ratio):.3f} ({ratio.min():.3f} .. {ratio.max():.3f})")
  if flags.json:
    result = {
      **{k: v for k, v in vars(flags).items() if k != "json"},
      "device": device.device_kind,
      "jax": jax.__version__,
      "steps_per_second": {name: statistics.median(values) for name, values in speeds.items()},
      "ratio_over": {
        name: [float(np.median(ratio)), float(ratio.min()), float(ratio.max())]
        for name, ratio in ratios.items()
      },
    }
    with open(flags.json, "a", encoding="utf-8") as file:
      file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
  main()
