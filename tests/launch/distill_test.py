"""`podracer distill`: what it takes from teachers, what it refuses, and a student without its teacher's run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import podracer
from podracer import config as config_lib
from podracer import data, host_environment
from podracer.launch import distill, experiment, policy, teachers, train
from podracer.launch import main as main_lib

CATCH, CARTPOLE = "gymnax:Catch-bsuite", "gymnax:CartPole-v1"


def make_run(workdir, env=CATCH, **changes):
  """Writes the configuration of a teacher's run."""
  made = experiment.default_experiment("impala", "anakin", env)
  config = {name: changes.pop(name) for name in ("discount", "reward_clip") if name in changes}
  made = dataclasses.replace(
    made, config=dataclasses.replace(made.config, **config), workdir=str(workdir), **changes
  )
  experiment.write(made)
  return str(workdir)


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_the_teacher_gives_the_defaults(here):
  make_run("runs/a", env_options=("rows=5",), discount=0.9, reward_clip="unit")
  wanted = distill.parse(["--teacher=runs/a", "--config.learning_rate=0.1"])
  assert (wanted.agent, wanted.env, wanted.architecture) == ("distillation", CATCH, "anakin")
  assert wanted.env_options == ("rows=5",)
  assert wanted.workdir == "runs/Catch-bsuite-distillation"
  assert wanted.config.teachers == ("runs/a",)
  assert (wanted.config.discount, wanted.config.reward_clip) == (0.9, "unit")
  assert wanted.config.learning_rate == 0.1 and wanted.config.reinforcement_cost == 0.0
  # As train writes and reads it.
  values = json.loads(json.dumps(experiment.to_json(wanted)))
  assert experiment.from_json(values, wanted.workdir) == wanted


def test_kickstarting_is_one_flag_and_flags_go_before_it(here):
  make_run("runs/a")
  wanted = distill.parse(["--teacher", "runs/a", "--kickstart"])
  assert wanted.config.reinforcement_cost == 1.0
  assert wanted.config.distillation_schedule == "linear" and wanted.config.value_loss == "none"
  wanted = distill.parse(
    ["--teacher=runs/a", "--kickstart", "--config.distillation_schedule=cosine"]
  )
  assert wanted.config.distillation_schedule == "cosine"


def test_schedules_are_as_long_as_the_run_wants_them(here):
  make_run("runs/a")
  flags = ["--teacher=runs/a", "--num_environments=10", "--unroll_length=10"]
  flags += ["--num_env_steps=10000", "--config.num_minibatches=2"]
  # 100 updates of two gradient steps.
  wanted = distill.parse(flags)
  assert (wanted.config.distillation_steps, wanted.config.control_steps) == (100, 100)
  wanted = distill.parse([*flags, "--config.distillation_schedule=until_passed"])
  assert wanted.config.distillation_steps == 10
  wanted = distill.parse([*flags, "--config.distillation_steps=7", "--config.control_steps", "9"])
  assert (wanted.config.distillation_steps, wanted.config.control_steps) == (7, 9)


def test_teachers_of_several_environments_are_tasks(here):
  make_run("runs/a", env_options=("rows=5",))
  make_run("runs/b", CARTPOLE)
  make_run("runs/c", env_options=("rows=5",))
  wanted = distill.parse(["--teacher=runs/a", "--teacher=runs/b", "--teacher=runs/c"])
  assert wanted.env == f"{CATCH}+{CARTPOLE}"
  assert wanted.env_options == ("0.rows=5",)
  assert wanted.config.teachers == ("runs/a", "runs/b", "runs/c")


def test_the_same_command_goes_on_and_another_is_refused(here):
  make_run("runs/a")
  make_run("runs/b")
  args = ["--teacher=runs/a", "--workdir=runs/s", "--kickstart"]
  wanted = distill.parse(args)
  experiment.write(wanted)
  teachers.keep(wanted)
  assert distill.parse(args) == wanted
  assert train.parse(["--workdir=runs/s"]) == wanted
  assert distill.parse(["--workdir=runs/s"]) == wanted
  with pytest.raises(config_lib.InputError, match=r"config.teachers: \['runs/a'\] -> "):
    distill.parse(["--teacher=runs/b", "--workdir=runs/s"])
  # Before its first checkpoint it still needs the teacher's.
  shutil.rmtree("runs/a")
  with pytest.raises(config_lib.InputError, match="teacher runs/a: workdir runs/a does not exist"):
    distill.parse(args)
  (here / "runs/s/checkpoints/7").mkdir(parents=True)
  assert distill.parse(args) == wanted


