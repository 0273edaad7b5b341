"""mypy on a tree of links with the installed shape: at the root it would check the core alone."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("anakin", "sebulba", "agents", "launch")


def test_types(tmp_path):
  package = tmp_path / "podracer"
  package.mkdir()
  for path in (ROOT / "podracer").iterdir():
    (package / path.name).symlink_to(path)
  for part in PARTS:
    (package / part).symlink_to(ROOT / part)
  result = subprocess.run(
    [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "-p", "podracer"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert "Success" in result.stdout
