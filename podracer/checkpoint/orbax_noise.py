"""Keeps off the console what Orbax says of failures that are reported here."""

import functools
import logging as standard_logging
import os
import sys
import traceback
import types
from typing import Any

from absl import logging


@functools.cache
def quieten() -> None:
  """Keeps off the console what Orbax says: every failure is reported here, in one line."""
  previous = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    # Reads and writes that a failure left behind call back, from C++, into its closed event loop.
    is_closed_loop = str(unraisable.exc_value) == "Event loop is closed"
    if not is_closed_loop or not _files(unraisable.exc_traceback)[0].endswith("base_events.py"):
      previous(unraisable)

  sys.unraisablehook = hook
  logging.get_absl_logger().addFilter(_is_not_orbax_noise)
  standard_logging.getLogger("asyncio").addFilter(_is_not_orbax_noise)


def _is_not_orbax_noise(record: standard_logging.LogRecord) -> bool:
  _, error, trace = record.exc_info or (None, None, None)
  files = [record.pathname, *_files(trace)]
  is_orbax = any("/orbax/checkpoint/" in file.replace(os.sep, "/") for file in files)
  # An error from TensorStore, which Orbax stopped waiting for at the first.
  is_orbax |= record.name == "asyncio" and "OCDBT" in str(error)
  return not is_orbax or logging.vlog_is_on(1)


def _files(trace: types.TracebackType | None) -> list[str]:
  return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)] or [""]
