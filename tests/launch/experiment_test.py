"""The configuration of a run: round trip, differences, presets, options."""

import dataclasses
import fnmatch
import json

import pytest

from podracer import config as config_lib
from podracer import environments
from podracer.launch import experiment, train

CATCH = "gymnax:Catch-bsuite"


def make(env=CATCH):
  return experiment.default_experiment("impala", "anakin", env)


def make_unlike_the_default():
  made = make()
  network = dataclasses.replace(made.config.network, hidden_sizes=(7,), lstm_size=8)
  config = dataclasses.replace(
    made.config, network=network, learning_rate=0.1, learning_rate_schedule="linear"
  )
  machine = dataclasses.replace(made.machine, num_environments=32, updates_per_call=3)
  return dataclasses.replace(
    made,
    config=config,
    machine=machine,
    env_options=("rows=5", "name=a=b"),
    seed=3,
    num_seeds=2,
    workdir="runs/mine",
  )


def test_json_round_trip_keeps_nested_values_and_types():
  for made in (make(), make_unlike_the_default()):
    values = json.loads(json.dumps(experiment.to_json(made)))
    assert experiment.from_json(values, made.workdir) == made


def test_json_does_not_say_where_and_how_it_was_started():
  values = experiment.to_json(dataclasses.replace(make(), restart=True))
  assert "workdir" not in values
  assert "restart" not in values


def test_write_and_read(tmp_path):
  made = dataclasses.replace(make_unlike_the_default(), workdir=str(tmp_path))
  assert not experiment.has_run(str(tmp_path))
  experiment.write(made)
  assert experiment.has_run(str(tmp_path))
  assert experiment.read(str(tmp_path)) == made
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda v: v.update(colour="red"), "unknown field colour in ExperimentConfig"),
    (lambda v: v["config"].update(colour="red"), "unknown field colour in ImpalaConfig"),
    (lambda v: v["config"]["network"].update(colour="red"), "unknown field colour in Network"),
    (lambda v: v.update(agent="dqn"), "unknown agent dqn; there is: impala"),
    (lambda v: v["config"].update(learning_rate=-1), "learning_rate must be above 0"),
  ],
)
def test_a_bad_file_is_named(tmp_path, change, message):
  values = experiment.to_json(make())
  change(values)
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(config_lib.InputError, match=message) as caught:
    experiment.read(str(tmp_path))
  assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"agent": "impala"}'])
