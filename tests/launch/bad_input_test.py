"""What a newcomer gets wrong: one line that says what is valid, exit code 2, before JAX starts."""

import json
import subprocess
import sys

import pytest

from podracer.launch import main as main_lib

CATCH = ("train", "--env=gymnax:Catch-bsuite")
TASKS = ("train", "--env=gymnax:Catch-bsuite+gymnax:CartPole-v1")
MUZERO = (*CATCH, "--agent=muzero")

# arguments, what the line must contain
CASES = [
  (("trian",), "unknown command trian; nearest: train"),
  (("train",), "no environment given"),
  (("train", "--env=gymnax:Brekout-MinAtar"), "nearest: gymnax:Breakout-MinAtar"),
  (("train", "--env=Breakout"), "gymnax:Breakout-MinAtar"),
  (("train", "--env=no_such_package.module:make"), "unknown environment no_such_package"),
  ((*CATCH, "--agent=imapla"), "unknown agent imapla; nearest: impala"),
  ((*CATCH, "--architecture=anikan"), "unknown architecture anikan; nearest: anakin"),
  ((*CATCH, "--config.learning_rat=1"), "nearest: --config.learning_rate"),
  ((*CATCH, "--config.learning_rate=-1"), "learning_rate must be above 0, got -1.0"),
  ((*CATCH, "--config.learning_rate=nan"), "learning_rate must be above 0, got nan"),
  ((*CATCH, "--config.discount=1.5"), "discount must be between 0 and 1, got 1.5"),
  ((*CATCH, "--config.optimizer=adma"), "Expected one of ('adam', 'rmsprop', 'sgd')"),
  ((*CATCH, "--config.network.torso=vgg"), "Expected one of ('auto', 'mlp'"),
  ((*CATCH, "--config.network.hidden_sizes", "64", "-1"), "hidden_sizes must all be above 0"),
  ((*CATCH, "--num_environments=ten"), "--num_environments"),
  ((*CATCH, "--config.popart=True"), "a yes-or-no option takes no value"),
  ((*CATCH, "--num_environments=0"), "num_environments must be above 0"),
  ((*CATCH, "--num_environments=10", "--num_devices=4"), "not divisible by the 4 devices"),
  ((*CATCH, "--num_environments=10", "--config.num_minibatches=4"), "does not divide the 10"),
  (
    ("train", "--env=gymnax:Catch-bsuite+gymnax:CatPole-v1"),
    "unknown environment gymnax:CatPole-v1",
  ),
  (("train", "--env=gymnax:Catch-bsuite+"), "a name is missing beside a +"),
  ((*TASKS, "--num_environments=6", "--num_devices=2"), "by the 2 tasks; take a multiple of 4"),
  ((*TASKS, "--record=0.5"), "has several tasks, which can't be recorded"),
  (
    (*TASKS, "--architecture=sebulba", "--environment_mode=async"),
    "environment_mode=async is for environments of one task",
  ),
  ((*CATCH, "--seed=-1"), "seed must be at least 0, got -1"),
  ((*CATCH, "--num_env_steps=0"), "num_env_steps must be above 0"),
  ((*CATCH, "--max_checkpoints=1"), "max_checkpoints must be at least 2"),
  ((*CATCH, "--env_options", "rows"), "env_options takes name=value, got 'rows'"),
  (
    (*CATCH, "--env_options", "rows=5", "--env-options=columns=5"),
    "--env_options is given twice: write all its values behind one, --env_options A B",
  ),
  (
    (*CATCH, "--config.network.hidden_sizes", "5", "--config.network.hidden_sizes", "6"),
    "--config.network.hidden_sizes is given twice",
  ),
  ((*MUZERO, "--config.search.num_simulations=0"), "search.num_simulations must be above 0, got 0"),
  ((*MUZERO, "--config.search.policy=mcts"), "Expected one of ('gumbel', 'muzero', 'stochastic')"),
  (
    (*MUZERO, "--config.unroll_steps=20", "--unroll_length=16"),
    "more than the 16 steps of an unroll",
  ),
  ((*MUZERO, "--config.network.lstm_size=8"), "MuZero reads single observations"),
  ((*MUZERO, "--config.replay.reanalyse_fraction=0.5"), "needs a replay: replay.capacity is 0"),
  (
    (*MUZERO, "--config.replay.capacity=9000"),
    "replay.batch_size and replay.gradient_steps instead",
  ),
  (("evaluate",), "--workdir"),
  (("evaluate", "--workdir=nowhere"), "workdir nowhere does not exist"),
  (("watch", "--workdir=nowhere"), "workdir nowhere does not exist"),
  (("watch", "--workdir=x", "--out=x.avi"), "out must end in .mp4 or .gif, got x.avi"),
  (("plot",), "no run directory given"),
  (("plot", "nowhere"), "nowhere"),
  (("envs", "atari2600"), "no environment fits atari2600"),
]


