"""The small files of a run directory, each written whole or not at all."""

import itertools
import json
import pathlib
from typing import Any

from podracer import files


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
  """Writes a JSON file; see `files.write`."""
  files.write(path, (json.dumps(values, indent=2) + "\n").encode())


def write_evaluation(workdir: str, env_steps: int, summary: dict[str, Any]) -> None:
  """Writes evaluation.json: the last evaluation."""
  write_json(pathlib.Path(workdir) / "evaluation.json", {"env_steps": env_steps, **summary})


def evaluated_env_steps(workdir: str) -> int | None:
  """Returns the environment steps that evaluation.json is of, or None where it can't be read."""
  try:
    values = json.loads((pathlib.Path(workdir) / "evaluation.json").read_text(encoding="utf-8"))
    return int(values["env_steps"])
  except (OSError, ValueError, KeyError, TypeError):
    return None


def move_aside(workdir: str) -> pathlib.Path:
  """Renames a run directory to the first free `<workdir>.<n>` and returns the new name."""
  path = pathlib.Path(workdir)
  free = (path.with_name(f"{path.name}.{n}") for n in itertools.count(1))
  return path.rename(next(name for name in free if not name.exists()))
