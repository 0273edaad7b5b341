"""Signals, kills, damaged checkpoints and a full disk, on real processes."""

import contextlib
import itertools
import pathlib
import random
import resource
import shutil
import signal
import subprocess

import pytest

import podracer
from podracer import checkpoint

OFTEN = "--checkpoint_every_seconds=0.01"


def flip_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(bytes(content))


def data_files(step):
  """The files that hold arrays, the largest first."""
  files = [path for path in step.glob("*/d/*") if path.is_file()]
  files += [path for path in step.glob("*/ocdbt.process_0/d/*") if path.is_file()]
  assert files
  return sorted(files, key=lambda path: -path.stat().st_size)


def truncate_arrays(step):
  for path in data_files(step):
    path.write_bytes(path.read_bytes()[:10])


def flip_a_bit_of_every_file(step):
  for path in data_files(step):
    flip_bit(path)


def empty_directory(step):
  shutil.rmtree(step)
  step.mkdir()


def damage_manifest(step):
  (path,) = (step / "manifest").glob("metadata")
  path.write_text(path.read_text().replace('"updates"', '"updatez"'))


DAMAGES = (truncate_arrays, flip_a_bit_of_every_file, empty_directory, damage_manifest)


def is_training(run, num_rows=3):
  return lambda: run.num_rows() >= num_rows


@pytest.fixture(scope="module")
def interrupted(finished, tmp_path_factory):
  """A run with several checkpoints that a signal stopped in the middle; copy it before use."""
  run = type(finished)(tmp_path_factory.mktemp("interrupted"))
  process = run.start(OFTEN, "--max_checkpoints=5")
  process.wait_until(lambda: run.num_rows() >= 20 and len(run.steps()) >= 3)
  process.send(signal.SIGTERM)
  code, out, err = process.wait()
  assert code == 128 + signal.SIGTERM, out + err
  assert "SIGTERM: saving and ending" in err
  assert "the same command goes on from there" in out
  assert "Traceback" not in err
  assert len(run.steps()) >= 3
  return run


@pytest.fixture
def copy(interrupted, make_run):
  run = make_run("copy")
  shutil.copytree(interrupted.workdir, run.workdir)
  return run


def assert_ends_as(run, finished, *args):
  code, out, err = run.train(*args)
  assert code == 0, out + err
  assert "Traceback" not in err
  run.assert_same_as(finished)
  return out, err


def assert_loadable_or_without_checkpoint(run):
  if not run.workdir.exists() or not (run.workdir / "config.json").exists():
    return
  if run.steps():
    podracer.load_policy(str(run.workdir))
  else:
    with pytest.raises(podracer.InputError, match="has no checkpoint yet"):
      podracer.load_policy(str(run.workdir))


def test_sigterm_and_resume_equal_the_uninterrupted_run(copy, finished):
  assert copy.num_rows() < finished.num_rows()
  out, _ = assert_ends_as(copy, finished)
  assert "resumed at" in out


def test_ctrl_c_saves(make_run):
  run = make_run()
  process = run.start()
  process.wait_until(is_training(run))
  process.send(signal.SIGINT)
  code, out, err = process.wait()
  assert code == 128 + signal.SIGINT, out + err
  assert "SIGINT: saving and ending" in err
  assert "saved at" in out
  assert "Traceback" not in err
  assert len(run.steps()) == 1
  assert podracer.load_policy(str(run.workdir)).env_steps == run.rows()[-1]["env_steps"]


@pytest.mark.slow
def test_ctrl_c_and_resume_equal_the_uninterrupted_run(make_run, finished):
  run = make_run()
  process = run.start()
  process.wait_until(is_training(run))
  process.send(signal.SIGINT)
  assert process.wait()[0] == 128 + signal.SIGINT
  assert_ends_as(run, finished)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(copy, finished):
  before = copy.state()
  process = copy.start()
  process.wait_until(lambda: "resumed at" in process.out.read_text())
  # While the program is compiled the first can't be answered yet.
  process.send(signal.SIGINT)
  process.wait_until(lambda: "saving and ending" in process.err.read_text())
  process.send(signal.SIGINT)
  code, _, err = process.wait()
  assert code == 128 + signal.SIGINT
  assert "stopped at once" in err
  assert "Traceback" not in err
  assert copy.state() == before
  assert_loadable_or_without_checkpoint(copy)
  assert_ends_as(copy, finished)


@pytest.mark.slow
def test_ctrl_c_before_jax_is_there(make_run):
  run = make_run()
  process = run.start()
  maps = pathlib.Path(f"/proc/{process.popen.pid}/maps")
  process.wait_until(lambda: "jaxlib" in maps.read_text())
  process.send(signal.SIGINT)
  code, _, err = process.wait()
  assert code == 128 + signal.SIGINT, err
  assert not run.steps() or podracer.load_policy(str(run.workdir))
  assert "Traceback" not in err


@pytest.mark.slow
def test_sigterm_while_compiling(make_run, finished):
  run = make_run()
  process = run.start()
  process.wait_until(lambda: "workdir run" in process.out.read_text())
  assert run.num_rows() == 0
  process.send(signal.SIGTERM)
  code, out, err = process.wait()
  assert code == 128 + signal.SIGTERM, out + err
  assert "saved at" in out
  assert run.num_rows() == 1
  assert_ends_as(run, finished)


