"""Colab: podracer installs beside what its runtime has, and replaces none of it."""

import importlib.util
import json
import os
import pathlib

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
CONSTRAINTS = FOLDER / "colab-constraints.txt"
VERSION = (3, 13)

USE = """
import importlib, jax, podracer
for name in podracer.__all__:
  getattr(podracer, name)
for name in ("anakin", "sebulba", "agents.impala", "agents.muzero", "data", "launch.watch"):
  importlib.import_module("podracer." + name)
from podracer.agents import impala
environment = podracer.make_environment("gymnax:Catch-bsuite")
config = impala.ImpalaConfig()
machine = podracer.anakin.AnakinConfig(num_environments=8, unroll_length=4)
agent = impala.make_agent(config, environment.spec)
*_, report = podracer.anakin.train(agent, environment, config, machine, num_env_steps=100)
print(report.env_steps)
"""


def load_fresh():
  """Returns the module beside this one: `tests` is the name of another package too."""
  spec = importlib.util.spec_from_file_location("fresh", pathlib.Path(__file__).parent / "fresh.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def pins():
  lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
  return dict(line.split("==") for line in lines if line)


def install_cell(name):
  cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
  (cell,) = (cell.source for cell in cells if "SOURCE = " in cell.source)
  return cell


def test_pins_are_exact_and_name_jax():
  found = pins()
  assert {"jax", "jaxlib", "flax", "optax", "numpy", "gymnasium"} <= found.keys()
  assert all(version.replace(".", "").isdecimal() for version in found.values())


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
  """A folder with an environment like Colab's and a wheel, before podracer is installed."""
  fresh, folder = load_fresh(), tmp_path_factory.mktemp("colab")
  interpreter = fresh.find_python(VERSION)
  if interpreter is None:
    pytest.skip(f"there is no Python {'.'.join(map(str, VERSION))}, which Colab has")
  python = fresh.make_environment(folder / "environment", interpreter)
  fresh.run(python, "-m", "pip", "install", "--quiet", "-r", CONSTRAINTS, cwd=folder)
  return folder, python, fresh.build_wheel(folder)


def run_install_cell(name, colab, **environment):
  """Runs the cell in a folder of its own, as a kernel would; returns that folder."""
  folder, python, wheel = colab
  there = folder / name
  there.mkdir(exist_ok=True)
  load_fresh().run(
    python,
    "-c",
    install_cell(name),
    cwd=there,
    env={**os.environ, "PODRACER_SOURCE": str(wheel), **environment},
  )
  return there


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_install_cells_leave_what_colab_has(colab):
  folder, python, _ = colab
  # A dry run can build nothing, for it does not install what building needs either. Of all that the cells
  # install this one, which TFDS needs, has no wheel; Colab has both.
  wheels, fresh = folder / "wheels", load_fresh()
  fresh.run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels, "promise")
  links = " ".join(filter(None, (os.environ.get("PIP_FIND_LINKS"), str(wheels))))
  for name in NAMES:
    report = folder / f"{name}.json"
    run_install_cell(name, colab, PIP_DRY_RUN="1", PIP_REPORT=str(report), PIP_FIND_LINKS=links)
    changed = {
      item["metadata"]["name"].lower(): item["metadata"]["version"]
      for item in json.loads(report.read_text())["install"]
    }
    assert "podracer-rl" in changed
    assert not changed.keys() & pins().keys(), f"{name} would change {changed}"

  run_install_cell("anakin", colab)
  listed = json.loads(fresh.run(python, "-m", "pip", "list", "--format=json", cwd=folder))
  versions = {package["name"].lower(): package["version"] for package in listed}
  assert "podracer-rl" in versions
  assert {name: versions[name] for name in pins()} == pins()
  # As many environment steps as asked for, or an update more: 8 environments x 4 steps.
  env_steps = int(fresh.run(python, "-c", USE, cwd=folder).splitlines()[-1])
  assert 100 <= env_steps < 132
