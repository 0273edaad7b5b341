"""Recording, from the command line to the files: from a checkpoint and while training, on both machines."""

import json
import signal

import numpy as np
import pytest

from podracer import data, environments, host_environment, types
from podracer.data import layout, schema
from podracer.launch import experiment
from podracer.launch import main as main_lib

CARTPOLE = (
  "--env=envpool:CartPole-v1",
  "--num_env_steps=3000",
  "--num_environments=8",
  "--unroll_length=10",
  "--evaluate_episodes=4",
  "--num_devices=1",
)
MUZERO = (
  "--env=gymnax:Catch-bsuite",
  "--agent=muzero",
  "--num_env_steps=600",
  "--num_environments=8",
  "--unroll_length=10",
  "--evaluate_episodes=4",
  "--num_devices=1",
  "--config.search.num_simulations=4",
  "--config.replay.capacity=0",
)


def command(*args):
  """Runs a command in this process."""
  try:
    main_lib.main([str(arg) for arg in args])
  except SystemExit as stop:
    assert not stop.code, stop.code


def trained(tmp_path_factory, name, *flags):
  """Returns the directory of a run that has hardly learnt."""
  workdir = tmp_path_factory.mktemp(name) / "run"
  command("train", *flags, f"--workdir={workdir}")
  return workdir


@pytest.fixture(scope="module")
def sebulba(tmp_path_factory):
  return trained(tmp_path_factory, "sebulba", *CARTPOLE)


@pytest.fixture(scope="module")
def anakin(tmp_path_factory):
  flags = [flag for flag in CARTPOLE if not flag.startswith("--env=")]
  return trained(tmp_path_factory, "anakin", "--env=gymnax:CartPole-v1", *flags)


@pytest.fixture(scope="module")
def muzero(tmp_path_factory):
  return trained(tmp_path_factory, "muzero", *MUZERO)


def only(root):
  """Returns the dataset of a collection of one task."""
  (dataset,) = data.open(root)
  return dataset


def assert_replays(dataset, make):
  """Plays the recorded actions again, in environments of the recorded seeds."""
  by_seed: dict[int, list] = {}
  frame_stack = make.frame_stack if make.frame_stack > 1 else None
  for episode in dataset.episodes(frame_stack=frame_stack):
    by_seed.setdefault(episode.metadata["seed"], []).append(episode)
  for seed, played in by_seed.items():
    played.sort(key=lambda episode: episode.metadata["seed_index"])
    assert [episode.metadata["seed_index"] for episode in played] == list(range(len(played)))
    host = make.make([seed], host_environment.HostOptions(whole_episodes=True))
    timestep = host.reset()
    for episode in played:
      steps = episode.steps
      for t in range(episode.num_steps):
        assert (timestep.step_type[0] == types.FIRST) == steps[schema.IS_FIRST][t]
        assert (timestep.step_type[0] == types.LAST) == steps[schema.IS_LAST][t]
        assert np.array_equal(timestep.observation[0], steps[schema.OBSERVATION][t])
        timestep = host.step(steps[schema.ACTION][t : t + 1])
        if not steps[schema.IS_LAST][t]:
          assert timestep.reward[0] == steps[schema.REWARD][t]
          assert timestep.discount[0] == steps[schema.DISCOUNT][t]
      assert steps[schema.IS_TERMINAL][-1] == (steps[schema.DISCOUNT][-2] == 0)
    host.close()


@pytest.mark.parametrize(
  ("machine", "mode"),
  [
    ("anakin", "sample"),
    ("sebulba", "sample"),
    pytest.param("anakin", "greedy", marks=pytest.mark.slow),
    pytest.param("sebulba", "greedy", marks=pytest.mark.slow),
  ],
)
def test_recorded_episodes_can_be_played_again(machine, mode, request, tmp_path):
  workdir = request.getfixturevalue(machine)
  out = tmp_path / "data"
  flags = ("--episodes=19", "--environments=6", "--score_episodes=8", f"--mode={mode}")
  command("record", f"--workdir={workdir}", f"--out={out}", *flags)
  dataset = only(out)
  rows = [episode.metadata for episode in dataset.episodes()]
  # Every slot has played its share, from its first episode on.
  found = sorted((row["slot"], row["seed_index"]) for row in rows)
  assert found == [(slot, i) for slot in range(6) for i in range(4 if slot < 1 else 3)]
  assert {row["policy_mode"] for row in rows} == {mode}
  assert {row["phase"] for row in rows} == {"eval"} and {row["teacher_step"] > 0 for row in rows}
  assert data.verify(out) == []
  name = json.loads((workdir / "config.json").read_text())["env"]
  assert_replays(dataset, host_environment.as_factory(environments.make(name)))
  scores = json.loads((out / "scores.json").read_text())[dataset.task]
  assert scores["random"]["n"] == scores["expert"]["n"] == 8
  assert dataset.task in (out / "README.md").read_text()