@pytest.mark.slow
def test_sigterm_during_the_final_evaluation_does_it_when_resumed(make_run, finished):
  run = make_run()
  # So many that it lasts until the signal comes; the resumed run plays as many as others.
  process = run.start("--evaluate_episodes=1000000")
  # The last report but one: the rest of training takes less than the evaluation.
  process.wait_until(is_training(run, finished.num_rows() - 1))
  process.send(signal.SIGTERM)
  code, out, err = process.wait()
  assert code == 128 + signal.SIGTERM, out + err
  assert not (run.workdir / "evaluation.json").exists()
  out, _ = assert_ends_as(run, finished)
  assert "evaluation (greedy" in out
  code, out, _ = run.train()
  assert code == 0
  assert "nothing to do" in out
  run.assert_same_as(finished)


def kill_at_random(run, seed, num_kills):
  """Kills a run again and again at random moments."""
  generator = random.Random(seed)
  for _ in range(num_kills):
    process = run.start(OFTEN)
    target = run.num_rows() + generator.randrange(1, 15)
    process.wait_until(is_training(run, target))
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.popen.wait(generator.uniform(0, 0.1))
    process.send(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL
    assert_loadable_or_without_checkpoint(run)


@pytest.mark.slow
def test_kill_9(make_run, finished):
  run = make_run()
  kill_at_random(run, seed=0, num_kills=1)
  assert_ends_as(run, finished)
  assert not list((run.workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_kill_9_again_and_again(make_run, finished, seed):
  run = make_run()
  kill_at_random(run, seed, num_kills=4)
  assert_ends_as(run, finished)
  assert not list((run.workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_policy_is_loaded_from_the_newest_good_checkpoint(copy, damage):
  *_, older, newest = copy.steps()
  damage(newest)
  policy = podracer.load_policy(str(copy.workdir))
  counts = {row["updates"]: row["env_steps"] for row in copy.rows()}
  assert policy.env_steps == counts[int(older.name)]
  assert newest.exists(), "reading removed something"


@pytest.mark.parametrize(
  "damage",
  [
    flip_a_bit_of_every_file,
    *(pytest.param(x, marks=pytest.mark.slow) for x in (truncate_arrays, empty_directory)),
  ],
  ids=lambda damage: damage.__name__,
)
def test_a_damaged_newest_checkpoint_is_skipped(copy, finished, damage):
  newest = copy.steps()[-1]
  damage(newest)
  _, err = assert_ends_as(copy, finished)
  lines = [line for line in err.splitlines() if "is skipped" in line]
  assert len(lines) == 1
  assert f"Checkpoint of step {newest.name} is skipped: it is corrupt" in lines[0]


def test_all_checkpoints_bad_is_one_line_and_changes_nothing(copy):
  steps = copy.steps()
  for step, damage in zip(steps, itertools.cycle(DAMAGES), strict=False):
    damage(step)
  before = {path: path.read_bytes() for path in copy.workdir.rglob("*") if path.is_file()}
  workdir = "--workdir=run"
  for args in (("train", workdir), ("evaluate", workdir), ("watch", workdir)):
    code, _, err = copy.command(*args)
    assert code == 1, err
    (line,) = err.splitlines()
    assert line.startswith("podracer: no checkpoint in")
    assert all(f"step {step.name} " in line for step in steps)
    after = {path: path.read_bytes() for path in copy.workdir.rglob("*") if path.is_file()}
    assert after == before
  with pytest.raises(checkpoint.CheckpointError, match=f"step {steps[0].name} "):
    podracer.load_policy(str(copy.workdir))


def limit_file_size(num_bytes):
  return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def test_a_full_disk_at_the_beginning_is_one_line(make_run):
  run = make_run()
  code, _, err = run.train(preexec_fn=limit_file_size(1000))
  assert code == 1 and err.count("\n") == 1 and "run: File too large" in err, err
  assert not [path for path in run.workdir.rglob("*") if path.is_file()]


def test_an_evaluation_that_cannot_be_written_is_said_and_one_line(make_run, finished):
  run = make_run()
  shutil.copytree(finished.workdir, run.workdir)
  path = run.workdir / "evaluation.json"
  path.unlink()
  path.mkdir()
  code, out, err = run.command("evaluate", "--workdir=run", "--episodes=8")
  assert code == 1 and err.count("\n") == 1 and "evaluation.json" in err, err
  assert "evaluation (greedy, 8 whole episodes)" in out
  assert not list(run.workdir.glob("*.tmp-*"))


def test_a_full_disk_does_not_end_training(make_run, finished):
  run = make_run()
  # Room for config.json and nothing else.
  code, out, err = run.train("--checkpoint_every_seconds=1", preexec_fn=limit_file_size(2000))
  assert code == 0, err
  assert "done: 300," in out
  assert "Traceback" not in err
  for sink in ("metrics.jsonl", "TensorBoard", "the learning curve"):
    assert err.count(f"Metrics go no more to {sink}") <= 1
  assert "Metrics go no more to metrics.jsonl" in err
  assert "Saving the checkpoint of step" in err
  assert not run.steps()
  assert not list(run.workdir.rglob("*tmp*")) + list(run.workdir.rglob(".*"))
  assert_ends_as(run, finished)
