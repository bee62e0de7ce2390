"""Arrays over the devices of one process or of several.

With several, an array may have parts that this process cannot reach. Values
that are placed must be equal on all processes; what is fetched is whole, and
all processes must ask for it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

Tree = Any


def put(tree: Tree, shardings: Tree) -> Tree:
  """Places values that are equal on all processes.

  Args:
    tree: arrays, NumPy arrays, typed keys or numbers.
    shardings: a tree of shardings like it, or one for all leaves.

  Returns:
    The tree of placed arrays.
  """
  if all(s.is_fully_addressable for s in jax.tree.leaves(shardings)):
    return jax.device_put(tree, shardings)
  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda leaf: _put(leaf, shardings), tree)
  return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """Places one leaf; `jax.device_put` would send it around to compare it."""
  if _is_spread(leaf):
    return jax.device_put(leaf, sharding)
  if isinstance(leaf, jax.Array):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = _put(jax.random.key_data(leaf), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if leaf.weak_type:
      leaf = leaf.item()
  if isinstance(leaf, int | float | complex):  # stays weakly typed
    return jax.jit(_same, out_shardings=sharding)(leaf)
  value = np.asarray(leaf)
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )


def fetch(tree: Tree) -> Tree:
  """Copies arrays to the host, whole.

  Args:
    tree: arrays.

  Returns:
    The tree of NumPy arrays.
  """
  return jax.device_get(jax.tree.map(whole, tree))


def local(tree: Tree) -> Tree:
  """Arrays of this process alone, where any was spread over several.

  Args:
    tree: arrays.

  Returns:
    The tree, whose arrays Python code may look into.
  """
  return jax.tree.map(
    lambda leaf: jnp.asarray(fetch(leaf)) if _is_spread(leaf) else leaf, tree
  )


def whole(leaf: Any) -> Any:
  """One leaf, gathered if this process has only parts of it."""
  if not _is_spread(leaf) or leaf.is_fully_replicated:
    return leaf
  return multihost_utils.process_allgather(leaf, tiled=True)


def _is_spread(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _same(value: jax.Array) -> jax.Array:
  return value
