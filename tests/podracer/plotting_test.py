import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from podracer import config as config_lib
from podracer import plotting


def write_run(workdir, rows, config=None):
  workdir.mkdir(parents=True)
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  if config is not None:
    (workdir / "config.json").write_text(json.dumps(config))
  return workdir


def rising(num_rows=120, step=100, offset=0.0):
  return [
    {"env_steps": step * i, "episode_return_mean": i + offset, "steps_per_second": 1e6}
    for i in range(num_rows)
  ]


def config_of(seed=0, learning_rate=1e-3, env="gymnax:Catch-bsuite"):
  return {"env": env, "agent": "impala", "seed": seed, "config": {"learning_rate": learning_rate}}


class Recorder:
  """Keeps the figures that are saved."""

  def __init__(self, monkeypatch):
    self.figures = []
    save = plotting._save
    monkeypatch.setattr(
      plotting, "_save", lambda figure, path: self.figures.append(figure) or save(figure, path)
    )

  def labels(self, axes=0):
    return self.figures[-1].axes[axes].get_legend_handles_labels()[1]


@pytest.fixture
def recorder(monkeypatch):
  return Recorder(monkeypatch)


def is_png(path):
  return path.read_bytes().startswith(b"\x89PNG")


def test_learning_curve_of_training_and_evaluation(tmp_path, recorder):
  rows = rising()
  rows[40] |= {"evaluation/return_mean": 50.0, "evaluation/return_std": 5.0}
  rows[5]["episode_return_mean"] = None
  path = plotting.draw_learning_curve(write_run(tmp_path / "run", rows, config_of()))
  assert path == tmp_path / "run" / "learning_curve.png"
  assert is_png(path)
  assert sorted(p.name for p in path.parent.iterdir()) == [
    "config.json",
    "learning_curve.png",
    "metrics.jsonl",
  ]
  assert recorder.labels() == ["training", "evaluation, mean ± std of episodes"]
  axes, speed = recorder.figures[0].axes
  assert axes.get_title(loc="left") == "gymnax:Catch-bsuite  ·  impala"
  assert speed.get_ylabel() == "steps / s"


def test_learning_curve_of_several_seeds_has_a_band(tmp_path, recorder):
  rows = [
    {
      "env_steps": i,
      "episode_return_mean": 1.0,
      "seeds/episode_return_mean": [0.0, 2.0, None],
      "evaluation/return_mean": 1.0,
      "seeds/evaluation/return_mean": [0.5, 1.5],
    }
    for i in range(1, 4)
  ]
  plotting.draw_learning_curve(write_run(tmp_path / "run", rows))
  assert recorder.labels() == [
    "training, mean ± std of 2 seeds",
    "evaluation, mean ± std of seeds",
  ]
  assert recorder.figures[0].axes[0].get_title(loc="left") == "run"


def test_learning_curve_of_several_tasks_has_a_panel_each(tmp_path, recorder):
  """Their returns are of different sizes, so that one panel would show one task, and a mean none."""
  rows = [
    {
      "env_steps": i,
      "episode_return_mean": 50.0 * i,
      "task/gymnax:CartPole-v1/episode_return_mean": 100.0 * i,
      "task/gymnax:Catch-bsuite/episode_return_mean": None if i == 1 else 0.1 * i,
      "task/gymnax:Catch-bsuite/episodes": i,
    }
    for i in range(1, 4)
  ]
  rows[-1] |= {
    "evaluation/return_mean": 200.0,
    "task/gymnax:Catch-bsuite/evaluation/return_mean": 1.0,
  }
  plotting.draw_learning_curve(write_run(tmp_path / "run", rows))
  cartpole, catch, speed = recorder.figures[0].axes
  assert [axes.get_title(loc="left") for axes in (cartpole, catch)] == [
    "gymnax:CartPole-v1",
    "gymnax:Catch-bsuite",
  ]
  assert cartpole.lines[0].get_xydata().tolist() == [[1, 100], [2, 200], [3, 300]]
  np.testing.assert_allclose(catch.lines[0].get_xydata(), [[2, 0.2], [3, 0.3]])
  assert recorder.labels(1) == ["training", "evaluation"]
  assert speed.get_xlabel() == "environment steps"


def test_one_point_is_enough(tmp_path):
  assert is_png(plotting.draw_learning_curve(write_run(tmp_path / "a", rising(1))))
  only_evaluated = [{"env_steps": 3, "evaluation/return_mean": 1.0}]
  assert is_png(plotting.draw_learning_curve(write_run(tmp_path / "b", only_evaluated)))


