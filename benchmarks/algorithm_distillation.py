"""Algorithm distillation in dark rooms, on goals that no history has (Laskin et al. 2022).

It records the learning histories of IMPALA for most goals of a room (or takes those that are there), and
trains three decoders of one size from them: on the histories; on what a filter leaves of these, the episodes of
a return of 5 or more, several of them in a sequence; and on such episodes one by one, behaviour cloning. Each
then plays the goals that were held out, ten episodes in a row without any gradient step. On a core a decoder
takes a quarter of an hour, behaviour cloning 4 minutes, and the recording of a goal 10 seconds.

python benchmarks/algorithm_distillation.py --out=rooms
"""

import argparse
import json
import pathlib

import distillation
import matplotlib.figure
import numpy as np

from podracer.launch import experiment

ENVIRONMENT = "podracer.darkroom:dark_room"
SIZE, NUM_STEPS = 5, 10
HELD_OUT = (0, 7, 14, 16, 23)
"""Goals, one in each row and in each column."""
MIDDLE = SIZE * SIZE // 2
NUM_ENVIRONMENTS = 128
"""That play each held-out goal."""

_GOOD = "--filter=min_return:5"
_HISTORIES = ("--config.histories", "--config.context=256", "--config.sequences_per_task=16")
METHODS = {
  "algorithm distillation": (*_HISTORIES, "--config.history_stride=2"),
  "good episodes in context": (*_HISTORIES, _GOOD),
  "behaviour cloning": (
    *(_GOOD, "--config.prompt_fraction=0", "--config.num_prompts=0"),
    *("--config.context=48", "--config.sequences_per_task=32"),
  ),
}


def room(goal: int) -> tuple[str, ...]:
  """Returns the options of the room with a goal."""
  return (f"goal={goal}", f"size={SIZE}", f"num_steps={NUM_STEPS}", "coordinates=true")


def record(out: pathlib.Path) -> pathlib.Path:
  """Records the histories that are missing, and returns where all of them are."""
  workdirs = []
  for goal in range(SIZE * SIZE):
    if goal in (*HELD_OUT, MIDDLE):
      continue
    workdirs.append(out / "rooms" / str(goal))
    if not (workdirs[-1] / "evaluation.json").exists():
      distillation.run(
        *("train", f"--env={ENVIRONMENT}", "--env_options", *room(goal)),
        *("--num_environments=64", "--unroll_length=10", "--num_env_steps=32_000"),
        *("--config.learning_rate=2e-2", "--record=1.0", "--record_histories"),
        f"--workdir={workdirs[-1]}",
      )
  data = out / "rooms_data"
  if not data.exists():
    distillation.run(
      "data", "merge", *(str(workdir / "data") for workdir in workdirs), f"--out={data}"
    )
  return data


def played(
  workdir: pathlib.Path, data: pathlib.Path, method: str, seed: int, num_updates: int, episodes: int
) -> np.ndarray:
  """Trains what is missing, and returns `[G, Q]` mean returns of the held-out goals by the episode."""
  distillation.run(
    *("generalist", "train", f"--data={data}", f"--workdir={workdir}", f"--seed={seed}"),
    *(f"--num_updates={num_updates}", "--config.learning_rate=2e-3", "--evaluate_episodes=0"),
    *METHODS[method],
  )
  # Whoever forgets where an episode begins has one return for all of them.
  has_context = "--config.histories" in METHODS[method]
  in_context = (f"--in_context_episodes={episodes}",) if has_context else ()
  rooms = [f"--env_options={' '.join(room(goal))}" for goal in HELD_OUT]
  distillation.run(
    *("generalist", "evaluate", f"--workdir={workdir}", "--mode=sample", *in_context, *rooms),
    f"--episodes={len(HELD_OUT) * NUM_ENVIRONMENTS}",
  )
  (found,) = json.loads((workdir / "evaluation.json").read_text())["tasks"].values()
  by_goal = np.array(found["return_mean_by_variant"])
  return by_goal if has_context else np.repeat(by_goal, episodes, axis=1)


def draw(results: dict[str, np.ndarray], path: pathlib.Path) -> None:
  """Draws `[seeds, G, Q]` returns against the number of the episode, the mean and each seed."""
  figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
  axes = figure.subplots()
  for method, returns in results.items():
    by_seed = returns.mean(axis=1)
    numbers = np.arange(1, by_seed.shape[1] + 1)
    (line,) = axes.plot(numbers, by_seed.mean(axis=0), label=f"{method} ({len(by_seed)} seeds)")
    axes.plot(numbers, by_seed.T, color=line.get_color(), alpha=0.4, linewidth=0.8)
  axes.set(xlabel="episode in context", ylabel="return, mean of the held-out goals")
  axes.set_ylim(bottom=0)
  axes.legend()
  figure.savefig(path, dpi=150)


def main() -> None:
  """Measures, prints and draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--num_updates", type=int, default=3000)
  parser.add_argument("--episodes", type=int, default=10, help="in a row")
  flags = parser.parse_args()
  flags.out.mkdir(parents=True, exist_ok=True)
  data = record(flags.out)
  results = {}
  for method in METHODS:
    by_seed = []
    for seed in flags.seeds:
      workdir = flags.out / f"{method.replace(' ', '_')}-{seed}"
      by_seed.append(played(workdir, data, method, seed, flags.num_updates, flags.episodes))
    results[method] = np.stack(by_seed)
  values = {method: returns.tolist() for method, returns in results.items()}
  (flags.out / "results.json").write_text(json.dumps({"held_out": HELD_OUT, "returns": values}))
  draw(results, flags.out / "algorithm_distillation.png")
  rooms = [experiment.parse_options(room(goal)) for goal in HELD_OUT]
  random = np.array([distillation.random_score(ENVIRONMENT, 4096, **options) for options in rooms])
  print(f"random actions: {random.mean():.2f} ({', '.join(f'{x:.2f}' for x in random)})")
  for method, returns in results.items():
    first, last = returns[..., 0], returns[..., -1]
    print(f"{method}: {first.mean():.2f} in the first episode, {last.mean():.2f} in the last one;")
    for goal, a, b in zip(HELD_OUT, first.T, last.T, strict=True):
      print(
        f"  goal {goal}: " + ", ".join(f"{x:.2f} -> {y:.2f}" for x, y in zip(a, b, strict=True))
      )


if __name__ == "__main__":
  main()
