"""Expert data: what agents experience, recorded as RLDS episodes in ArrayRecord, and read again."""

import importlib
from typing import Any

# name -> module; loaded when first used, for a reader needs no writer.
_PUBLIC = {
  "Collection": "dataset",
  "Dataset": "dataset",
  "Episode": "episode",
  "EpisodeSource": "sources",
  "HistorySource": "sources",
  "Schema": "schema",
  "WindowSource": "sources",
  "Writer": "writer",
  "finalise": "store",
  "merge": "store",
  "open": "dataset",
  "verify": "store",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
  if name in _PUBLIC:
    return getattr(importlib.import_module(f"podracer.data.{_PUBLIC[name]}"), name)
  raise AttributeError(f"module podracer.data has no attribute {name}")
