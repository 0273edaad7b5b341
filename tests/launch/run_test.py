"""A training run as a person starts it: files, names, going on, seeds, environments of one's own."""

import shutil

import pytest

import podracer
from podracer import metrics

ROW = {
  "time", "env_steps", "updates", "steps_per_second", "episodes",
  "episode_return_mean", "episode_length_mean",
}  # fmt: skip
EVALUATION = {
  "env_steps", "episodes", "mode", "return_mean", "return_std", "return_min", "return_max",
  "length_mean",
}  # fmt: skip

MY_GAME = """
from podracer import testing
def make_env(length=4):
  return testing.probe_memory(length)
"""
FAULTY_GAME = """
from podracer import testing
def make_env():
  environment = testing.probe_memory()
  def step(key, state, action):
    raise ValueError("my game is broken")
  return environment._replace(step=step)
"""


@pytest.fixture
def copy(finished, make_run):
  run = make_run("copy")
  shutil.copytree(finished.workdir, run.workdir)
  return run


def test_the_files_of_a_run(finished):
  names = {path.name for path in finished.workdir.iterdir()}
  assert names == {
    "config.json", "checkpoints", "metrics.jsonl", "tensorboard", "learning_curve.png",
    "evaluation.json",
  }  # fmt: skip
  assert len(finished.steps()) >= 1


def test_the_names_of_metrics(finished):
  rows = metrics.read_metrics(finished.workdir)
  assert all(set(row) >= ROW for row in rows)
  assert any(name.startswith("loss/") for name in rows[0])
  for name in ("env_steps", "updates", "episodes", "time"):
    values = [row[name] for row in rows]
    assert values == sorted(values)
  assert rows[-1]["env_steps"] >= 300_000
  assert [("evaluation/return_mean" in row) for row in rows] == [False] * (len(rows) - 1) + [True]


def test_the_names_of_an_evaluation(finished):
  evaluation = finished.evaluation()
  assert set(evaluation) == EVALUATION
  last = finished.rows()[-1]
  assert evaluation["env_steps"] == last["env_steps"]
  assert evaluation["return_mean"] == last["evaluation/return_mean"]
  assert (evaluation["mode"], evaluation["episodes"]) == ("greedy", 16)


def test_after_completion_there_is_nothing_to_do(copy, finished):
  code, out, err = copy.train()
  assert code == 0, err
  assert "nothing to do: the run already has" in out
  copy.assert_same_as(finished)


def test_more_steps_go_on_with_the_workdir_alone(copy, finished):
  code, out, err = copy.command("train", "--workdir=run", "--num_env_steps=310000")
  assert code == 0, err
  before, after = finished.rows(), copy.rows()
  assert f"resumed at {before[-1]['env_steps']:,} environment steps" in out
  assert after[: len(before)] == before
  assert after[-1]["env_steps"] >= 310_000
  assert copy.evaluation()["env_steps"] == after[-1]["env_steps"]


def test_restart_keeps_the_old_run(copy, finished):
  code, out, err = copy.train("--restart", "--num_env_steps=2000", "--seed=5")
  assert code == 0, err
  assert "moved the run that was there to run.1" in out
  old = type(copy)(copy.root)
  old.workdir = copy.root / "run.1"
  old.assert_same_as(finished)
  assert copy.rows()[-1]["env_steps"] < 5000


@pytest.mark.slow
def test_evaluations_on_the_way_do_not_change_training(make_run, finished):
  run = make_run()
  code, _, err = run.train("--evaluate_every=100000")
  assert code == 0, err
  evaluated = [row["env_steps"] for row in run.rows() if "evaluation/return_mean" in row]
  assert [steps // 100_000 for steps in evaluated] == [1, 2, 3]
  assert run.state()[0]["params"] == finished.state()[0]["params"]


def test_several_seeds_train_and_go_on(make_run):
  run = make_run()
  code, out, err = run.train("--num_seeds=2", "--num_env_steps=2000")
  assert code == 0, err
  assert "by seed" in out
  code, out, err = run.command("train", "--workdir=run", "--num_env_steps=6000")
  assert code == 0, err
  assert "resumed at" in out
  assert len(run.evaluation()["seeds/return_mean"]) == 2
  assert len(run.rows()[-1]["seeds/loss/total"]) == 2
  policies = [podracer.load_policy(str(run.workdir), seed_index=i) for i in range(2)]
  import jax

  first, second = (jax.tree.leaves(policy.params) for policy in policies)
  assert any((a != b).any() for a, b in zip(first, second, strict=True))
  with pytest.raises(podracer.InputError, match=r"seed_index must be 0 \.\. 1, got 2"):
    podracer.load_policy(str(run.workdir), seed_index=2)


@pytest.mark.slow
def test_an_environment_of_ones_own(make_run):
  run = make_run()
  (run.root / "my_game.py").write_text(MY_GAME)
  game = ("--env=my_game:make_env", "--env_options", "length=5")
  code, _, err = run.train(*game, "--num_env_steps=2000")
  assert code == 0, err
  assert run.evaluation()["length_mean"] == 5
  code, out, err = run.command("evaluate", "--workdir=run", "--episodes=8", "--mode=sample")
  assert code == 0, err
  assert "my_game:make_env after" in out
  assert (run.evaluation()["episodes"], run.evaluation()["mode"]) == (8, "sample")
  code, out, err = run.train(*game, "--num_env_steps=4000")
  assert code == 0, err
  assert "resumed at" in out


def test_a_fault_in_an_environment_shows_where_it_is(make_run):
  run = make_run()
  (run.root / "my_game.py").write_text(FAULTY_GAME)
  code, _, err = run.train("--env=my_game:make_env")
  assert code == 1
  assert "Traceback" in err
  assert 'raise ValueError("my game is broken")' in err
  assert "my_game.py" in err
  assert not run.steps()
