"""`podracer generalist` on small recordings of probe environments."""

import json
import shutil

import jax
import numpy as np
import pytest

from podracer import data, environments, evaluation, types
from podracer import metrics as metrics_lib
from podracer.data import recorder, schema, scores
from podracer.launch import generalist, interrupts
from podracer.launch import main as main_lib

SMALL = (
  "--config.width=16",
  "--config.num_layers=1",
  "--config.num_heads=2",
  "--config.context=40",
  "--config.sequences_per_task=16",
  "--config.learning_rate=0.01",
  "--config.learning_rate_schedule=constant",
  "--num_devices=1",
  "--no-tensorboard",
  "--evaluate_episodes=16",
  "--updates_per_report=10",
)


def record(root, task, env, steps_of, num_episodes=24, fields=None, **about):
  """Writes episodes of `steps_of(i)`: observations `[T+1, ...]`, actions and rewards `[T]`."""
  writer = None
  for i in range(num_episodes):
    observation, action, reward = steps_of(i)
    last = np.arange(len(observation)) == len(observation) - 1
    steps = {
      "observation": observation,
      "action": np.append(action, 0).astype(np.int32),
      "reward": np.append(reward, 0).astype(np.float32),
      "discount": np.where(last, 0, 1).astype(np.float32),
      "is_first": np.arange(len(observation)) == 0,
      "is_last": last,
      "is_terminal": last,
      "policy_logits": np.zeros((len(observation), 2 if fields is None else fields), np.float16),
    }
    if writer is None:
      described = [schema.Field(n, tuple(v.shape[1:]), v.dtype.name) for n, v in steps.items()]
      writer = data.Writer(root, task, data.Schema(tuple(sorted(described))))
    metadata = {
      "episode_id": f"{task}-{i}",
      "task": task,
      "env_id": env,
      "env_kwargs": "{}",
      "teacher_id": "teacher",
      "phase": "eval",
      "episode_return": float(np.sum(reward)),
      "episode_length": len(action),
      "lifetime_step": 100 * i,
    }
    metadata |= {name: value(i) for name, value in about.items()}
    writer.write(data.Episode(steps, recorder.common_metadata(**metadata)))
  writer.close()


def policy_steps(i):
  """An expert of `probe_policy`: action 1 at observation 1, 0 at -1."""
  sign = 1.0 if i % 2 else -1.0
  return np.array([[sign], [0.0]], np.float32), [int(sign > 0)], [1.0]