@pytest.mark.slow
def test_frames_of_atari_can_be_played_again(tmp_path):
  workdir, out = tmp_path / "run", tmp_path / "data"
  command(
    "train",
    *("--env=envpool:Pong-v5", "--env_options", "max_episode_steps=300", f"--workdir={workdir}"),
    *("--num_env_steps=100", "--num_environments=4", "--unroll_length=5", "--evaluate_episodes=1"),
    *("--num_devices=1", "--config.network.torso=mlp", "--config.network.hidden_sizes", "8"),
  )
  flags = ("--episodes=8", "--environments=4", "--score_episodes=0")
  command("record", f"--workdir={workdir}", f"--out={out}", *flags)
  dataset = only(out)
  options = experiment.parse_options(experiment.read(str(workdir)).env_options)
  make = environments.make("envpool:Pong-v5", **options)
  assert dataset.episode(0).steps[schema.OBSERVATION].shape[1:] == (84, 84)
  assert {row["frame_stack"] for row in dataset.rows.to_pylist()} == {make.frame_stack} == {4}
  assert_replays(dataset, make)


def test_more_episodes_go_on_where_the_recording_ended(anakin, tmp_path, capsys):
  out = tmp_path / "data"
  record = ("record", f"--workdir={anakin}", f"--out={out}", "--environments=4")
  command(*record, "--episodes=6", "--score_episodes=0")
  before = {episode.metadata["episode_id"] for episode in only(out).episodes()}
  capsys.readouterr()
  command(*record, "--episodes=11", "--score_episodes=0")
  assert "6 of 11 episodes are there" in capsys.readouterr().out
  names = [episode.metadata["episode_id"] for episode in only(out).episodes()]
  assert len(names) == len(set(names)) == 11 and before < set(names)
  files = sorted(path for path in out.rglob("*") if path.is_file())
  contents = [path.read_bytes() for path in files]
  command(*record, "--episodes=11", "--score_episodes=0")
  assert [path.read_bytes() for path in files] == contents
  # Fewer are there already, and as many by other environments are another recording.
  capsys.readouterr()
  command(*record, "--episodes=3", "--score_episodes=0")
  assert "11 of 3 episodes are there" in (said := capsys.readouterr().out)
  assert "nothing to do" in said and len(only(out)) == 11
  # Another seed makes other episodes of the same task, another writer goes along.
  command(*record, "--episodes=5", "--seed=1", "--writer=1", "--score_episodes=0")
  assert len(only(out)) == 16


@pytest.mark.slow
def test_a_search_is_recorded_with_what_it_found(muzero, tmp_path):
  command(
    "record", f"--workdir={muzero}", f"--out={tmp_path}/data", "--episodes=8", "--score_episodes=0"
  )
  for episode in only(tmp_path / "data").episodes():
    visits = episode.steps[schema.SEARCH_VISITS][:-1] / schema.VISITS_SCALE
    np.testing.assert_allclose(visits.sum(axis=-1), 1.0, atol=1e-4)
    assert np.all(np.isfinite(episode.steps[schema.SEARCH_VALUE]))
    assert episode.metadata["policy_mode"] == "sample,search:4"
  command(
    "record",
    *(f"--workdir={muzero}", f"--out={tmp_path}/raw", "--episodes=4", "--score_episodes=0"),
    "--no-search",
  )
  assert {e.metadata["policy_mode"] for e in only(tmp_path / "raw").episodes()} == {"sample"}


