"""`podracer watch`: renders a video of a trained agent."""

import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from podracer import config

from . import command_line, experiment

FORMATS = (".mp4", ".gif")


@dataclasses.dataclass(frozen=True)
class WatchConfig:
  """Renders whole episodes of a trained agent."""

  workdir: str
  """Directory of the run."""
  out: str = ""
  """Video to write, .mp4 or .gif; <workdir>/watch.mp4 by default."""
  episodes: int = 3
  """Whole episodes."""
  max_steps: int = 2000
  """Stop after this many steps, should the episodes not end before."""
  mode: Literal["greedy", "sample"] = "greedy"
  """Take the most likely action, or sample."""
  search: bool = True
  """Whether an agent that searches does; --no-search plays by its network alone."""
  seed: int = 0
  """Of the environment."""
  seed_index: int = 0
  """Which of the run's policies, where it was trained with several seeds."""
  task: int = 0
  """Which task to play, of an environment of several."""

  def __post_init__(self) -> None:
    config.check_positive(episodes=self.episodes, max_steps=self.max_steps)
    config.check_at_least(0, seed=self.seed, seed_index=self.seed_index, task=self.task)
    config.check(
      not self.out or pathlib.Path(self.out).suffix in FORMATS,
      f"out must end in {' or '.join(FORMATS)}, got {self.out}",
    )


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  wanted: WatchConfig = command_line.parse(WatchConfig, "podracer watch", args)
  saved = experiment.read(wanted.workdir)
  saved.check()
  config.check(
    wanted.task < saved.num_tasks,
    f"task must be 0 .. {saved.num_tasks - 1} in {saved.env}, got {wanted.task}",
  )
  from . import host, policy

  host.start_jax(1)
  loaded = policy.LoadedRun(wanted.workdir, wanted.search)
  if loaded.factory.tasks:
    loaded.factory = loaded.factory.tasks[wanted.task]
  config.check(
    loaded.factory.can_render,
    f"environment {loaded.factory.spec.name} cannot be rendered",
  )
  out = wanted.out or str(pathlib.Path(wanted.workdir) / "watch.mp4")
  frames, returns = record_frames(loaded, wanted)
  write_video(out, frames, loaded.factory.frames_per_second)
  episodes = ", ".join(f"{value:.2f}" for value in returns) or "none ended"
  print(f"wrote {out}: {len(frames)} frames; episode returns: {episodes}")


def record_frames(loaded: Any, wanted: WatchConfig) -> tuple[list[Any], list[float]]:
  """Plays episodes one after the other; returns their pictures `[H, W, 3]` and returns."""
  import numpy as np

  from podracer import host_environment, types

  from . import policy as policy_lib

  act = policy_lib.Policy(
    loaded.agent,
    loaded.params(wanted.seed_index),
    loaded.environment.spec,
    loaded.env_steps,
    greedy=wanted.mode == "greedy",
    seed=wanted.seed,
  )
  options = host_environment.HostOptions(num_threads=1, render=True, whole_episodes=True)
  host = loaded.factory.make([wanted.seed], options)
  timestep, state = host.reset(), act.initial_state(1)
  frames = [host.render()]
  returns: list[float] = []
  episode_return = 0.0
  while len(returns) < wanted.episodes and len(frames) < wanted.max_steps:
    action, state = act(timestep, state)
    timestep = host.step(np.asarray(action))
    frames.append(host.render())
    episode_return += float(timestep.reward[0])
    if timestep.step_type[0] == types.LAST:
      returns.append(episode_return)
      episode_return = 0.0
  host.close()
  return frames, returns


def write_video(out: str, frames: list[Any], frames_per_second: int) -> None:
  """Writes pictures as an .mp4 or a .gif, whole or not at all."""
  import imageio.v2

  # The writer starts ffmpeg as a process of its own; of JAX's threads that child uses nothing.
  warnings.filterwarnings("ignore", message="os.fork")
  path = pathlib.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".partial-{path.name}")
  if path.suffix == ".mp4":
    imageio.v2.mimwrite(partial, frames, fps=frames_per_second, macro_block_size=1)
  else:
    imageio.v2.mimwrite(partial, frames, duration=1000 / frames_per_second, loop=0)
  partial.replace(path)
