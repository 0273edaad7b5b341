"""Checkpoints by Orbax: asynchronous, atomic, and verified leaf by leaf when read.

Orbax alone restores a flipped bit without a word, offers an empty directory as the newest step, and
leaves a temporary directory behind whenever a save fails or is killed. So a digest of every leaf is
saved in the same atomic step, a restore falls back to the newest step that verifies, and what was
left behind is removed. A save that fails is reported and training goes on.

A step is a directory `<step>/` with one Orbax item for each saved item, in which the leaves are
numbered in the order of `jax.tree_util`, and the JSON item `manifest`: the path, shape, dtype and
digest of every leaf, the caller's metadata, and a hash of all that. Nothing is pickled.
"""

from .checkpointer import MANIFEST, TEMPORARY, Checkpointer, CheckpointError, Restored
from .digests import compute_digests

__all__ = [
  "MANIFEST",
  "TEMPORARY",
  "CheckpointError",
  "Checkpointer",
  "Restored",
  "compute_digests",
]
