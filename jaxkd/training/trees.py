"""Trees as named leaves: on the host, as digests, and back in their places.

A leaf's name is its path, `params/fc1/kernel`; each component is
percent-escaped, points too, so that no two leaves can share a name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.parallel import arrays

PyTree = Any
_EMPTY = "%00"  # stands for an empty component, which no file can have


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A leaf on the host: its bytes, and its PRNG implementation if a key."""

  value: np.ndarray
  key: str | None

  @property
  def row(self) -> dict[str, Any]:
    """What the manifest says of it."""
    row = {"dtype": str(self.value.dtype), "shape": list(self.value.shape)}
    if self.key is not None:
      row["key"] = self.key
    digest = hashlib.sha256(canonical(row))
    digest.update(np.ascontiguousarray(self.value).reshape(-1).view(np.uint8))
    return {**row, "sha256": digest.hexdigest()}


def canonical(value: Any) -> bytes:
  """JSON text that does not depend on the order of keys, for digests."""
  return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def plain(value: Any, name: str) -> Any:
  """Returns `value` as JSON will give it back, refusing what it would bend."""
  try:
    text = json.dumps(value, allow_nan=False, default=lambda v: v.item())
  except (TypeError, ValueError, AttributeError) as error:
    raise ConfigError(f"{name} is not plain JSON: {error}") from error
  back = json.loads(text)
  if back != value:
    raise ConfigError(
      f"{name} is not plain JSON: {value!r} would come back as {back!r};"
      " use dicts with string keys, lists, strings, numbers"
    )
  return back


def named_leaves(tree: PyTree) -> dict[str, Any]:
  """Flattens a tree to unique, escaped names: `params/fc1/kernel`."""
  named = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    parts = []
    for entry in path:
      part = next(
        getattr(entry, kind)
        for kind in ("key", "name", "idx")
        if hasattr(entry, kind)
      )
      part = urllib.parse.quote(str(part), safe="").replace(".", "%2E")
      parts.append(part or _EMPTY)
    name = "/".join(parts) or _EMPTY
    if name in named:
      raise ConfigError(f"two leaves of the tree have the name {name!r}")
    named[name] = leaf
  return named


def _is_key(leaf: Any) -> bool:
  dtype = getattr(leaf, "dtype", None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def to_host(tree: PyTree, *, keep: bool = True) -> dict[str, Leaf]:
  """Copies a tree to the host: later steps may donate the arrays.

  Args:
    tree: arrays, typed PRNG keys and numbers; of what is spread over several
      processes each gets the whole, one leaf at a time.
    keep: whether this process wants them; if not, it only gives its parts to
      the others.

  Returns:
    Leaves by name; none if they are not kept.
  """
  named, keys = named_leaves(tree), {}
  for name, leaf in named.items():
    if _is_key(leaf):
      keys[name] = str(jax.random.key_impl(leaf))
      named[name] = leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
      if keep and (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf.copy_to_host_async()
  leaves = {}
  for name, leaf in named.items():
    leaf = arrays.whole(leaf)
    if not keep:
      continue
    # A copy that owns its memory: a view would be overwritten by the next
    # step, or keep it from donating.
    value = np.array(leaf, copy=True)
    if not (jnp.issubdtype(value.dtype, np.number) or value.dtype == bool):
      raise ConfigError(
        f"leaf {name} is a {type(leaf).__name__}, expected an array or number"
      )
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    leaves[name] = Leaf(value, keys.get(name))
  return leaves


def tree_digest(tree: PyTree) -> str:
  """Returns one sha256 over all leaves: path, dtype, shape and bytes.

  Args:
    tree: nested dicts or registered dataclasses of arrays, typed PRNG keys
      (by implementation and key data) and numbers.

  Returns:
    64 hexadecimal digits; equal if and only if every bit is.
  """
  rows = {name: leaf.row for name, leaf in to_host(tree).items()}
  return hashlib.sha256(canonical(rows)).hexdigest()


def size(row: Mapping[str, Any]) -> int:
  """How many elements a manifest row speaks of."""
  return int(np.prod(row["shape"], dtype=np.int64))


def spec(leaf: Any) -> dict[str, Any]:
  """The manifest row of a leaf of `like`, but for the digest."""
  if not _is_key(leaf):
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return {"dtype": str(np.dtype(leaf.dtype)), "shape": list(leaf.shape)}
  found = []

  def probe(key):
    found.append(str(jax.random.key_impl(key)))
    return jax.random.key_data(key)

  data = jax.eval_shape(probe, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return {
    "dtype": str(np.dtype(data.dtype)),
    "shape": list(data.shape),
    "key": found[0],
  }


def place(name: str, leaf: Leaf, like: Any) -> Any:
  """Puts a verified leaf where `like` is: its type, sharding, weak type."""
  value = leaf.value
  if not hasattr(like, "dtype"):
    return value.item()
  if isinstance(like, np.ndarray | np.generic):
    return value if isinstance(like, np.ndarray) else value[()]
  if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
    raise RefusedInput(
      f"leaf {name} is {value.dtype}, which JAX would cut to 32 bits; set"
      " JAX_ENABLE_X64=1 as the run that wrote it did"
    )
  sharding = like.sharding if getattr(like, "committed", True) else None
  array = value
  if leaf.key is not None:
    array = jax.random.wrap_key_data(value, impl=leaf.key)
  elif like.weak_type and value.ndim == 0:
    number = jnp.asarray(value.item())
    array = number if number.dtype == value.dtype else value
  return arrays.put(array, sharding)


def nest(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
  """Builds nested dicts of NumPy arrays and typed keys from named leaves."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    parts = ["" if p == _EMPTY else p for p in name.split("/")]
    *parents, last = map(urllib.parse.unquote, parts)
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf.value
    if leaf.key is not None:
      node[last] = jax.random.wrap_key_data(leaf.value, impl=leaf.key)
  return tree