def memory_steps(i):
  """An expert of `probe_memory`, three steps long: the cue of the first is named at the last."""
  cue = i // 4 % 2
  observation = np.zeros((5, 3), np.float32)
  observation[0, cue] = 1.0
  observation[3, 2] = 1.0
  return observation, [i % 2, i // 2 % 2, 1, cue], [0, 0, 0, 1.0]


@pytest.fixture(scope="session")
def collection(tmp_path_factory):
  root = tmp_path_factory.mktemp("probes")
  record(root, "policy", "podracer.testing:probe_policy", policy_steps)
  record(root, "memory", "podracer.testing:probe_memory", memory_steps)
  data.finalise(root)
  for task in ("policy", "memory"):
    scores.write(root, task, {"random": {"mean": 0.0}, "expert": {"mean": 1.0}})
  return root


class _Signals(interrupts.Interrupts):
  """Asks to stop once it has been asked so many times."""

  def __init__(self, after):
    super().__init__()
    self.left = after

  @property
  def requested(self):
    self.left -= 1
    return self.left < 0


def train(workdir, *args, after=10**9):
  from podracer.launch import generalist_run

  wanted = generalist.parse_train([*SMALL, f"--workdir={workdir}", *map(str, args)])
  return generalist_run.run(wanted, generalist.START, _Signals(after))


def state_of(workdir):
  """Digests of the newest checkpoint, and the rows of metrics without what depends on the clock."""
  steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
  newest = max(steps, key=lambda path: int(path.name))
  (manifest,) = newest.glob("manifest/metadata*")
  rows = metrics_lib.read_metrics(workdir)
  clock = ("time", "steps_per_second")
  rows = [{name: value for name, value in row.items() if name not in clock} for row in rows]
  return json.loads(manifest.read_text())["manifest"]["items"], rows


@pytest.fixture(scope="session")
def trained(collection, tmp_path_factory):
  """A generalist of both probes, after 300 updates."""
  workdir = tmp_path_factory.mktemp("run") / "a"
  assert train(workdir, f"--data={collection}", "--num_updates=300") == 0
  return workdir


def test_it_learns_from_the_files_what_only_a_memory_can_know(trained):
  found = json.loads((trained / "evaluation.json").read_text())
  assert set(found["tasks"]) == {"memory", "policy"}
  assert found["tasks"]["policy"]["return_mean"] == 1.0
  assert found["tasks"]["memory"]["return_mean"] == 1.0
  assert found["percent_of_expert_mean"] == 100.0
  assert (found["updates"], found["mode"]) == (300, "greedy")
  for name in ("config.json", "tasks.json", "metrics.jsonl", "learning_curve.png"):
    assert (trained / name).stat().st_size > 0
  rows = metrics_lib.read_metrics(trained)
  assert [row["updates"] for row in rows] == list(range(10, 301, 10))
  assert rows[-1]["evaluation/percent_of_expert_mean"] == 100.0
  assert rows[0]["loss/total"] > 2 * rows[-1]["loss/total"]


def test_evaluate_needs_no_data_and_prints_a_table(trained, capsys):
  args = ["generalist", "evaluate", f"--workdir={trained}", "--episodes=32", "--tasks", "mem*"]
  main_lib.main(args)
  out = capsys.readouterr().out
  assert "after 300 updates" in out
  (line,) = [line for line in out.splitlines() if "memory" in line]
  cells = [cell.strip() for cell in line.strip("│┃|").split("│")]
  assert cells == ["memory", "32", "1.00", "0.00", "1.00", "100.0"]
  assert set(json.loads((trained / "evaluation.json").read_text())["tasks"]) == {"memory"}
  variants = ("--env_options=length=4", "--env_options=length=2")
  main_lib.main([*args, *variants])
  lines = capsys.readouterr().out.splitlines()
  assert 'memory {"length": 4}  return 1.00' in lines
  assert any(line.startswith('memory {"length": 2}  return ') for line in lines)


def test_load_policy(trained):
  policy = generalist.load_policy(str(trained), "policy")
  environment = environments.make("podracer.testing:probe_policy")
  result = evaluation.make_evaluator(policy.agent, environment, num_episodes=16)(
    policy.params, jax.random.key(0)
  )
  assert result.returns.mean() == 1.0
  timestep = types.zero_timestep(policy.spec, 2)
  timestep = timestep._replace(observation=np.array([[1.0], [-1.0]], np.float32))
  action, _ = policy(timestep, policy.initial_state(2))
  assert action.tolist() == [1, 0]


def test_a_run_that_goes_on_is_the_uninterrupted_one(collection, trained, tmp_path):
  workdir = tmp_path / "b"
  options = (f"--data={collection}", "--num_updates=300")
  # Asked once an update, and a few times around a report.
  for after in (25, 60):
    assert train(workdir, *options, after=after) == 0
    assert not (workdir / "evaluation.json").exists()
  assert train(workdir, *options) == 0
  items, rows = state_of(workdir)
  expected_items, expected_rows = state_of(trained)
  assert items == expected_items
  # Reports fall where it was interrupted, too.
  by_updates = {row["updates"]: row for row in rows}
  assert by_updates[300]["env_steps"] == expected_rows[-1]["env_steps"]
  assert by_updates[300]["loss/total"] == expected_rows[-1]["loss/total"]


def test_the_same_filters_again_are_the_same_configuration(collection, trained, tmp_path):
  filters = ("--filter=norm80", "--filter=min_return:1")
  options = (f"--data={collection}", "--num_updates=20")
  assert train(tmp_path, *options, *filters, after=5) == 0
  assert train(tmp_path, *options, *filters) == 0
  assert generalist.read(str(tmp_path)).filter == ("norm80", "min_return:1")
  assert metrics_lib.read_metrics(tmp_path)[-1]["updates"] == 20
  # Whoever says nothing of them takes those there are, and the default may be said.
  assert train(tmp_path, *options) == 0
  assert train(trained, f"--data={collection}", "--num_updates=300", "--filter=norm80") == 0
  with pytest.raises(ValueError, match="another configuration: filter"):
    train(tmp_path, *options, "--filter=norm80")


def test_another_configuration_or_other_data_is_refused(collection, trained, tmp_path):
  workdir = tmp_path / "c"
  shutil.copytree(trained, workdir)
  with pytest.raises(ValueError, match="holds a run with another configuration: seed: 0 -> 3"):
    train(workdir, "--seed=3")
  root = tmp_path / "data"
  shutil.copytree(collection, root)
  record(root, "policy", "podracer.testing:probe_policy", policy_steps, 25)
  data.finalise(root)
  config = json.loads((workdir / "config.json").read_text())
  (workdir / "config.json").write_text(json.dumps({**config, "data": [str(root)]}))
  with pytest.raises(ValueError, match="recorded episodes of policy are no more those"):
    train(workdir, "--num_updates=300")


def fails(capsys, *args):
  """Returns the one line that a command ends with."""
  with pytest.raises(SystemExit) as info:
    main_lib.main(["generalist", *map(str, args)])
  assert info.value.code == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1
  return line


def test_what_is_wrong_is_one_line(collection, trained, tmp_path, capsys):
  new = f"--workdir={tmp_path / 'new'}"
  given = f"--data={collection}"
  assert "no data given: --data=DIR" in fails(capsys, "train", new)
  assert "is not a directory" in fails(capsys, "train", new, "--data=nowhere")
  assert "holds no expert data" in fails(capsys, "train", new, f"--data={tmp_path}")
  line = fails(capsys, "train", new, given, "--tasks", "polcy")
  assert "no task polcy; nearest: policy (there is: memory, policy)" in line
  line = fails(capsys, "train", new, given, "--config.histories")
  assert "memory has no learning histories: podracer train --record --record_histories" in line
  assert "unknown filter nrm80" in fails(capsys, "train", new, given, "--filter=nrm80")
  line = fails(capsys, "train", new, given, "--config.width=17")
  assert "width=17 must be a multiple of twice num_heads=4" in line
  line = fails(capsys, "train", new, given, "--config.histories", "--config.no_reads_actions")
  assert "histories needs reads_actions" in line
  line = fails(capsys, "train", new, given, "--config.history_stride=2")
  assert "history_stride needs histories: --config.histories" in line
  line = fails(capsys, "train", new, given, "--config.context=4")
  assert "a step of memory has 5 tokens, more than config.context=4" in line
  line = fails(capsys, "train", new, f"--data={collection}", str(collection))
  assert "memory is in" in line and "podracer data merge" in line
  assert "does not exist" in fails(capsys, "evaluate", "--workdir=nowhere")
  line = fails(capsys, "evaluate", f"--workdir={trained}", "--in_context_episodes=3")
  assert "in_context_episodes is for a run with --config.histories" in line
  assert "no task x (there is: memory, policy)" in fails(
    capsys, "evaluate", f"--workdir={trained}", "--tasks", "x"
  )
  assert not (tmp_path / "new").exists()


def test_of_another_format_version(collection, tmp_path, capsys):
  root = tmp_path / "data"
  shutil.copytree(collection / "policy", root / "policy")
  (root / "policy" / "1.0.0").rename(root / "policy" / "2.0.0")
  line = fails(capsys, "train", f"--data={root}", f"--workdir={tmp_path / 'new'}")
  assert "format version 2.0.0; this podracer reads 1.0.0" in line


def test_scores_that_are_missing(collection, tmp_path, capsys):
  root = tmp_path / "data"
  shutil.copytree(collection, root)
  (root / "scores.json").unlink()
  line = fails(capsys, "train", f"--data={root}", f"--workdir={tmp_path / 'new'}")
  assert "filter norm80 needs the random score of memory" in line


def room_steps(i):
  """A walker of the dark room who turns left to the goal, cell 3 of 3 x 3, in every second episode."""
  action = [2, 4, 4] if i % 2 else [3, 4, 4]
  cells = [4, 3, 3, 3] if i % 2 else [4, 5, 5, 5]
  return np.array(cells, np.int32), action, [float(cell == 3) for cell in cells[1:]]


@pytest.mark.slow
def test_algorithm_distillation_goes_on_across_episodes(tmp_path, capsys):
  root = tmp_path / "data"
  record(
    root,
    "room",
    "podracer.darkroom:dark_room",
    room_steps,
    fields=5,
    env_kwargs=lambda i: json.dumps({"goal": 3, "num_steps": 3, "size": 3}),
    history_id=lambda i: f"h{i // 12}",
    history_index=lambda i: i % 12,
  )
  data.finalise(root)
  workdir = tmp_path / "run"
  options = ("--config.histories", "--config.context=48", "--num_updates=150")
  assert train(workdir, f"--data={root}", *options) == 0
  capsys.readouterr()
  args = ["generalist", "evaluate", f"--workdir={workdir}", "--episodes=8", "--mode=greedy"]
  main_lib.main([*args, "--in_context_episodes=6"])
  (line,) = [row for row in capsys.readouterr().out.splitlines() if "by episode" in row]
  means = [float(part.split()[0]) for part in line.split(": ")[1:]]
  # Every second episode of what it learnt from finds the goal: only who remembers the one before knows.
  assert len(means) == 6
  assert means[2:] in ([0.0, 3.0, 0.0, 3.0], [3.0, 0.0, 3.0, 0.0])
  held_out = [f"--env_options=goal={goal} num_steps=3 size=3" for goal in (5, 3)]
  capsys.readouterr()
  main_lib.main([*args, *held_out, "--in_context_episodes=2"])
  lines = capsys.readouterr().out.splitlines()
  found = json.loads((workdir / "evaluation.json").read_text())["tasks"]["room"]
  variants = [f'{{"goal": {goal}, "num_steps": 3, "size": 3}}' for goal in (5, 3)]
  assert found["env_options"] == variants
  by_variant = np.array(found["return_mean_by_variant"])
  np.testing.assert_allclose(by_variant.mean(axis=0), found["return_mean_by_episode"])
  for options, means in zip(variants, by_variant, strict=True):
    assert f"room {options}  1: {means[0]:.2f}  2: {means[1]:.2f}" in lines
  assert found["percent_of_expert"] is None
