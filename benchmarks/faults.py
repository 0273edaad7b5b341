"""What a fault costs a group of processes: runs the drills of tests/launch and prints a table of them.

Each drill is a test with real processes and real signals, which fails unless no process is left, and the run that
went on ends with the state of one that nothing disturbed, to the last bit. What the table adds: how far the run
was, how much of that is trained again, and the seconds until all processes had ended (or, where Ray starts them
again, until they had resumed) and from the new command to its first update.

python benchmarks/faults.py
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).parent.parent
FILES = ("tests/launch/group_test.py", "tests/launch/engines_test.py")
COLUMNS = (
  ("env_steps", "steps at the fault", "{:,.0f}"),
  ("lost_env_steps", "trained again", "{:,.0f}"),
  ("ended_seconds", "all ended, s", "{:.1f}"),
  ("resumed_seconds", "resumed, s", "{:.1f}"),
  ("first_update_seconds", "command to first update, s", "{:.1f}"),
)


def run_drills(words: str) -> list[ElementTree.Element]:
  """Runs the drills; returns what pytest says of each."""
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "report.xml"
    marked = "slow or exhaustive"
    command = [sys.executable, "-m", "pytest", "-q", "-m", marked, *FILES, f"--junitxml={path}"]
    subprocess.run([*command, "-k", words] if words else command, cwd=ROOT, check=False)
    return list(ElementTree.parse(path).iter("testcase"))


def row(case: ElementTree.Element) -> str:
  """Returns a drill as a row of the table."""
  faults = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
  found = {p.get("name"): float(p.get("value", "nan")) for p in case.iter("property")}
  values = [form.format(found[name]) if name in found else "" for name, _, form in COLUMNS]
  name = case.get("name", "").removeprefix("test_").replace("_", " ")
  return " | ".join(["", name, faults[0] if faults else "passed", *values, ""]).strip()


def main() -> None:
  """Runs and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("-k", default="", help="which drills, as pytest takes it")
  cases = run_drills(parser.parse_args().k)
  titles = ["drill", "", *(title for _, title, _ in COLUMNS)]
  print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
  for case in cases:
    print(row(case))


if __name__ == "__main__":
  main()
