"""What is installed by others: a wheel of the checkout, and virtual environments of its own to put it in."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("podracer", "anakin", "sebulba", "agents", "launch")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


def run(*args, **keywords):
  """Runs a command; returns its output, and fails with it."""
  result = subprocess.run(
    [str(arg) for arg in args],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
    **keywords,
  )
  assert result.returncode == 0, f"{args}\n{result.stdout[-6000:]}"
  return result.stdout


def find_python(version):
  """Returns an interpreter of (major, minor), or None. One on the path may be a shim without it."""
  short = ".".join(map(str, version))
  candidates = [sys.executable, shutil.which(f"python{short}")]
  candidates += sorted(pathlib.Path.home().glob(f".pyenv/versions/{short}*/bin/python"))
  candidates += sorted(pathlib.Path.home().glob(f".local/share/uv/python/*{short}*/bin/python"))
  code = f"import sys, venv; sys.exit(sys.version_info[:2] != {tuple(version)})"
  for candidate in filter(None, candidates):
    if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
      return candidate
  return None


def build_wheel(folder):
  """Returns the path of a wheel, built from a copy: builds at once in the checkout share a folder."""
  source = folder / "source"
  for part in PARTS:
    shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
  for name in FILES:
    shutil.copy(ROOT / name, source / name)
  run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "wheel", source)
  (wheel,) = (folder / "wheel").glob("podracer_rl-*.whl")
  return wheel


def make_environment(folder, python=sys.executable):
  """Returns the interpreter of a new virtual environment."""
  run(python, "-m", "venv", folder)
  return folder / "bin" / "python"
