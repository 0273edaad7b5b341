"""How the command ends, in real processes."""

import os
import signal
import subprocess
import sys

import pytest

from podracer.launch import main as main_lib


def start(*args):
  command = [sys.executable, "-m", "podracer.launch.main", *args]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("args", [("envs",), ("plot", "--help"), ("--help",)], ids=" ".join)
def test_nobody_reads_what_is_printed(args):
  process = start(*args)
  process.stdout.close()
  assert process.stderr.read() == b""
  assert process.wait(60) == 128 + signal.SIGPIPE


def test_ctrl_c_is_one_line(tmp_path):
  (tmp_path / "metrics.jsonl").touch()
  os.mkfifo(tmp_path / "config.json")
  process = start("plot", str(tmp_path))
  with (tmp_path / "config.json").open("w"):  # Waits until it is read.
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == b"podracer: interrupted\n"
  assert process.wait(60) == 128 + signal.SIGINT


def test_a_broken_pipe_of_something_else_is_a_fault(monkeypatch):
  def broken(name):
    raise BrokenPipeError

  monkeypatch.setattr(main_lib.importlib, "import_module", broken)
  with pytest.raises(BrokenPipeError):
    main_lib.main(["envs"])