def cartpole_step(observation, action):
  """Returns the observation after an action: Euler's step of Barto, Sutton & Anderson (1983)."""
  x, x_dot, theta, theta_dot = observation.astype(np.float64).T
  force = np.where(action == 1, 10.0, -10.0)
  temp = (force + 0.05 * theta_dot**2 * np.sin(theta)) / 1.1
  theta_acc = (9.8 * np.sin(theta) - np.cos(theta) * temp) / (
    0.5 * (4.0 / 3.0 - 0.1 * np.cos(theta) ** 2 / 1.1)
  )
  x_acc = temp - 0.05 * theta_acc * np.cos(theta) / 1.1
  return np.stack(
    [
      x + 0.02 * x_dot,
      x_dot + 0.02 * x_acc,
      theta + 0.02 * theta_dot,
      theta_dot + 0.02 * theta_acc,
    ],
    axis=-1,
  )


@pytest.mark.parametrize("env", ["gymnax:CartPole-v1", "envpool:CartPole-v1"])
def test_training_records_what_was_played(env, tmp_path):
  workdir = tmp_path / "run"
  flags = [flag for flag in CARTPOLE if not flag.startswith("--env=")]
  command("train", f"--env={env}", *flags, f"--workdir={workdir}", "--record=0.5")
  dataset = only(workdir / "data")
  episodes = list(dataset.episodes())
  slots = {episode.metadata["slot"] for episode in episodes}
  assert len(slots) == 4 and slots < set(range(8))
  assert {episode.metadata["phase"] for episode in episodes} == {"train"}
  for episode in episodes:
    steps = episode.steps
    following = cartpole_step(steps[schema.OBSERVATION][:-1], steps[schema.ACTION][:-1])
    np.testing.assert_allclose(steps[schema.OBSERVATION][1:], following, atol=1e-4)
    assert np.all(steps[schema.REWARD][:-1] == 1)
    log_prob = np.take_along_axis(
      np.log(np.exp(steps[schema.POLICY_LOGITS].astype(np.float32))),
      steps[schema.ACTION][:, None],
      1,
    )[:, 0] - np.log(np.exp(steps[schema.POLICY_LOGITS].astype(np.float32)).sum(-1))
    np.testing.assert_allclose(steps[schema.BEHAVIOUR_LOG_PROB][:-1], log_prob[:-1], atol=5e-3)
  # All of them but those that had not ended: ticks follow on without a gap.
  for slot in slots:
    mine = sorted(
      (e.metadata["lifetime_step"], e.num_steps) for e in episodes if e.metadata["slot"] == slot
    )
    ends = [0, *(start + length for start, length in mine)]
    assert [start for start, _ in mine] == ends[:-1]


@pytest.mark.slow
def test_recording_changes_nothing_of_the_training(finished, make_run):
  run = make_run()
  code, out, err = run.train("--record=0.25", "--record_histories")
  assert code == 0, out + err
  run.assert_same_as(finished)
  dataset = only(run.workdir / "data")
  assert len(dataset.histories()) == 4
  history = dataset.history_window(dataset.histories()[0], 0, 50)
  assert history[schema.IS_FIRST][0]


@pytest.mark.slow
def test_a_killed_training_records_no_episode_twice(finished, make_run):
  whole, killed = make_run("whole"), make_run("killed")
  assert whole.train("--record=0.25", "--checkpoint_every_seconds=0.01")[0] == 0
  process = killed.start("--record=0.25", "--checkpoint_every_seconds=0.01")
  process.wait_until(lambda: killed.steps() and killed.num_rows() >= 4)
  process.send(signal.SIGKILL)
  process.wait()
  code, out, err = killed.train("--record=0.25", "--checkpoint_every_seconds=0.01")
  assert code == 0, out + err
  killed.assert_same_as(finished)
  wanted = {e.metadata["episode_id"]: e for e in only(whole.workdir / "data").episodes()}
  found = list(only(killed.workdir / "data").episodes())
  names = [e.metadata["episode_id"] for e in found]
  assert len(names) == len(set(names))
  # Those under way at the checkpoint are lost, and only those: one of each recorded environment.
  assert len(wanted) - 4 <= len(names) <= len(wanted)
  for episode in found:
    same = wanted[episode.metadata["episode_id"]]
    for name, value in episode.steps.items():
      assert np.array_equal(value, same.steps[name]), name


