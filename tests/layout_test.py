"""Who may import whom: launch -> anakin, sebulba, agents -> podracer -> libraries; held by the ast."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ("anakin", "sebulba", "agents", "launch")
MODULES = sorted(path for part in ("podracer", *PARTS) for path in (ROOT / part).rglob("*.py"))
# Shows the public names of all parts; imports them lazily.
FACADE = ROOT / "podracer" / "__init__.py"


def part_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).parts[0]


def imported(path: pathlib.Path) -> list[tuple[int, str]]:
  """Returns (level of a relative import, dotted name) of every import in a module."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [(0, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [(node.level, f"{node.module or ''}.{a.name}".strip(".")) for a in node.names]
  return found


def part_imported(name: str) -> str | None:
  """Returns the root folder an absolute import of podracer leads to, or None for a library."""
  words = name.split(".")
  if words[0] != "podracer":
    return None
  return words[1] if len(words) > 1 and words[1] in PARTS else "podracer"


ALLOWED = {
  "podracer": {"podracer"},
  "anakin": {"podracer", "anakin"},
  "sebulba": {"podracer", "sebulba"},
  "agents": {"podracer", "agents"},
  "launch": {"podracer", *PARTS},
}


@pytest.mark.parametrize(
  "path", [m for m in MODULES if m != FACADE], ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_follow_the_arrows(path):
  part = part_of(path)
  for level, name in imported(path):
    if level == 0:
      assert name.split(".")[0] not in PARTS, f"{name}: a second copy; write podracer.{name}"
      target = part_imported(name)
      assert target is None or target in ALLOWED[part], f"{part}/ must not import {name}"
    else:
      depth = len(path.relative_to(ROOT).parts) - 1
      assert level <= depth, f"relative import of {name} leaves {part}/"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_machinery_names_no_agent_and_agents_no_device(path):
  part = part_of(path)
  agents = {p.name for p in (ROOT / "agents").iterdir() if p.is_dir() and p.name[0] not in "_."}
  names = {
    node.id if isinstance(node, ast.Name) else node.attr
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Name | ast.Attribute)
  }
  if part in ("podracer", "anakin", "sebulba"):
    assert not names & agents
  if part == "agents":
    assert not names & {"devices", "device_put", "pmean", "psum", "Mesh", "Thread"}


def test_importing_the_core_needs_no_jax(tmp_path):
  import subprocess
  import sys

  code = (
    "import sys, podracer, podracer.environments, podracer.anakin.config, podracer.agents.impala, "
    "podracer.launch.train; list(podracer.environments.names()); "
    "assert 'jax' not in sys.modules, 'jax was imported'"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# What unpickles runs whatever the bytes say. The one that does gives them to its own child as it starts it.
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MAY_UNPICKLE = {ROOT / "podracer" / "environments" / "gymnasium.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_from_disk_or_network(path):
  libraries = {name.split(".")[0] for level, name in imported(path) if level == 0}
  assert path in MAY_UNPICKLE or not libraries & UNPICKLERS
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
      assert isinstance(node.value, ast.Constant)
      assert node.value.value is False