def test_threads_may_draw(tmp_path):
  runs = [write_run(tmp_path / str(i), rising(20)) for i in range(3)]
  threads = [threading.Thread(target=plotting.draw_learning_curve, args=(run,)) for run in runs]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert all(is_png(run / "learning_curve.png") for run in runs)


def test_runs_that_differ_in_the_seed_only_are_one_line(tmp_path, recorder):
  runs = [
    write_run(tmp_path / f"catch-seed{i}", rising(100 + i, 90 + i, i), config_of(seed=i))
    for i in range(3)
  ]
  runs.append(write_run(tmp_path / "slow", rising(), config_of(learning_rate=1e-5)))
  out = plotting.plot_runs(runs, tmp_path / "new" / "out.png")
  assert is_png(out)
  assert recorder.labels() == ["catch (3 seeds)", "slow"]
  assert recorder.figures[0].axes[0].get_title(loc="left") == "gymnax:Catch-bsuite"


def test_seeds_inside_a_run_and_runs_of_one_seed_come_together(tmp_path, recorder):
  both = [{"env_steps": i, "seeds/episode_return_mean": [1.0, 2.0]} for i in range(5)]
  runs = [
    write_run(tmp_path / "run_1", both, config_of(seed=1) | {"num_seeds": 2}),
    write_run(tmp_path / "run_2", rising(5, 1), config_of(seed=3) | {"num_seeds": 1}),
  ]
  plotting.plot_runs(runs, tmp_path / "out.svg")
  assert recorder.labels() == ["run (3 seeds)"]


def test_equal_names_are_told_apart_by_their_settings(tmp_path, recorder):
  runs = [
    write_run(tmp_path / folder / "run", rising(5), config_of(learning_rate=rate))
    for folder, rate in (("a", 0.1), ("b", 0.2))
  ]
  plotting.plot_runs(runs, tmp_path / "out.png")
  assert recorder.labels() == ["run, learning_rate=0.1", "run, learning_rate=0.2"]


def test_more_runs_than_colours_get_other_line_styles(tmp_path, recorder):
  runs = [write_run(tmp_path / f"{i}", rising(3)) for i in range(len(plotting.PALETTE) + 2)]
  plotting.plot_runs(runs, tmp_path / "out.png")
  looks = [(x.get_color(), x.get_linestyle()) for x in recorder.figures[0].axes[0].get_lines()]
  assert len(set(looks)) == len(runs)


def test_mean_and_band_interpolates_where_half_of_the_curves_are():
  curves = [
    plotting.Curve(np.array([0.0, 100.0]), np.array([0.0, 100.0])),
    plotting.Curve(np.array([0.0, 50.0, 100.0]), np.array([2.0, 52.0, 102.0])),
    plotting.Curve(np.array([0.0, 400.0]), np.array([1.0, 401.0])),
  ]
  x, mean, deviation = plotting.mean_and_band(curves)
  assert x[0] == 0
  assert x[-1] <= 100
  np.testing.assert_allclose(mean, x + 1)
  np.testing.assert_allclose(deviation, np.sqrt(2 / 3))


def test_smoothed_keeps_the_length_and_a_constant():
  np.testing.assert_allclose(plotting.smoothed(np.full(7, 3.0), 4), 3.0)
  np.testing.assert_allclose(plotting.smoothed(np.array([0.0, 3.0, 6.0]), 2), [1.5, 3.0, 4.5])
  np.testing.assert_allclose(plotting.smoothed(np.array([0.0, 3.0]), 0), [0.0, 3.0])


def test_what_cannot_be_drawn_is_one_line(tmp_path):
  empty = write_run(tmp_path / "empty", [{"env_steps": 1, "episode_return_mean": None}])
  good = write_run(tmp_path / "good", rising(3))
  (tmp_path / "none").mkdir()
  for draw, message in [
    (lambda: plotting.draw_learning_curve(tmp_path / "none"), "it has no metrics.jsonl"),
    (lambda: plotting.draw_learning_curve(empty), "no point of episode_return_mean"),
    (lambda: plotting.plot_runs([], tmp_path / "x.png"), "no run given"),
    (lambda: plotting.plot_runs([tmp_path / "none"], tmp_path / "x.png"), "no metrics.jsonl"),
    (lambda: plotting.plot_runs([good], tmp_path / "x.png", metric="lost"), "no point of lost"),
    (lambda: plotting.plot_runs([good], tmp_path / "x.exe"), "suffix must be one of"),
  ]:
    with pytest.raises(config_lib.InputError, match=message) as error:
      draw()
    assert "\n" not in str(error.value)
  assert not list(tmp_path.glob("*.tmp"))


def test_importing_does_not_import_matplotlib():
  code = "import sys; from podracer import plotting; assert 'matplotlib' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