BAD = [
  ([], "no teacher given: --teacher=<directory of a run>"),
  (["--teacher=nowhere"], "teacher nowhere: workdir nowhere does not exist"),
  (["--teacher=empty"], "teacher empty: workdir empty is not a run"),
  (["--teacher=runs/a#1"], "teacher runs/a#1: the policies of runs/a are 0 .. 0"),
  (["--teacher=runs/a", "--agent=impala"], "trains --agent=distillation, got impala"),
  (["--teacher=runs/a", "--config.temprature=2"], "nearest: --config.temperature"),
  (["--teacher=runs/a", "--config.temperature=0"], "temperature must be above 0, got 0.0"),
  (["--teacher=runs/a", "--architecture=anikan"], "unknown architecture anikan; nearest: anakin"),
  (["--teacher=runs/a", "--env=nothing"], "unknown environment nothing"),
  (
    ["--teacher=runs/a", f"--env={CARTPOLE}+gymnax:Acrobot-v1"],
    f"teacher runs/a was trained in {CATCH}, which is none of the tasks",
  ),
  (["--teacher=runs/a", "--workdir=runs/a"], "runs/a holds a run of impala"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=lambda x: " ".join(x)[:50])
def test_what_is_wrong_is_one_line_and_nothing_is_written(args, message, here, capsys):
  make_run("runs/a")
  (here / "empty").mkdir()
  before = sorted(here.rglob("*"))
  with pytest.raises(SystemExit) as stop:
    main_lib.main(["distill", *args])
  captured = capsys.readouterr()
  assert stop.value.code == 2 and captured.out == ""
  assert message in captured.err and captured.err.count("\n") == 1
  assert sorted(here.rglob("*")) == before


def test_train_too_asks_for_a_teacher(here):
  with pytest.raises(config_lib.InputError, match="no teacher given: --config"):
    train.parse([f"--env={CATCH}", "--agent=distillation"])


def test_recorded_data_needs_no_teacher(here):
  made = experiment.default_experiment("distillation", "anakin", CATCH)
  with pytest.raises(config_lib.InputError, match="no teacher given"):
    teachers.check(made)
  offline = experiment.default_experiment("distillation", "offline", CATCH)
  teachers.check(offline)
  assert teachers.load(offline) == []


def test_names_of_teachers():
  assert teachers.split_name("runs/a") == ("runs/a", 0)
  assert teachers.split_name("runs/a#2") == ("runs/a", 2)
  assert teachers.split_name("runs/a#b") == ("runs/a#b", 0)


@pytest.fixture(scope="module")
def student(finished, tmp_path_factory):
  """A small student, trained by the command, whose teacher's run is gone; and what the run printed."""
  run = type(finished)(tmp_path_factory.mktemp("student"))
  shutil.copytree(finished.workdir, run.root / "teacher")
  args = (
    "distill",
    "--teacher=teacher",
    "--workdir=run",
    "--num_env_steps=20000",
    "--num_environments=16",
    "--num_devices=1",
    "--evaluate_episodes=16",
    "--config.learning_rate_schedule=constant",
    "--config.network.hidden_sizes",
    "8",
  )
  code, out, err = run.command(*args)
  assert code == 0, out + err
  shutil.rmtree(run.root / "teacher")
  return run, args


def test_the_student_learns_its_teacher(student, finished):
  run, _ = student
  rows = run.rows()
  assert rows[-1]["distillation/kl"] < rows[0]["distillation/kl"]
  assert rows[-1]["distillation/lambda_0"] == 1.0
  config = json.loads((run.workdir / "config.json").read_text())
  assert config["config"]["teachers"] == ["teacher"] and config["agent"] == "distillation"
  kept = json.loads((run.workdir / "teachers/0/config.json").read_text())
  assert kept == json.loads((finished.workdir / "config.json").read_text())


def test_it_is_loaded_without_the_teacher_s_run_and_acts_by_itself(student, finished):
  run, _ = student
  loaded = policy.LoadedRun(str(run.workdir))
  teacher = policy.LoadedRun(str(finished.workdir)).params()
  jax.tree.map(np.testing.assert_array_equal, loaded.params()["teachers"], (teacher,))
  played = podracer.load_policy(str(run.workdir))
  environment = podracer.make_environment("podracer.testing:probe_memory")
  timestep = host_environment.JaxHostEnvironment(environment, 4, seed=0).reset()
  action, state = played(timestep, played.initial_state(4))
  assert action.shape == (4,) and not jax.tree.leaves(state)
  output, _ = loaded.agent.act(loaded.params(), jax.random.key(0), timestep, state, False)
  assert output.teacher_logits is None


def test_it_goes_on_and_is_evaluated_and_recorded_without_the_teacher_s_run(student):
  run, args = student
  code, out, err = run.command(*(arg.replace("=20000", "=30000") for arg in args))
  assert code == 0 and "resumed at 20,0" in out, out + err
  code, out, err = run.command("evaluate", "--workdir=run", "--episodes=16")
  assert code == 0 and "evaluation (greedy, 16 whole episodes)" in out, out + err
  code, out, err = run.command(
    "record", "--workdir=run", "--episodes=16", "--out=recorded", "--score_episodes=16"
  )
  assert code == 0, out + err
  (dataset,) = data.open(str(run.root / "recorded"))
  fields = {field.name: (field.shape, field.dtype) for field in dataset.schema.fields}
  assert fields["teacher_logits"] == ((2,), "float16")
  assert fields["teacher_value"] == ((), "float32")
  assert fields["teacher_action"] == ((), "int32")