@pytest.mark.slow
def test_a_history_goes_on_in_order(make_run):
  whole, stopped = make_run("whole"), make_run("stopped")
  flags = ("--record=0.25", "--record_histories", "--checkpoint_every_seconds=0.01")
  assert whole.train(*flags)[0] == 0
  process = stopped.start(*flags)
  process.wait_until(lambda: stopped.num_rows() >= 4)
  process.send(signal.SIGINT)
  assert process.wait()[0] == 130
  # What may change when a run goes on does not make another teacher of it.
  code, out, err = stopped.train(*flags, "--max_checkpoints=2")
  assert code == 0, out + err
  wanted, found = only(whole.workdir / "data"), only(stopped.workdir / "data")
  assert wanted.histories() == found.histories()
  for name in found.histories():
    rows = [found.episode(int(i)).metadata for i in found.history(name)[0]]
    for key in ("lifetime_step", "history_index"):
      values = [row[key] for row in rows]
      assert values == sorted(set(values)), key
    theirs = [wanted.episode(int(i)).metadata for i in wanted.history(name)[0]]
    index = {row["lifetime_step"]: row["history_index"] for row in theirs}
    assert all(index[row["lifetime_step"]] == row["history_index"] for row in rows)


@pytest.mark.slow
def test_two_processes_do_not_record_the_same(anakin, make_run):
  run = make_run()
  args = ("record", f"--workdir={anakin}", "--out=data", "--episodes=4000", "--environments=8")
  first = run.process(*args, "--score_episodes=0")
  folder = run.root / "data" / "gymnax_cart_pole_v1" / "1.0.0" / layout.SHARDS
  first.wait_until(lambda: any(folder.glob("recording-*")))
  first.send(signal.SIGSTOP)  # So that it is still at it when the second asks.
  (run.root / "second").mkdir()
  second = type(run)(run.root / "second").process(
    *("record", f"--workdir={anakin}", f"--out={run.root}/data", "--episodes=4000"),
    *("--environments=8", "--score_episodes=0", "--writer=1"),
  )
  code, out, err = second.wait()
  assert code == 2 and "take another --seed" in err, out + err
  first.send(signal.SIGCONT)
  code, out, err = first.wait()
  assert code == 0, out + err
  assert data.verify(run.root / "data") == []


@pytest.mark.slow
def test_a_killed_recording_goes_on(anakin, make_run):
  run = make_run()
  args = ("record", f"--workdir={anakin}", "--out=data", "--episodes=4000", "--environments=8")
  process = run.process(*args, "--score_episodes=0")
  shards = run.root / "data" / "gymnax_cart_pole_v1" / "1.0.0" / layout.SHARDS
  process.wait_until(lambda: shards.exists() and any(shards.iterdir()))
  process.send(signal.SIGTERM)
  code, out, err = process.wait()
  assert code == 143 and "the same command goes on" in out, out + err
  code, out, err = run.command(*args, "--score_episodes=0")
  assert code == 0, out + err
  names = [e.metadata["episode_id"] for e in only(run.root / "data").episodes()]
  assert len(names) == len(set(names)) == 4000
  assert data.verify(run.root / "data") == []


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["record", "--workdir=nothing"], "workdir nothing does not exist"),
    (["record", "--workdir={run}", "--episodes=0"], "episodes must be above 0"),
    (["record", "--workdir={run}", "--no-search"], "search=False is for an agent that searches"),
    (["record", "--workdir={run}", "--mode=best"], "mode"),
    (["record", "--workdir={run}", "--seed_index=1"], "seed_index must be 0 .. 0, got 1"),
    (["record", "--workdir={run}", "--out={run}/config.json/x"], "config.json is not a directory"),
    (["train", "--env=gymnax:Catch-bsuite", "--record=2"], "record must be between 0 and 1, got 2"),
    (
      ["train", "--env=gymnax:Catch-bsuite", "--record_histories"],
      "record_histories needs --record",
    ),
  ],
)
def test_bad_input_is_one_line(args, message, anakin, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    main_lib.main([arg.format(run=anakin) for arg in args])
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert list(tmp_path.iterdir()) == []
