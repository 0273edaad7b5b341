"""Students of several sizes against their teachers, as in Rusu et al. (2015), figure 2.

For each task it trains a teacher by its preset (or takes the run that is there), distils students of
at most 25, about 7 and 4 % of its parameters, three seeds each, plays the same episodes with all of them,
greedily, and draws the score in % of the teacher's, a random policy being 0.

python benchmarks/distillation.py --out=sizes --tasks catch cartpole
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import numpy as np

import podracer
from podracer import evaluation, host_environment, random_agent

NUM_SEEDS, EPISODES = 3, 1024


class Task(NamedTuple):
  """A task, and the networks of its students, largest first: flags of `podracer distill`."""

  env: str
  students: tuple[tuple[str, ...], ...]
  num_env_steps: int


def _sizes(*sizes: int, channels: int = 0) -> tuple[str, ...]:
  flags = ("--config.network.hidden_sizes", *map(str, sizes))
  if channels:
    flags += ("--config.network.conv_channels", str(channels))
  return flags


TASKS = {
  "catch": Task("gymnax:Catch-bsuite", (_sizes(32), _sizes(9), _sizes(5)), 500_000),
  "cartpole": Task("gymnax:CartPole-v1", (_sizes(28, 28), _sizes(40), _sizes(23)), 1_000_000),
  "breakout": Task(
    "gymnax:Breakout-MinAtar",
    (
      # A sharp teacher: in a game that goes on until a mistake, drawing what it would hardly do is one.
      (*_sizes(31, 32, channels=8), "--config.temperature=0.5"),
      (*_sizes(12, channels=6), "--config.temperature=0.5"),
      (*_sizes(8, channels=5), "--config.temperature=0.5"),
    ),
    3_000_000,
  ),
}


def run(*command: str) -> None:
  """Runs a command of podracer, which prints what it does."""
  print("podracer", *command, flush=True)
  subprocess.run([sys.executable, "-m", "podracer.launch.main", *command], check=True)


def num_parameters(workdir: pathlib.Path) -> int:
  """Returns the parameters of the policy and value of one seed, those of teachers left out."""
  policy = podracer.load_policy(str(workdir))
  return sum(x.size for x in jax.tree.leaves(policy.params["network"]))


def random_score(env: str, num_episodes: int = 1024, **options: Any) -> float:
  """Returns the mean return of a policy that draws its actions alike."""
  made = podracer.make_environment(env, **options)
  agent = random_agent.make_agent(made.spec)
  assert not isinstance(made, host_environment.HostFactory)
  play = evaluation.make_evaluator(agent, made, num_episodes=num_episodes, greedy=False)
  result = play({}, jax.random.key(0))
  assert result is not None
  return float(np.mean(result.returns))


def evaluate(workdir: pathlib.Path, index: int = 0) -> float:
  """Returns the mean return of one seed of a run, played greedily from the same starts as all others."""
  run("evaluate", f"--workdir={workdir}", f"--episodes={EPISODES}", f"--seed_index={index}")
  return float(json.loads((workdir / "evaluation.json").read_text())["return_mean"])


def measure(name: str, task: Task, out: pathlib.Path, teacher: str) -> dict:
  """Trains what is missing of a task, and returns its scores."""
  teacher_dir = pathlib.Path(teacher.partition("#")[0] or out / f"{name}-teacher")
  if not (teacher_dir / "evaluation.json").exists():
    run("train", f"--env={task.env}", f"--workdir={teacher_dir}")
  index = int(teacher.partition("#")[2] or 0)
  size, expert = num_parameters(teacher_dir), evaluate(teacher_dir, index)
  random = random_score(task.env)
  students = []
  for i, flags in enumerate(task.students):
    workdir = out / f"{name}-{i}"
    run(
      *("distill", f"--teacher={teacher or teacher_dir}", f"--workdir={workdir}"),
      *(f"--num_seeds={NUM_SEEDS}", f"--num_env_steps={task.num_env_steps}"),
      *flags,
    )
    found = [evaluate(workdir, seed) for seed in range(NUM_SEEDS)]
    students.append(
      {
        "network": " ".join(flags),
        "size": num_parameters(workdir) / size,
        "returns": found,
        "score": [(value - random) / (expert - random) for value in found],
      }
    )
  return {"teacher": expert, "random": random, "parameters": size, "students": students}


def draw(results: dict[str, dict], path: pathlib.Path) -> None:
  """Draws score against size, the mean and the seeds."""
  figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  axes.axhline(100, color="0.6", linewidth=1)
  for name, result in results.items():
    sizes = [100 * student["size"] for student in result["students"]]
    score = 100 * np.array([student["score"] for student in result["students"]])
    (line,) = axes.plot(sizes, score.mean(axis=1), marker="o", label=name)
    axes.plot(sizes, score, ".", color=line.get_color(), alpha=0.5)
  axes.set(
    xscale="log", xlabel="parameters, % of the teacher's", ylabel="score, % of the teacher's"
  )
  axes.set_xticks([4, 7, 25], ["4", "7", "25"], minor=False)
  axes.set_xticks([], minor=True)
  axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
  axes.legend()
  figure.savefig(path, dpi=150)


def main() -> None:
  """Measures, prints and draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--tasks", nargs="+", choices=[*TASKS], default=[*TASKS])
  parser.add_argument(
    "--teachers",
    nargs="*",
    default=[],
    help="task=workdir of a run to take; its evaluation.json is written anew",
  )
  flags = parser.parse_args()
  given = dict(pair.split("=", 1) for pair in flags.teachers)
  path = flags.out / "sizes.json"
  results = json.loads(path.read_text()) if path.exists() else {}
  for name in flags.tasks:
    results[name] = measure(name, TASKS[name], flags.out, given.get(name, ""))
    path.write_text(json.dumps(results, indent=2) + "\n")
  for name, result in results.items():
    for student in result["students"]:
      print(
        f"{name:10} {100 * student['size']:5.1f} % of {result['parameters']:,} parameters: "
        f"{100 * np.mean(student['score']):6.1f} % of the score "
        f"({', '.join(f'{value:.2f}' for value in student['returns'])}; teacher "
        f"{result['teacher']:.2f}, random {result['random']:.2f})"
      )
  draw(results, flags.out / "sizes.png")


if __name__ == "__main__":
  main()
