"""Exports of a collection into the formats of other libraries, each for that library's own reader."""

import importlib
import importlib.util
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from podracer import config, files

if TYPE_CHECKING:
  from podracer.data import dataset as dataset_lib


class Format(NamedTuple):
  """A format that a collection can be exported to.

  Attributes:
    module: of this folder; its `write(datasets, folder)` writes all files and returns the `Counts` of
      each task.
    extra: of podracer, which installs what writing needs.
    libraries: that writing imports.
    reader: how the files are read, of `out` and a `task`.
  """

  module: str
  extra: str
  libraries: tuple[str, ...]
  reader: str


FORMATS = {
  "rlds-tfrecord": Format(
    module="rlds_tfrecord",
    extra="tfrecord",
    libraries=("google_crc32c", "PIL"),
    reader='tfds.builder_from_directory("{out}/{task}/1.0.0").as_dataset(split="train")',
  ),
  "jat-parquet": Format(
    module="jat_parquet",
    extra="jat",
    libraries=("pyarrow", "PIL"),
    reader='datasets.load_dataset("{out}", "{task}")',
  ),
  "minari": Format(
    module="minari",
    extra="minari",
    libraries=("minari", "h5py", "PIL"),
    reader='minari.load_dataset("{task}-v0") with MINARI_DATASETS_PATH={out}',
  ),
  "history-hdf5": Format(
    module="history_hdf5",
    extra="hdf5",
    libraries=("h5py",),
    reader='h5py.File("{out}/{task}.hdf5")["0"]',
  ),
}


class Counts(NamedTuple):
  """What was written: episodes, and transitions of them."""

  episodes: int = 0
  steps: int = 0


class Summary(NamedTuple):
  """An export that is whole.

  Attributes:
    out: its folder.
    tasks: in it.
    episodes: in it.
    steps: transitions; the final observation of an episode is none.
    num_bytes: of its files.
    reader: a line that shows how it is read.
  """

  out: pathlib.Path
  tasks: tuple[str, ...]
  episodes: int
  steps: int
  num_bytes: int
  reader: str

  def __str__(self) -> str:
    plural = "s" if len(self.tasks) > 1 else ""
    return (
      f"{self.out}: {self.episodes:,} episodes of {len(self.tasks)} task{plural}, {self.steps:,} steps, "
      f"{self.num_bytes / 1e6:.1f} MB; read it with {self.reader}"
    )


def export(
  name: str, collection: "Iterable[dataset_lib.Dataset]", out: str | os.PathLike[str]
) -> Summary:
  """Writes a collection in another format; `out` is there as a whole or not at all.

  Args:
    name: a key of FORMATS.
    collection: data sets of the tasks, as a `dataset.Collection` has them.
    out: a folder that is not there, or is empty.

  Raises:
    InputError: no such format, what it needs is not installed, `out` holds files, or the collection has
      nothing that the format can hold.
  """
  config.check(name in FORMATS, f"unknown format {name}; valid are {', '.join(FORMATS)}")
  form = FORMATS[name]
  missing = [library for library in form.libraries if importlib.util.find_spec(library) is None]
  config.check(
    not missing,
    f"{name} needs {', '.join(missing)}: pip install 'podracer-rl[{form.extra}]'",
  )
  out = pathlib.Path(out).absolute()
  config.check(
    not out.exists() or (out.is_dir() and not any(out.iterdir())),
    f"{out} is there already and is no empty folder: remove it or choose another",
  )
  module = importlib.import_module(f"{__name__}.{form.module}")
  # A process that is killed leaves this name, which no reader looks for.
  partial = out.with_name(f"{out.name}.tmp-{os.getpid()}")
  partial.mkdir(parents=True)
  try:
    counts: dict[str, Counts] = module.write([d for d in collection if len(d)], partial)
    config.check(bool(counts), f"there is no episode to write to {out}")
    written = [path for path in partial.rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in written)
    for path in written:
      files.sync(path)
    partial.rename(out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return Summary(
    out=out,
    tasks=tuple(counts),
    episodes=sum(count.episodes for count in counts.values()),
    steps=sum(count.steps for count in counts.values()),
    num_bytes=num_bytes,
    reader=form.reader.format(out=out, task=next(iter(counts))),
  )
