"""Scores of a task: what a random policy and the expert get, measured, with n and seeds.

Gato did not publish its own, so that later work could not compare with it.
"""

import os
import pathlib
from typing import Any

import numpy as np

from podracer import evaluation, files

from . import layout

RANDOM = "random"
EXPERT = "expert"


def make_score(result: evaluation.EvaluationResult, seed: int, **about: Any) -> dict[str, Any]:
  """Returns a score as `scores.json` holds it.

  Args:
    result: of whole episodes.
    seed: of the evaluation.
    **about: what else is to be known of it: who played.
  """
  return {
    "mean": float(np.mean(result.returns)),
    "std": float(np.std(result.returns)),
    "n": len(result.returns),
    "seeds": [seed],
    "mode": result.mode,
    **about,
  }


def read(root: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
  """Returns the scores of a collection: task -> who -> score."""
  scores: dict[str, dict[str, Any]] = layout.read_json(pathlib.Path(root) / layout.SCORES)
  return scores


def write(root: str | os.PathLike[str], task: str, scores: dict[str, dict[str, Any]]) -> None:
  """Writes scores of a task, in place of those of the same players."""
  with files.lock(pathlib.Path(root) / f".{layout.SCORES}.lock", wait=True):
    everything = read(root)
    everything[task] = {**everything.get(task, {}), **scores}
    layout.write_json(pathlib.Path(root) / layout.SCORES, everything)
