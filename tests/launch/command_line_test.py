"""Parsing of command lines."""

import dataclasses
from typing import Annotated, Literal

import pytest
import tyro

from podracer import config
from podracer.launch import command_line


@dataclasses.dataclass(frozen=True)
class Inner:
  learning_rate: float = 0.5
  sizes: tuple[int, ...] = (1, 2)

  def __post_init__(self):
    config.check_positive(learning_rate=self.learning_rate)


@dataclasses.dataclass(frozen=True)
class Outer:
  """Does something."""

  workdir: str
  """Directory of the run."""
  mode: Literal["greedy", "sample"] = "greedy"
  """How."""
  config: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(
  ("args", "expected"),
  [
    (["--env=a"], "a"),
    (["--env", "a"], "a"),
    (["--env=a=b"], "a=b"),
    (["--env="], ""),
    (["--env=a", "--env=b"], "b"),
    (["--env"], None),
    (["--environment=a", "env=a", "-env=a"], None),
    ([], None),
  ],
)
def test_peek(args, expected):
  assert command_line.peek(args, "env") == expected


def test_peek_takes_dashes_for_underscores():
  assert command_line.peek(["--num-seeds=2"], "num_seeds") == "2"


def test_parse():
  args = ["--workdir=a", "--mode", "sample", "--config.learning_rate=2", "--config.sizes", "3", "4"]
  expected = Outer(workdir="a", mode="sample", config=Inner(learning_rate=2.0, sizes=(3, 4)))
  assert command_line.parse(Outer, "program", args) == expected
  assert command_line.parse(Outer, "program", [a.replace("_", "-") for a in args]) == expected


def test_parse_starts_from_the_default():
  default = Outer(workdir="a", config=Inner(learning_rate=2.0))
  parsed = command_line.parse(Outer, "program", ["--mode=sample"], default=default)
  assert parsed == dataclasses.replace(default, mode="sample")


@dataclasses.dataclass(frozen=True)
class AddedUp:
  filter: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
  teacher: tyro.conf.UseAppendAction[tuple[str, ...]] = ()


def test_what_is_given_replaces_a_default_also_where_a_flag_is_added_up():
  default = AddedUp(filter=("a", "b"), teacher=("c",))
  for args, expected in (
    ([], default),
    (["--filter=a", "--filter=b"], default),
    (["--filter", "d"], AddedUp(filter=("d",), teacher=("c",))),
    (["--filter=d", "--teacher=e", "--teacher=f"], AddedUp(filter=("d",), teacher=("e", "f"))),
  ):
    assert command_line.parse(AddedUp, "program", args, default=default) == expected


@pytest.mark.parametrize(
  ("args", "expected"),
  [
    ([], "--workdir"),
    (["--workdir=a", "--mode=loud"], "greedy"),
    (["--workdir=a", "--config.learning_rate=0"], "learning_rate must be above 0, got 0"),
    (["--workdir=a", "--config.learning_rat=1"], "nearest: --config.learning_rate"),
    (["--workdir=a", "--config.sizes", "x"], "--config.sizes"),
    (["--workdir=a", "stray"], "stray"),
  ],
)
def test_a_fault_is_one_line_and_exit_code_2(args, expected, capsys):
  with pytest.raises(SystemExit) as stop:
    command_line.parse(Outer, "podracer test", args)
  captured = capsys.readouterr()
  assert stop.value.code == command_line.USAGE_ERROR
  assert captured.out == ""
  (line,) = captured.err.splitlines()
  assert line.startswith("podracer test: ")
  assert expected in line


def test_help(capsys):
  with pytest.raises(SystemExit) as stop:
    command_line.parse(Outer, "podracer test", ["--help"])
  assert stop.value.code == 0
  out = capsys.readouterr().out
  assert "usage: podracer test" in out
  assert "Directory of the run." in out


def test_check_choice():
  command_line.check_choice("agent", "impala", ("impala", "muzero"))
  with pytest.raises(config.InputError, match=r"unknown agent imapla; nearest: impala \(there is"):
    command_line.check_choice("agent", "imapla", ("impala", "muzero"))
  with pytest.raises(config.InputError, match=r"unknown agent q \(there is: impala, muzero\)"):
    command_line.check_choice("agent", "q", ("impala", "muzero"))
