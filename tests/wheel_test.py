"""The wheel, built and imported outside the checkout: what is not packaged shows here."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent

IMPORT_ALL = """
import importlib, pathlib, pkgutil, podracer
assert pathlib.Path(podracer.__file__).is_relative_to({target!r}), podracer.__file__
names = [m.name for m in pkgutil.walk_packages(podracer.__path__, "podracer.")]
for name in names:
  assert pathlib.Path(importlib.import_module(name).__file__).is_relative_to({target!r}), name
for name in podracer.__all__:
  getattr(podracer, name)
print(len(names))
"""


@pytest.mark.slow
def test_every_module_of_the_wheel_imports(tmp_path):
  run = lambda *args, **kw: subprocess.run(args, check=True, capture_output=True, text=True, **kw)  # noqa: E731
  run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
  (wheel,) = tmp_path.glob("podracer_rl-*.whl")
  packaged = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
  expected = {
    (path if part == "podracer" else pathlib.Path("podracer") / path).as_posix()
    for part in ("podracer", "anakin", "sebulba", "agents", "launch")
    for path in (p.relative_to(ROOT) for p in (ROOT / part).rglob("*.py"))
  }
  assert packaged == expected
  target = tmp_path / "site"
  run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel)
  environment = {**os.environ, "PYTHONPATH": str(target)}
  code = IMPORT_ALL.format(target=str(target))
  result = run(sys.executable, "-c", code, cwd=tmp_path, env=environment)
  assert int(result.stdout) >= 40
