"""The manifest of a step: what each leaf is, under a hash of its own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from . import leaves


def describe(path: str, leaf: jax.Array) -> dict[str, Any]:
  """Returns what a manifest says of a leaf, but for its digest."""
  key_impl = str(jax.random.key_impl(leaf)) if leaves.is_key(leaf) else None
  return {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype), "key_impl": key_impl}


def difference(name: str, target: dict[str, Any], saved: Mapping[str, Any]) -> str | None:
  """Says how a target differs from the item of that name in a manifest."""
  if name not in saved:
    return f"it has no item {name}, only {', '.join(sorted(saved))}"

  def kind(shape: Sequence[int], dtype: Any) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"

  there = {leaf["path"]: kind(leaf["shape"], leaf["dtype"]) for leaf in saved[name]}
  wanted = {path: kind(leaf.shape, leaf.dtype) for path, leaf in target.items()}
  differences = [
    f"{name}/{path} is {there.get(path, 'absent')} there and {wanted.get(path, 'absent')} here"
    for path in {**wanted, **there}
    if there.get(path) != wanted.get(path)
  ]
  if not differences and list(there) != list(wanted):
    return f"the leaves of {name} are in another order"
  return first_of(differences) if differences else None


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
  """Returns a manifest with its hash, as it is written."""
  # Through JSON once, so that keys are strings and tuples lists when they are hashed.
  manifest = json.loads(json.dumps(manifest))
  return {"manifest": manifest, "sha256": _hash(manifest)}


def unsealed(sealed: Any) -> dict[str, Any]:
  """Returns the manifest that was read. Raises ValueError, KeyError or TypeError where it is damaged."""
  if _hash(sealed["manifest"]) != sealed["sha256"]:
    raise ValueError("its hash is wrong")
  return sealed["manifest"]


def first_of(texts: list[str]) -> str:
  """Returns the first of several texts, and how many there are more."""
  more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
  return texts[0] + more


def _hash(manifest: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
