"""`podracer data`: what it prints, its exit codes, and one line for what is wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest

from podracer.data import dataset as dataset_lib
from podracer.data import episode, layout, schema, store, writer
from podracer.launch import main as main_lib

FIELDS = {
  "observation": ((2, 3), "uint8"),
  "action": ((), "int32"),
  "reward": ((), "float32"),
  "discount": ((), "float32"),
  "is_first": ((), "bool"),
  "is_last": ((), "bool"),
  "is_terminal": ((), "bool"),
}
SCHEMA = schema.Schema(tuple(sorted(schema.Field(name, *kind) for name, kind in FIELDS.items())))


def make_episode(number, task, length=4, action=None):
  steps = {f.name: np.zeros((length + 1, *f.shape), f.dtype) for f in SCHEMA.fields}
  steps["action"][:] = number if action is None else action
  steps["is_first"][0] = steps["is_last"][-1] = True
  return episode.Episode(
    steps,
    {
      **{name: kind() for name, kind in episode.METADATA.items()},
      "episode_id": f"{task}-{number}",
      "task": task,
      "teacher_id": "impala-0",
      "phase": "train" if number < 4 else "eval",
      "policy_mode": "sample",
      "control": "teacher",
      "episode_return": float(number),
      "episode_length": length,
      "history_id": f"h{number % 2}",
      "num_segments": 1,
    },
  )


def write(root, task, numbers, **options):
  made = writer.Writer(root, task, SCHEMA, **options)
  for number in numbers:
    # Two that do the same.
    made.write(make_episode(number, task, action=70 if number >= 8 else None))
  made.close()


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "data"
  write(root, "catch", range(10))
  write(root, "pong", range(3))
  store.finalise(root)
  scores = {"catch": {"random": {"mean": 0.0, "n": 8}, "expert": {"mean": 10.0, "n": 8}}}
  (root / "scores.json").write_text(json.dumps(scores))
  return root


def run(capsys, *args):
  """Returns the exit code, standard output and standard error."""
  code = 0
  try:
    main_lib.main(["data", *map(str, args)])
  except SystemExit as stop:
    code = stop.code
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def assert_lines(out, *expected):
  lines = [" ".join(line.split()) for line in out.splitlines()]
  for line in expected:
    assert line in lines, out


def test_info(capsys, root):
  code, out, err = run(capsys, "info", root)
  assert (code, err) == (0, "")
  assert_lines(
    out,
    "catch",
    "episodes 10",
    "steps 40, 4.0 an episode",
    "histories 2",
    "return 4.50 mean, 0.00 to 9.00",
    "random score 0.00 over 8 episodes",
    "expert score 10.00 over 8 episodes",
    "phases eval 6, train 4",
    "modes sample",
    "teachers impala-0",
    "duplicates 10.0% of episodes have the actions of another",
    "pong",
    "random score not measured",
    "duplicates 0.0% of episodes have the actions of another",
  )
  assert "raw (" in out


def test_info_of_a_view_of_one_task(capsys, root, tmp_path):
  args = ("--filter=norm80:0.5", "--filter=top_fraction:0.4", f"--png={tmp_path / 'a' / 'r.png'}")
  code, out, err = run(capsys, "info", root / "catch", *args, "--no-duplicates")
  assert (code, err) == (0, "")
  assert_lines(
    out,
    "episodes 2 of 10",
    "norm80:0.5 5 kept, 5 dropped",
    "top_fraction:0.4 2 kept, 3 dropped",
    "return 8.50 mean, 8.00 to 9.00",
    f"wrote {tmp_path / 'a' / 'r.png'}",
  )
  assert "pong" not in out and "duplicates" not in out
  assert (tmp_path / "a" / "r.png").read_bytes().startswith(b"\x89PNG")


def test_verify(capsys, root):
  code, out, err = run(capsys, "verify", root)
  assert (code, err) == (0, "")
  assert out == f"{root}: nothing is wrong\n"
  (shard,) = (layout.task_dir(root, "pong") / layout.SHARDS).glob("*.array_record")
  shard.write_bytes(shard.read_bytes()[:100])
  code, out, err = run(capsys, "verify", root)
  assert (code, err) == (1, "")
  assert out.count("\n") >= 1 and shard.name in out


def test_finalise(capsys, tmp_path):
  write(tmp_path, "catch", range(3))
  code, _, err = run(capsys, "info", tmp_path)
  assert code == 2 and "podracer data finalise" in err
  assert run(capsys, "finalise", tmp_path) == (0, f"finalised {tmp_path}\n", "")
  assert run(capsys, "finalise", tmp_path)[0] == 0
  assert run(capsys, "info", tmp_path)[0] == 0
  assert "| `catch` | 3 |" in (tmp_path / "README.md").read_text()


def test_merge(capsys, root, tmp_path):
  other, out = tmp_path / "other", tmp_path / "all"
  write(other, "catch", range(20, 25), writer_id="w001")
  store.finalise(other)
  code, said, err = run(capsys, "merge", root, other, f"--out={out}")
  assert (code, said, err) == (0, f"wrote {out}\n", "")
  assert [len(made) for made in dataset_lib.open(out)] == [15, 3]
  assert "| `catch` | 15 |" in (out / "README.md").read_text()


def test_export(capsys, root, tmp_path):
  pytest.importorskip("h5py")
  out = tmp_path / "out"
  args = ("export", root, "--to=history-hdf5", f"--out={out}", "--filter=min_return:1")
  code, said, err = run(capsys, *args)
  assert (code, err) == (0, "")
  assert said.startswith(f"{out}: 11 episodes of 2 tasks, 44 steps")
  code, said, err = run(capsys, *args)
  assert code == 2 and err.count("\n") == 1 and "is there already" in err


def test_export_without_its_library(capsys, root, tmp_path, monkeypatch):
  import importlib.util

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  code, out, err = run(capsys, "export", root, "--to=minari", f"--out={tmp_path / 'out'}")
  assert (code, out) == (2, "")
  assert err.count("\n") == 1 and "pip install 'podracer-rl[minari]'" in err


@pytest.mark.parametrize(
  ("args", "expected"),
  [
    (("inf",), "unknown action inf; nearest: info (there is: info, verify, finalise, merge,"),
    (("info",), "no directory given: podracer data info DIRECTORY"),
    (("info", "nowhere"), "nowhere is not a directory"),
    (("info", "."), ". holds no expert data"),
    (("info", "x", "--filter=norm8"), "unknown filter norm8; nearest: norm80"),
    (("info", "x", "--filter=min_return"), "needs its value: write min_return:200"),
    (("info", "x", "--png=x.jpg"), "png must end in .png, got x.jpg"),
    (("info", "DATA", "--filter=norm80"), "filter norm80 needs the random score of pong"),
    (("info", "DATA/catch", "--filter=min_return:50"), "leaves none of the 10 episodes of catch"),
    (("info", "DATA", "--filtr=norm80"), "Unrecognized options: --filtr=norm80"),
    (("verify", "nowhere"), "nowhere"),
    (("finalise", "nowhere"), "nowhere"),
    (("merge", "--out=x"), "no directory given: podracer data merge A B --out=C"),
    (("merge", "nowhere", "--out=x"), "nowhere"),
    (("export", "DATA", "--to=minar", "--out=x"), "unknown format minar; nearest: minari"),
    (("export", "DATA", "--to=minari"), "--out"),
    (
      ("export", "DATA", "--to=minari", "--out=DATA/scores.json/x"),
      "scores.json is not a directory",
    ),
    (("merge", "DATA", "--out=DATA/scores.json/x"), "scores.json is not a directory"),
  ],
  ids=" ".join,
)
def test_bad_input_is_one_line(capsys, root, args, expected, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, out, err = run(capsys, *(arg.replace("DATA", str(root)) for arg in args))
  assert (code, out) == (2, "")
  assert err.count("\n") == 1, err
  assert expected in err
  assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_wrong_filter_is_answered_before_jax_is_imported(tmp_path):
  code = (
    "import sys\nfrom podracer.launch import main\n"
    "try: main.main(['data', 'info', '.', '--filter=norm8'])\n"
    "except SystemExit as stop: assert stop.code == 2\n"
    "assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.parametrize("action", ["info", "verify", "finalise", "merge", "export"])
def test_help(capsys, action):
  code, out, _ = run(capsys, action, "--help")
  assert code == 0 and f"usage: podracer data {action}" in out
  code, out, _ = run(capsys)
  assert code == 0 and f"  {action}" in out
