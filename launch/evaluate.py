"""`podracer evaluate`: plays whole episodes with the newest checkpoint of a run."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from podracer import config

from . import command_line, experiment


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Plays whole episodes with a trained agent and writes evaluation.json."""

  workdir: str
  """Directory of the run."""
  episodes: int = 128
  """Whole episodes to play."""
  mode: Literal["greedy", "sample"] = "greedy"
  """Take the most likely action, or sample."""
  search: bool = True
  """Whether an agent that searches does; --no-search plays by its network alone."""
  seed: int = 0
  """Of the environments."""
  seed_index: int = 0
  """Which of the run's policies, where it was trained with several seeds."""

  def __post_init__(self) -> None:
    config.check_positive(episodes=self.episodes)
    config.check_at_least(0, seed=self.seed, seed_index=self.seed_index)


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  wanted: EvaluateConfig = command_line.parse(EvaluateConfig, "podracer evaluate", args)
  experiment.read(wanted.workdir).check()
  import jax

  from podracer import evaluation

  from . import host, policy, run, run_files

  host.start_jax(1)
  loaded = policy.LoadedRun(wanted.workdir, wanted.search)
  evaluate = evaluation.make_evaluator(
    loaded.agent,
    loaded.environment,
    num_episodes=wanted.episodes,
    greedy=wanted.mode == "greedy",
  )
  result = evaluate(loaded.params(wanted.seed_index), jax.random.key(wanted.seed))
  assert result is not None  # Nothing asked it to stop.
  # Said first: a disk that is full does not lose what was found.
  print(f"{loaded.experiment.env} after {loaded.env_steps:,} environment steps")
  print(run.evaluation_line(result.summary()))
  if result.num_cut:
    print(f"{result.num_cut} episodes did not end by themselves and were cut")
  with command_line.disk_errors(wanted.workdir):
    run_files.write_evaluation(wanted.workdir, loaded.env_steps, result.summary())
