"""What is documented runs: Python blocks, commands, links, and the messages that are quoted."""

import ast
import dataclasses
import importlib
import pathlib
import re
import shlex
import sys

import pytest

from podracer.launch import command_line, experiment
from podracer.launch import main as main_lib

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "shell", "console")
# The environment of a package that a reader has and we have not.
PLACEHOLDER = "my_package.my_module"

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(path):
  """Yields (line, words after the fence, text) of each fenced block."""
  text = path.read_text(encoding="utf-8")
  for match in FENCE.finditer(text):
    yield text.count("\n", 0, match.start()) + 2, match[1].split(), match[2]


def python_blocks(path):
  """Yields (line, text) of the blocks that are to run."""
  for line, words, text in blocks(path):
    if words and words[0] == "python" and "no-run" not in words:
      yield line, text


def named_file(text):
  """Returns the name in a first line `# name.py`: the reader is told to save such a block."""
  match = re.match(r"# (\w+\.py)\n", text)
  return match[1] if match else None


def commands(path):
  """Returns the `podracer ...` commands of the shell blocks and of inline code, as lists of words."""
  lines = []
  for _, words, text in blocks(path):
    if words and words[0] in SHELLS:
      lines += text.replace("\\\n", " ").splitlines()
  inline = re.findall(r"`(podracer \w+ [^`]*)`", FENCE.sub("", path.read_text(encoding="utf-8")))
  lines += [line for line in inline if "…" not in line and "..." not in line]
  found = []
  for line in lines:
    for part in re.split(r"&&|\|\||;", line.strip().removeprefix("$ ")):
      if re.match(r"\s*(\S*/)?podracer\s", part):
        found.append(shlex.split(part, comments=True)[1:])
  return found


@pytest.fixture
def reader(tmp_path, monkeypatch):
  """An empty directory from which modules can be imported, as the commands allow."""
  before = set(sys.modules)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  for name in set(sys.modules) - before:
    file = getattr(sys.modules[name], "__file__", None)
    if file and pathlib.Path(file).is_relative_to(tmp_path):
      del sys.modules[name]


def save_named_files(path, directory):
  for _, text in python_blocks(path):
    if named_file(text):
      (directory / named_file(text)).write_text(text, encoding="utf-8")
  importlib.invalidate_caches()


@pytest.mark.parametrize(
  "path", [path for path in DOCUMENTS if any(python_blocks(path))], ids=lambda path: path.name
)
def test_python_blocks_run(path, reader):
  save_named_files(path, reader)
  namespace = {"__name__": "__main__"}
  for line, text in python_blocks(path):
    # Line numbers of a traceback are then those of the document.
    exec(compile("\n" * (line - 1) + text, str(path), "exec"), namespace)


@each_document
def test_commands_parse(path, reader, capsys):
  save_named_files(path, reader)
  package, _, module = PLACEHOLDER.partition(".")
  (reader / package).mkdir()
  (reader / package / f"{module}.py").write_text("def make_env(): ...\n")
  importlib.invalidate_caches()
  for words in commands(path):
    try:
      parse(words)
    except (SystemExit, ValueError) as error:
      if isinstance(error, SystemExit) and error.code == 0:  # --help
        continue
      pytest.fail(f"podracer {shlex.join(words)}: {error} {capsys.readouterr().err}")


def parse(words):
  """Parses the words of a command as the command does, and no more."""
  if not words or words[0].startswith("-"):
    main_lib.main(words)
    return
  command_line.check_choice("command", words[0], tuple(main_lib.COMMANDS))
  module = importlib.import_module(f"podracer.launch.{words[0]}")
  if hasattr(module, "parse"):
    for word in words:
      if word.startswith("--teacher="):
        make_run(word.partition("=")[2].partition("#")[0])
    if words[0] == "train" and command_line.peek(words, "env") is None and "--help" not in words:
      make_run(command_line.peek(words, "workdir"))
    module.parse(words[1:])
    return
  (cls,) = (
    value
    for value in vars(module).values()
    if dataclasses.is_dataclass(value) and value.__module__ == module.__name__
  )
  command_line.parse(cls, f"podracer {words[0]}", words[1:])


def make_run(workdir):
  """Writes the configuration of a run, with which a command without `--env` goes on."""
  made = experiment.default_experiment("impala", "anakin", "gymnax:Catch-bsuite")
  experiment.write(dataclasses.replace(made, workdir=workdir))


def anchors(path):
  """Returns the anchors that GitHub gives the headings of a document."""
  text = FENCE.sub("", path.read_text(encoding="utf-8"))
  headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_somewhere(path):
  text = FENCE.sub("", path.read_text(encoding="utf-8"))
  targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
  for target in targets:
    if re.match(r"\w+:", target):
      continue
    file, _, anchor = target.partition("#")
    there = (path.parent / file) if file else path
    assert there.exists(), f"{path.name} links to {target}"
    if anchor and there.suffix == ".md":
      assert anchor in anchors(there), f"{path.name} links to {target}"


def messages():
  """Returns every string of the source, with a `\\0` for what is put into it."""
  found = set()
  for part in ("podracer", "anakin", "sebulba", "agents", "launch"):
    for path in (ROOT / part).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
          parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
          found.add("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
          found.add(re.sub(r"%[dsg]", "\0", node.value))
  return found


def test_quoted_messages_are_those_of_the_program():
  text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
  quoted = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
  assert len(quoted) >= 8
  known = messages()
  for message in quoted:
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
    assert any(pattern.search(string) for string in known), f"nothing says: {message}"
