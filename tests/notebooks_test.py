"""The notebooks: they are the scripts beside them, and run to the end where only a wheel is installed."""

import importlib.util
import os
import pathlib
import re

import jupytext
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
# name -> what its output says of the trained agent, and the least that it must have reached.
RESULTS = {
  "agents_as_library": (r"with search +return +(-?[\d.]+)", 0.5),
  "anakin": (r"seed 0: return (\d+)", 300),
  "expert_data": (r"expert: ([\d.]+)", 100),
  "sebulba": (r"^return: ([\d.]+)", 200),
}
CELL_TIMEOUT_SECONDS = 1200


def load_fresh():
  """Returns the module beside this one: `tests` is the name of another package too."""
  spec = importlib.util.spec_from_file_location("fresh", pathlib.Path(__file__).parent / "fresh.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def read(name):
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_each_notebook_has_its_script_and_its_result():
  assert sorted(path.stem for path in FOLDER.glob("*.py")) == NAMES == sorted(RESULTS)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_its_script_without_outputs(name):
  notebook, script = read(name), jupytext.read(FOLDER / f"{name}.py")
  nbformat.validate(notebook)
  cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
  assert cells == [(cell.cell_type, cell.source) for cell in script.cells], (
    "run: jupytext --update --to ipynb notebooks/*.py"
  )
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert not any(cell.outputs or cell.execution_count for cell in code)
  assert notebook.metadata.kernelspec.name == "python3"


def test_notebooks_install_alike():
  cells = {name: [c.source for c in read(name).cells if "SOURCE = " in c.source] for name in NAMES}
  assert all(len(found) == 1 for found in cells.values())
  own = re.compile(r"^(EXTRAS|OTHERS) = .*$", re.MULTILINE)
  assert len({own.sub("", found[0]) for found in cells.values()}) == 1


@pytest.fixture(scope="module")
def python(tmp_path_factory):
  """The interpreter of an environment in which the wheel is installed, with all the notebooks need."""
  fresh, folder = load_fresh(), tmp_path_factory.mktemp("fresh")
  python = fresh.make_environment(folder / "environment")
  wanted = f"podracer-rl[envpool,gymnasium,minari] @ {fresh.build_wheel(folder).as_uri()}"
  packages = ("ipykernel", "nbclient", "tensorflow-datasets")
  fresh.run(python, "-m", "pip", "install", "--quiet", wanted, *packages, cwd=folder)
  code = "import podracer; print(podracer.__file__)"
  there = fresh.run(python, "-c", code, cwd=folder).splitlines()[-1]
  assert pathlib.Path(there).is_relative_to(folder / "environment")
  return python


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name, python, tmp_path):
  # Outside of the checkout, so that the folder above the notebook is not one.
  nbformat.write(read(name), tmp_path / f"{name}.ipynb")
  # Libraries that other tests import set a backend for this process, which would be the kernel's too.
  environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
  load_fresh().run(
    python.parent / "jupyter-execute",
    f"--timeout={CELL_TIMEOUT_SECONDS}",
    "--output=executed",
    f"{name}.ipynb",
    cwd=tmp_path,
    env={**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")},
  )
  executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
  outputs = [o for cell in executed.cells if cell.cell_type == "code" for o in cell.outputs]
  text = "".join(o.text for o in outputs if o.output_type == "stream")
  shown = [o.data for o in outputs if o.output_type in ("display_data", "execute_result")]
  assert any("image/png" in data for data in shown), "no curve"
  assert any("<video" in data.get("text/html", "") for data in shown), "no video"
  pattern, least = RESULTS[name]
  found = re.search(pattern, text, re.MULTILINE)
  assert found, text[-3000:]
  assert float(found[1]) >= least
