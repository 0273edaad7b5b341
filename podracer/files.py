"""Files that are there as a whole or not at all, whenever the process is killed."""

import contextlib
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator

_counter = itertools.count()  # Threads of one process may write the same file.


def write(path: pathlib.Path, data: bytes, *, replace: bool = True) -> None:
  """Writes a file, and makes its folder; `replace=False` keeps the file that is there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  tmp = tmp_path(path)
  try:
    tmp.write_bytes(data)
    sync(tmp)
    if replace:
      os.replace(tmp, path)
    else:
      _rename_new(tmp, path)
  finally:
    tmp.unlink(missing_ok=True)
  sync(path.parent)


def _rename_new(tmp: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a file unless `path` exists: of two processes the first wins."""
  try:
    os.link(tmp, path)
  except FileExistsError:
    return
  except OSError:  # A disk without links: there is a moment in which both could win.
    if not path.exists():
      os.replace(tmp, path)


def link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Makes `target` another name of a file, or a symbolic link to it where that can't be."""
  source = source.resolve()
  tmp = tmp_path(target)
  try:
    try:
      os.link(source, tmp)
    except OSError:
      tmp.symlink_to(os.path.relpath(source, target.parent.resolve()))
    os.replace(tmp, target)
  finally:
    tmp.unlink(missing_ok=True)  # A rename between two names of one file leaves both.


def tmp_path(path: pathlib.Path) -> pathlib.Path:
  """Returns where this process writes a file before it has its name."""
  return path.with_name(f"{path.name}.tmp-{os.getpid()}-{next(_counter)}")


def is_tmp(path: pathlib.Path) -> bool:
  """Returns whether a file does not have its name yet."""
  return ".tmp-" in path.name


def sync(path: pathlib.Path) -> None:
  """Waits until the data of a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sha256(path: pathlib.Path) -> str:
  """Returns the hash of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
  """Holds a lock between processes, of which a kill lets go.

  Not `flock`, which forked workers inherit: they may outlive this process. A process does not lock out
  itself, and a lock ends with the first of its two holds.

  Raises:
    BlockingIOError: another process holds it, and `wait` is False.
  """
  import fcntl

  with open(path, "a") as file:
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except PermissionError as error:  # What some systems say.
      raise BlockingIOError(*error.args) from error
    yield