def assert_one_line(capsys, args, expected):
  with pytest.raises(SystemExit) as stop:
    main_lib.main(args)
  captured = capsys.readouterr()
  assert stop.value.code == 2
  assert captured.out == ""
  assert captured.err.count("\n") == 1, captured.err
  assert expected in captured.err
  assert "Traceback" not in captured.err


@pytest.mark.parametrize(("args", "expected"), CASES, ids=lambda x: " ".join(x)[:60])
def test_one_line_and_exit_code_2(args, expected, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert_one_line(capsys, args, expected)
  assert list(tmp_path.iterdir()) == [], "something was left behind"


@pytest.mark.parametrize("args", [case[0] for case in CASES[1:8]], ids=" ".join)
def test_answered_before_jax_is_imported(args, tmp_path):
  code = (
    "import sys\nfrom podracer.launch import main\n"
    f"try: main.main({list(args)!r})\n"
    "except SystemExit as stop: assert stop.code == 2\n"
    "assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_workdir_that_is_something_else(capsys, tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  assert_one_line(capsys, (*CATCH, f"--workdir={tmp_path}"), "is not empty and not a run")
  assert_one_line(capsys, ("evaluate", f"--workdir={tmp_path}"), "is not a run")
  file = tmp_path / "thesis.tex"
  assert_one_line(capsys, (*CATCH, f"--workdir={file}"), "is not a directory")
  assert file.read_text() == "years of work"


def make_run(workdir, **changes):
  """Writes the config.json of a run that has not begun."""
  from podracer.launch import experiment

  made = experiment.default_experiment("impala", "anakin", "gymnax:Catch-bsuite")
  values = {**experiment.to_json(made), **changes}
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(values))


def test_a_changed_configuration_is_shown(capsys, tmp_path):
  workdir = tmp_path / "run"
  make_run(workdir)
  before = (workdir / "config.json").read_text()
  args = ("train", f"--workdir={workdir}", "--config.discount=0.5", "--seed=3")
  assert_one_line(capsys, args, "config.discount: 0.99 -> 0.5; seed: 0 -> 3")
  args = ("train", f"--workdir={workdir}", "--env=gymnax:CartPole-v1")
  assert_one_line(capsys, args, "env: gymnax:Catch-bsuite -> gymnax:CartPole-v1")
  assert (workdir / "config.json").read_text() == before


def test_a_damaged_configuration_is_named(capsys, tmp_path):
  workdir = tmp_path / "run"
  make_run(workdir, colour="red")
  for command in ("train", "evaluate", "watch"):
    assert_one_line(capsys, (command, f"--workdir={workdir}"), "unknown field colour")
  (workdir / "config.json").write_text('{"env": ')
  assert_one_line(capsys, ("train", f"--workdir={workdir}"), "config.json cannot be read")


def test_a_run_without_a_checkpoint(capsys, tmp_path):
  workdir = tmp_path / "run"
  make_run(workdir)
  assert_one_line(capsys, ("evaluate", f"--workdir={workdir}"), "has no checkpoint yet")


@pytest.mark.parametrize("command", main_lib.COMMANDS)
def test_help(command, capsys):
  args = (command, "--help") if command != "train" else (*CATCH, "--help")
  with pytest.raises(SystemExit) as stop:
    main_lib.main(args)
  assert stop.value.code == 0
  assert f"usage: podracer {command}" in capsys.readouterr().out


def test_help_of_the_command_itself(capsys):
  main_lib.main(["--help"])
  out = capsys.readouterr().out
  assert all(command in out for command in main_lib.COMMANDS)
