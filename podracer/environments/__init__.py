"""The environment suites: one module each, found by its name, `suite:environment`.

A suite module has `LIBRARY` (what it imports), `EXTRA` (the extra of `podracer-rl` that installs its
library, or None), `NAMES` (its environments) and `make(name, **options) -> Environment`, or where it has
`IS_HOST = True` a `HostFactory`. It imports JAX and its library in `make` only (or where `NAMES` is
asked for), so that names can be listed and checked before JAX starts. Modules with a leading underscore
are no suites but what several suites share.

Names joined by `+` are the tasks of one environment, see `podracer.multitask`.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from podracer import config

TASK_SEPARATOR = "+"


def suites() -> tuple[str, ...]:
  """Returns the names of all suites, installed or not."""
  found = (module.name for module in pkgutil.iter_modules(__path__))
  return tuple(sorted(name for name in found if not name.startswith("_")))


def suite(name: str) -> ModuleType:
  """Returns the module of a suite."""
  return importlib.import_module(f"{__name__}.{name}")


def is_installed(module: ModuleType) -> bool:
  """Returns True where the library of a suite can be imported."""
  return importlib.util.find_spec(module.LIBRARY) is not None


def names() -> Iterator[str]:
  """Yields every `suite:environment` there is, of suites that are not installed too."""
  for suite_name in suites():
    yield from (f"{suite_name}:{name}" for name in suite(suite_name).NAMES)


def split(name: str) -> tuple[str, ...]:
  """Returns the names of the tasks, of an environment of one task its name alone."""
  return tuple(name.split(TASK_SEPARATOR))


def check_name(name: str) -> None:
  """Checks `suite:environment` or `package.module:function` without importing JAX or the suite.

  Args:
    name: one of them, or several joined by `+`.

  Raises:
    InputError: for an unknown suite or environment, with the nearest names; for a suite whose
      library is not installed, with the command that installs it.
  """
  tasks = split(name)
  config.check(
    len(tasks) == 1 or all(tasks),
    f"environment {name}: a name is missing beside a {TASK_SEPARATOR}",
  )
  for task in tasks:
    _check_task(task)


def _check_task(name: str) -> None:
  prefix, separator, rest = name.partition(":")
  if prefix in suites():
    module = suite(prefix)
    # A suite that can't be asked for its names where it isn't installed has none there.
    names_known = bool(module.NAMES)
    if rest not in module.NAMES and not _is_function_of(module, rest) and names_known:
      raise config.InputError(_unknown(name))
    if not is_installed(module):
      raise config.InputError(
        f"environment {name} needs the {prefix} suite: pip install 'podracer-rl[{module.EXTRA}]'"
      )
    return
  # A module name has a dot or can be found; else it is more likely a misspelt suite.
  if not separator or not rest or not _is_findable(prefix):
    raise config.InputError(_unknown(name))


def is_host(name: str) -> bool:
  """Returns True where a suite of the environment, or of a task of it, runs on the host."""
  prefixes = {task.partition(":")[0] for task in split(name)}
  return any(getattr(suite(prefix), "IS_HOST", False) for prefix in prefixes & {*suites()})


def _is_function_of(module: ModuleType, rest: str) -> bool:
  """Returns True for `package.module:function` in a suite that takes one."""
  module_name, separator, function = rest.rpartition(":")
  takes = getattr(module, "TAKES_FUNCTIONS", False)
  return bool(takes and separator and function and _is_findable(module_name))


def _is_findable(module_name: str) -> bool:
  try:
    return importlib.util.find_spec(module_name) is not None
  except (ImportError, ValueError):
    return False


def _unknown(name: str) -> str:
  close = config.nearest(name, names()) or config.nearest(name.rpartition(":")[2], names())
  hint = f"; nearest: {', '.join(close)}" if close else ""
  return (
    f"unknown environment {name}{hint} (`podracer envs` lists all; your own is "
    "package.module:function)"
  )


def version(prefix: str) -> str:
  """Returns the version of what a suite imports, or "" of a module of the user's."""
  if prefix not in suites():
    return ""
  try:
    return importlib.metadata.version(suite(prefix).LIBRARY)
  except importlib.metadata.PackageNotFoundError:
    return ""


def make(name: str, **options: Any) -> Any:
  """Builds an environment.

  Args:
    name: `suite:environment`, or `package.module:function` of the user's own, which is called with
      the options and returns an `Environment`; or several joined by `+`.
    **options: passed on to the suite, or to the function; those of task i of several as `i.name`.

  Returns:
    An `environment.Environment`, or of a suite that runs on the host a
    `host_environment.HostFactory`, whose spec carries `name`.

  Raises:
    InputError: as `check_name`, for an option the suite doesn't know, and for a function of the user's
      that is not there or returns something else.
  """
  check_name(name)
  tasks = split(name)
  if len(tasks) == 1:
    return _make_task(name, options)
  from podracer import multitask

  by_task = _split_options(name, options)
  return multitask.make([_make_task(*task) for task in zip(tasks, by_task, strict=True)], name)


def _split_options(name: str, options: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the options of each task, given as `i.name`."""
  by_task: list[dict[str, Any]] = [{} for _ in split(name)]
  for option, value in options.items():
    number, _, own = option.partition(".")
    config.check(
      number.isdecimal() and int(number) < len(by_task) and bool(own),
      f"environment {name}: options of several tasks are <task>.<name>=value with a task of 0 .. "
      f"{len(by_task) - 1}, got {option}",
    )
    by_task[int(number)][own] = value
  return by_task


def _make_task(name: str, options: dict[str, Any]) -> Any:
  from podracer import environment as environment_lib
  from podracer import host_environment

  prefix, _, rest = name.partition(":")
  if prefix in suites():
    made = suite(prefix).make(rest, **options)
  else:
    function = _user_function(name, prefix, rest)
    _check_options(name, function, options)
    made = function(**options)
    if not isinstance(made, environment_lib.Environment | host_environment.HostFactory):
      raise config.InputError(
        f"environment {name}: {rest}() returned {type(made).__name__}, not a "
        "podracer.environment.Environment or a podracer.host_environment.HostFactory"
      )
  return made._replace(spec=made.spec._replace(name=name))


def _check_options(name: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
  """Raises InputError for options that a function of the user's doesn't take, or lacks."""
  from . import _adapt

  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):  # Some of C have none.
    return
  if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
    _adapt.check_options(name, options, _adapt.arguments(function))
  try:
    signature.bind(**options)
  except TypeError as error:
    raise config.InputError(f"environment {name}: {error}") from None


def _user_function(name: str, module_name: str, function_name: str) -> Callable[..., Any]:
  try:
    module = importlib.import_module(module_name)
  except Exception as error:
    # The traceback of the cause goes along, for the user's own code is to be mended.
    raise config.InputError(
      f"environment {name}: importing {module_name} raised {type(error).__name__}: {error}"
    ) from error
  function = getattr(module, function_name, None)
  if not callable(function):
    raise config.InputError(
      f"environment {name}: module {module_name} has no function {function_name}"
    )
  return function
