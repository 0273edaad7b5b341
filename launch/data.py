"""`podracer data info|verify|finalise|merge|export`: what can be done with recorded data."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import tyro

from podracer import config
from podracer.data import export as export_lib
from podracer.data import filters as filters_lib

from . import command_line

FOUND_PROBLEMS = 1
Directory = Annotated[str, tyro.conf.arg(metavar="DIRECTORY", help_behavior_hint="")]
Directories = Annotated[
  tuple[str, ...], tyro.conf.arg(metavar="DIRECTORY ...", help_behavior_hint="")
]
Filters = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclasses.dataclass(frozen=True)
class DirectoryConfig:
  """An action on one collection."""

  directory: tyro.conf.Positional[Directory] = ""
  """Of the collection; info and export also take that of one task of it."""


@dataclasses.dataclass(frozen=True)
class VerifyConfig(DirectoryConfig):
  """Lists what is torn, missing, altered or there twice; exits with 1 where anything is."""


@dataclasses.dataclass(frozen=True)
class FinaliseConfig(DirectoryConfig):
  """Makes what has been recorded so far readable; can be done again, and while recording goes on."""


@dataclasses.dataclass(frozen=True)
class InfoConfig(DirectoryConfig):
  """Tells what is in a collection."""

  filter: Filters = ()
  """Take only some episodes: --filter=norm80 --filter=top_fraction:0.1, one after the other."""
  png: str = ""
  """Draw histograms of the returns into this file."""
  duplicates: bool = True
  """Whether to read all episodes to see how many are copies; --no-duplicates is faster."""

  def __post_init__(self) -> None:
    _check_filters(self.filter)
    config.check(not self.png or self.png.endswith(".png"), f"png must end in .png, got {self.png}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(DirectoryConfig):
  """Writes a collection in the format of another library."""

  to: str
  """rlds-tfrecord, jat-parquet, minari or history-hdf5."""
  out: str
  """Directory to write to."""
  filter: Filters = ()
  """Take only some episodes: --filter=norm80 --filter=top_fraction:0.1, one after the other."""

  def __post_init__(self) -> None:
    command_line.check_choice("format", self.to, tuple(export_lib.FORMATS))
    _check_filters(self.filter)


@dataclasses.dataclass(frozen=True)
class MergeConfig:
  """Makes one collection of several."""

  directories: tyro.conf.Positional[Directories]
  """Of the collections."""
  out: str
  """Directory of the new one."""

  def __post_init__(self) -> None:
    config.check(bool(self.directories), "no directory given: podracer data merge A B --out=C")


def _check_filters(texts: Sequence[str]) -> None:
  for text in texts:
    filters_lib.parse(text)


def _open(directory: str, texts: Sequence[str]) -> Any:
  """Returns a collection as some filters leave it."""
  from podracer.data import dataset

  return filters_lib.apply(dataset.open(directory), texts)


def _info(wanted: InfoConfig) -> None:
  collection = _open(wanted.directory, wanted.filter)
  import rich.console

  from podracer.data import report

  console = rich.console.Console(highlight=False)
  reports = []
  for dataset in collection:
    reports.append(report.describe(dataset, wanted.duplicates))
    console.print(report.make_table(reports[-1]))
  if wanted.png:
    print(f"wrote {report.draw_returns(reports, wanted.png)}")


def _verify(wanted: VerifyConfig) -> None:
  from podracer.data import store

  problems = store.verify(wanted.directory)
  for problem in problems:
    print(f"{problem.kind}: {problem.text}")
  if problems:
    sys.exit(FOUND_PROBLEMS)
  print(f"{wanted.directory}: nothing is wrong")


def _finalise(wanted: FinaliseConfig) -> None:
  from podracer.data import card

  card.finalise(wanted.directory)
  print(f"finalised {wanted.directory}")


def _merge(wanted: MergeConfig) -> None:
  from podracer.data import card, store

  store.merge(wanted.directories, wanted.out)
  card.write(wanted.out)
  print(f"wrote {wanted.out}")


def _export(wanted: ExportConfig) -> None:
  collection = _open(wanted.directory, wanted.filter)
  print(export_lib.export(wanted.to, collection, wanted.out))


class _Action(NamedTuple):
  """One thing to do: its options, what does it, and what it does."""

  config: Any
  run: Callable[[Any], None]
  help: str


ACTIONS = {
  "info": _Action(InfoConfig, _info, "tell what is in it"),
  "verify": _Action(VerifyConfig, _verify, "list what is torn, missing or there twice"),
  "finalise": _Action(FinaliseConfig, _finalise, "make it readable, after recording"),
  "merge": _Action(MergeConfig, _merge, "make one of several"),
  "export": _Action(ExportConfig, _export, "write it in the format of another library"),
}


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  if not args or args[0] in ("-h", "--help"):
    print(_help())
    sys.exit(0)
  action, wanted = parse(args)
  with command_line.disk_errors(f"podracer data {args[0]}"):
    action.run(wanted)


def parse(args: Sequence[str]) -> tuple[_Action, Any]:
  """Returns the action that is named first, and its options."""
  command_line.check_choice("action", args[0], tuple(ACTIONS))
  action = ACTIONS[args[0]]
  wanted = command_line.parse(action.config, f"podracer data {args[0]}", args[1:])
  if isinstance(wanted, DirectoryConfig):
    config.check(bool(wanted.directory), f"no directory given: podracer data {args[0]} DIRECTORY")
  if isinstance(wanted, ExportConfig | MergeConfig):
    command_line.check_writable("out", wanted.out)
  return action, wanted


def _help() -> str:
  lines = ["usage: podracer data ACTION [OPTIONS]", "", "actions, on recorded data:"]
  lines += [f"  {name:10}{action.help}" for name, action in ACTIONS.items()]
  lines += ["", "`podracer data ACTION --help` tells the options of an action. For example:", ""]
  lines += ["  podracer data info data/catch --filter=norm80"]
  return "\n".join(lines)