def test_a_file_that_is_no_configuration_is_one_error(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(config_lib.InputError, match=r"config\.json cannot be read"):
    experiment.read(str(tmp_path))


def test_differences_name_old_and_new_of_nested_fields():
  changed = make_unlike_the_default()
  assert experiment.differences(make(), make()) == []
  found = experiment.differences(make(), changed)
  assert "seed: 0 -> 3" in found
  assert "config.learning_rate: 0.002 -> 0.1" in found
  assert "config.network.lstm_size: 0 -> 8" in found
  assert "machine.num_environments: 64 -> 32" in found
  assert "env_options: [] -> ['rows=5', 'name=a=b']" in found


def test_what_may_change_is_no_difference():
  changed = dataclasses.replace(
    make(),
    num_env_steps=1,
    workdir="elsewhere",
    evaluate_every=5,
    evaluate_episodes=2,
    checkpoint_every_seconds=1.0,
    max_checkpoints=2,
    tensorboard=False,
  )
  assert experiment.differences(make(), changed) == []


def test_a_schedule_ties_the_length_of_a_run():
  linear = dataclasses.replace(make().config, learning_rate_schedule="linear")
  saved = dataclasses.replace(make(), config=linear)
  longer = dataclasses.replace(saved, num_env_steps=600_000)
  assert experiment.differences(saved, longer) == ["num_env_steps: 500000 -> 600000"]


def test_presets():
  catch, other = make(), make("gymnax:CartPole-v1")
  assert catch.num_env_steps == 500_000
  assert catch.machine.num_environments == 64
  assert catch.config.learning_rate == 2e-3
  assert other.num_env_steps == 3_000_000
  assert catch.workdir == "runs/Catch-bsuite-impala"


def test_every_preset_is_valid():
  from podracer.agents.impala import presets

  names = list(environments.names())
  for pattern, _ in presets.PRESETS:
    fitting = fnmatch.filter(names, pattern)
    assert fitting, f"no environment fits {pattern}"
    made = make(fitting[0])
    made.machine.check(1, made.config.num_minibatches)
  assert presets.PRESETS[-1][0] == "*", "no preset for any environment"


def test_flags_go_over_a_preset(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  parsed = train.parse([f"--env={CATCH}", "--config.discount=0.9", "--num_environments=128"])
  assert parsed.config.discount == 0.9
  assert parsed.config.learning_rate == 2e-3
  assert parsed.machine.num_environments == 128
  assert parsed.machine.unroll_length == 16
  assert parsed.workdir == "runs/Catch-bsuite-impala"


def test_flags_go_over_the_run_that_is_there(tmp_path):
  made = dataclasses.replace(make_unlike_the_default(), workdir=str(tmp_path))
  experiment.write(made)
  assert train.parse([f"--workdir={tmp_path}"]) == made
  longer = train.parse([f"--workdir={tmp_path}", "--evaluate_every=7"])
  assert longer == dataclasses.replace(made, evaluate_every=7)


def test_an_empty_workdir_is_the_default(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert train.parse([f"--env={CATCH}", "--workdir="]).workdir == "runs/Catch-bsuite-impala"


@pytest.mark.parametrize(
  ("option", "expected"),
  [
    ("rows=5", {"rows": 5}),
    ("rate=0.5", {"rate": 0.5}),
    ("fast=True", {"fast": True}),
    ("fast=true", {"fast": True}),
    ("fast=false", {"fast": False}),
    ("name=Pong", {"name": "Pong"}),
    ("name=a=b", {"name": "a=b"}),
    ("shape=(2, 3)", {"shape": (2, 3)}),
    ("name=", {"name": ""}),
  ],
)
def test_env_options(option, expected):
  assert experiment.parse_options((option,)) == expected


@pytest.mark.parametrize("option", ["rows", "=5", ""])
def test_env_options_without_a_name_or_value(option):
  with pytest.raises(config_lib.InputError, match="env_options takes name=value"):
    experiment.parse_options((option,))


def test_env_options_reach_the_environment():
  made = dataclasses.replace(make("podracer.testing:probe_memory"), env_options=("length=7",))
  environment = made.make_environment()
  import jax

  state, _ = environment.reset(jax.random.key(0))
  num_steps, is_over = 0, False
  while not is_over:
    state, outcome = environment.step(jax.random.key(0), state, 0)
    num_steps, is_over = num_steps + 1, bool(outcome.terminated)
  assert num_steps == 7


def test_several_tasks_have_the_general_preset_and_equal_shares():
  general = make("my_package.my_module:make")
  two, three = (make("+".join([CATCH] * n)) for n in (2, 3))
  assert two.config == three.config == general.config
  assert (two.machine.num_environments, three.machine.num_environments) == (64, 72)
  assert three.workdir == "runs/Catch-bsuite+Catch-bsuite+Catch-bsuite-impala"
  assert experiment.default_workdir("+".join([CATCH] * 40), "impala") == (
    "runs/Catch-bsuite+39-tasks-impala"
  )
  assert three.preferred_devices(2) == 2
  three.check()


def test_several_tasks_have_the_environment_options_of_each():
  made = experiment.default_experiment("impala", "sebulba", f"{CATCH}+envpool:Pong-v5")
  assert "1.stack_num=4" in made.env_options
  assert all(option.startswith("1.") for option in made.env_options)
  assert experiment.default_architecture(made.env) == "sebulba"
  with pytest.raises(config_lib.InputError, match="runs on the host, which takes"):
    make(f"{CATCH}+envpool:Pong-v5").check()
