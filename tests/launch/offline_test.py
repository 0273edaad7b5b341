"""Learning from recorded data, from the command line to a policy that is loaded."""

import json

import pytest

import podracer
from podracer import config, data
from podracer.launch import distill, policy
from podracer.launch import main as main_lib

TEACHER = (
  "--env=gymnax:Catch-bsuite",
  "--num_env_steps=3000",
  "--num_environments=8",
  "--unroll_length=10",
  "--evaluate_episodes=4",
  "--num_devices=1",
)
STUDENT = (
  "--num_env_steps=2000",
  "--num_windows=8",
  "--unroll_length=5",
  "--evaluate_episodes=4",
  "--num_devices=1",
  "--config.network.hidden_sizes",
  "8",
)


def command(*args):
  """Runs a command in this process; returns its exit code."""
  try:
    main_lib.main([str(arg) for arg in args])
  except SystemExit as stop:
    return stop.code or 0
  return 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  """A collection of twenty episodes of an agent that has hardly learnt."""
  root = tmp_path_factory.mktemp("recorded")
  assert command("train", *TEACHER, f"--workdir={root}/run") == 0
  flags = ("--episodes=20", "--environments=4", "--score_episodes=0")
  assert command("record", f"--workdir={root}/run", *flags, f"--out={root}/data") == 0
  return root / "data"


@pytest.fixture(scope="module")
def student(recorded, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("student") / "run"
  assert command("distill", f"--data={recorded}", *STUDENT, f"--workdir={workdir}") == 0
  return workdir


def test_a_student_of_recorded_data(student, capsys):
  saved = json.loads((student / "config.json").read_text())
  assert (saved["architecture"], saved["env"]) == ("offline", "gymnax:Catch-bsuite")
  rows = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
  assert (
    rows[-1]["env_steps"] >= 2000 and rows[-1]["loss/distillation"] < rows[0]["loss/distillation"]
  )
  assert json.loads((student / "evaluation.json").read_text())["episodes"] == 4
  assert command("distill", f"--workdir={student}") == 0
  assert "nothing to do" in capsys.readouterr().out


def test_it_is_played_and_recorded_as_others_are(student, tmp_path):
  loaded = policy.LoadedRun(str(student))
  assert loaded.experiment.architecture == "anakin"
  assert podracer.load_policy(str(student)).env_steps >= 2000
  assert command("evaluate", f"--workdir={student}", "--episodes=4") == 0
  flags = ("--episodes=4", "--environments=2", "--score_episodes=0")
  assert command("record", f"--workdir={student}", *flags, f"--out={tmp_path}/data") == 0
  (dataset,) = data.open(tmp_path / "data")
  assert len(dataset) == 4


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--data=nowhere",), "nowhere is not a directory"),
    (("--data={data}", "--teacher={run}"), "no other is asked"),
    (("--data={data}", "--record=0.5", "--workdir={out}"), "plays nothing to record"),
    (("--data={data}", "--filters", "min_return:5", "--workdir={out}"), "leaves none of the 20"),
    (
      ("--data={data}", "--env=gymnax:CartPole-v1", "--workdir={out}"),
      "no task gymnax_cart_pole_v1",
    ),
    (("--data={data}", "--num_windows=7", "--num_devices=2"), "num_windows=7 is not divisible"),
  ],
)
def test_what_is_refused_in_one_line(flags, message, recorded, tmp_path, capsys):
  out = tmp_path / "out"
  values = {"data": recorded, "run": recorded.parent / "run", "out": out}
  assert command("distill", *(flag.format(**values) for flag in flags)) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not out.exists()


def test_data_without_logits_is_for_cloning_only(recorded):
  flags = (f"--data={recorded}", "--config.policy_loss=nll")
  assert distill.parse(flags).config.recorded_fields() == ()
  assert distill.parse(flags[:1]).config.recorded_fields() == ("policy_logits",)
  with pytest.raises(config.InputError, match="no teacher given"):
    distill.parse(())
