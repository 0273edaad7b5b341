"""Parsing of command lines: tyro, with every fault as one line and exit code 2."""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from podracer import config, report

T = TypeVar("T")
RUN_ERROR = 1
USAGE_ERROR = 2
FINAL = (RUN_ERROR, USAGE_ERROR)
"""Exit codes of what stays wrong however often it is tried."""
FINAL_VARIABLE = "PODRACER_FINAL"
"""Names a file that a process which ends with one of them writes it to, for whoever started several."""


def fail(program: str, message: str) -> NoReturn:
  """Prints one line and exits with code 2."""
  print(f"{program}: {message}", file=sys.stderr)
  sys.exit(USAGE_ERROR)


@contextlib.contextmanager
def noting_final() -> Iterator[None]:
  """Writes an exit code that is final to the file that `FINAL_VARIABLE` names, if it does."""
  code: object = 0
  try:
    yield
  except SystemExit as stop:
    code = stop.code
    raise
  except BaseException:
    code = RUN_ERROR
    raise
  finally:
    path = os.environ.get(FINAL_VARIABLE)
    if path and code in FINAL:
      with contextlib.suppress(OSError):  # Without it a script tries again.
        pathlib.Path(path).write_text(f"{code}\n", encoding="utf-8")


def parse(cls: Any, program: str, args: Sequence[str], default: Any = None) -> Any:
  """Parses arguments into a dataclass.

  Args:
    cls: the dataclass.
    program: the words before the arguments, for messages.
    args: the arguments.
    default: an instance whose values are the defaults, or None.

  Returns:
    An instance of `cls`. For `--help` it prints and exits with 0, for a fault with 2.
  """
  _check_repeated(cls, program, args)
  errors = io.StringIO()
  keywords = {} if default is None else {"default": _without_given(default, args)}
  try:
    with contextlib.redirect_stderr(errors):
      return tyro.cli(cls, prog=program, args=list(args), use_underscores=True, **keywords)
  except SystemExit as stop:
    if stop.code == 0:
      raise
    fail(program, _one_line(errors.getvalue()))


@contextlib.contextmanager
def disk_errors(path: str) -> Iterator[None]:
  """Turns what a disk or a path refuses into one line: it is no fault of the program.

  Args:
    path: named where the error itself names none.
  """
  try:
    yield
  except OSError as error:
    if isinstance(error, report.RunError):
      raise
    raise report.RunError(f"{error.filename or path}: {error.strerror or error}") from error


def check_writable(name: str, directory: str) -> None:
  """Raises InputError where a directory can't be made or written, before anything is begun."""
  path = pathlib.Path(directory).absolute()
  # `Path.exists` raises where a directory may not be searched.
  while not os.path.exists(path):
    path = path.parent
  config.check(path.is_dir(), f"{name} {directory}: {path} is not a directory")
  config.check(os.access(path, os.W_OK), f"{name} {directory}: {path} can't be written")


def peek(args: Sequence[str], name: str) -> str | None:
  """Returns the value of `--name=value` or `--name value` before the real parsing, or None."""
  value = None
  for i, arg in enumerate(args):
    flag, separator, rest = arg.partition("=")
    if flag.replace("-", "_") == f"__{name}":
      value = rest if separator else (args[i + 1] if i + 1 < len(args) else None)
  return value


def split(cls: Any, args: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns the flags that are fields of a dataclass, and all others as they are.

  Args:
    cls: the dataclass; a field that is a bool takes no value.
    args: flags as `--name=value` or `--name value`.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  own, others = [], []
  waiting = list(args)
  while waiting:
    arg = waiting.pop(0)
    name, separator, _ = arg.removeprefix("--").partition("=")
    field = fields.get(name.replace("-", "_")) if arg.startswith("--") else None
    if field is None and arg not in ("-h", "--help"):
      others.append(arg)
      continue
    own.append(arg)
    if field is not None and not separator and field.type is not bool and waiting:
      own.append(waiting.pop(0))
  return own, others


def check_choice(kind: str, name: str, valid: Sequence[str]) -> None:
  """Raises InputError unless `name` is one of `valid`."""
  if name not in valid:
    close = config.nearest(name, valid)
    hint = f"; nearest: {close[0]}" if close else ""
    raise config.InputError(f"unknown {kind} {name}{hint} (there is: {', '.join(valid)})")


def _check_repeated(cls: Any, program: str, args: Sequence[str]) -> None:
  """Fails where a flag of several values is given twice: the last would silently replace the others."""
  given = [arg.partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")]
  repeated = {flag for flag in given if given.count(flag) > 1}
  if not repeated:
    return
  for name in _sequences(cls):
    if f"__{name}" in repeated:
      fail(program, f"--{name} is given twice: write all its values behind one, --{name} A B")


def _without_given(default: Any, args: Sequence[str]) -> Any:
  """Returns the default without the values of the given flags that are added up: tyro adds to them."""
  hints = typing.get_type_hints(type(default), include_extras=True)
  given = [
    field.name
    for field in dataclasses.fields(default)
    if tyro.conf.UseAppendAction in getattr(hints[field.name], "__metadata__", ())
    and peek(args, field.name) is not None
  ]
  return dataclasses.replace(default, **dict.fromkeys(given, ())) if given else default


def _sequences(cls: Any, prefix: str = "") -> Iterator[str]:
  """Yields the names of the flags that take several values at once, and aren't added up."""
  origin = typing.get_origin(cls) or cls
  parameters = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(cls), strict=True))
  hints = typing.get_type_hints(origin, include_extras=True)
  for field in dataclasses.fields(origin):
    name = f"{prefix}{field.name}"
    hint = parameters.get(hints[field.name], hints[field.name])
    if dataclasses.is_dataclass(hint):
      yield from _sequences(hint, f"{name}.")
    elif typing.get_origin(hint) is tuple:
      yield name


def _one_line(box: str) -> str:
  """Returns the message of one of tyro's boxes, with the flags it suggests."""
  lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
  # Its title, and where it finds no UTF-8 a line of - in place of the box.
  lines = [line for line in lines if line][1:]
  if lines and _is_rule(lines[0]):
    lines = lines[1:]
  rule = next((i for i, line in enumerate(lines) if _is_rule(line)), len(lines))
  message = re.sub(r"\s+", " ", " ".join(lines[:rule])).strip().rstrip(".")
  message = message.removeprefix("Error parsing ")
  # The name of the dataclass or field whose check failed says nothing to a person.
  message = re.sub(r"^(\w+Config|config|config\.network): ", "", message)
  suggested = [
    line.split()[0].rstrip(",") for line in lines[rule:] if line.startswith("--") and " " in line
  ]
  if re.fullmatch(r"Unrecognized options: (True|False)", message, re.IGNORECASE):
    return "a yes-or-no option takes no value: --name for yes, --no_name for no"
  if suggested and message.startswith("Unrecognized"):
    message += f"; nearest: {', '.join(dict.fromkeys(suggested))}"
  return message or box.strip()


def _is_rule(line: str) -> bool:
  return len(line) > 2 and set(line) <= {"─", "-"}
