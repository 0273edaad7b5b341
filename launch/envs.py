"""`podracer envs [pattern]`: lists the environments there are."""

import dataclasses
import fnmatch
from collections.abc import Sequence

import tyro

from podracer import config, environments

from . import command_line


@dataclasses.dataclass(frozen=True)
class EnvsConfig:
  """Lists environments, of suites that are not installed too."""

  pattern: tyro.conf.Positional[str] = "*"
  """Only those whose name contains this, or fits it where it has a * or a ?."""


def matching(pattern: str) -> list[str]:
  """Returns the environments that fit a pattern, case ignored."""
  lower = pattern.lower()
  if not any(sign in lower for sign in "*?["):
    lower = f"*{lower}*"
  return [name for name in environments.names() if fnmatch.fnmatchcase(name.lower(), lower)]


def main(args: Sequence[str]) -> None:
  """Runs the command."""
  parsed = command_line.parse(EnvsConfig, "podracer envs", args)
  found = matching(parsed.pattern)
  if not found:
    close = config.nearest(parsed.pattern, environments.names())
    hint = f"; nearest: {', '.join(close)}" if close else ""
    raise config.InputError(f"no environment fits {parsed.pattern}{hint}")
  for suite_name in environments.suites():
    names = [name for name in found if name.startswith(f"{suite_name}:")]
    if not names:
      continue
    module = environments.suite(suite_name)
    note = (
      ""
      if environments.is_installed(module)
      else (f"   (not installed: pip install 'podracer-rl[{module.EXTRA}]')")
    )
    print(f"{suite_name}: {len(names)}{note}")
    for name in names:
      print(f"  {name}")
