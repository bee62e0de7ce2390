"""What is done to the gradients of two losses before they are added."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.losses.softmax import at_least_float32

Array = jax.Array
Tree = Any


def _dot(a: Tree, b: Tree) -> Array:
  """Inner product over all leaves, float32 at least."""
  products = jax.tree.map(
    lambda x, y: jnp.vdot(at_least_float32(x), at_least_float32(y)), a, b
  )
  return sum(jax.tree.leaves(products), jnp.zeros(()))


def align_gradients(gradients: Tree, reference: Tree) -> Tree:
  """Takes out of gradients what works against those of another loss.

    g - min(<g, r>, 0) / |r|^2 r

  One inner product over the whole tree decides; gradients that do not conflict
  come back as they are, and so does everything if r is 0. The update is the
  sum of the result and r, which itself is never changed.

  Args:
    gradients: g, a tree of arrays (of the distillation loss).
    reference: r, a tree of the same arrays (of the cross entropy).

  Returns:
    A tree like `gradients`, orthogonal to r if g conflicted with it.

  Reference: Yang et al. (DHKD), https://arxiv.org/abs/2411.08937; Yu et al.,
    https://arxiv.org/abs/2001.06782.
  """
  conflict = jnp.minimum(_dot(gradients, reference), 0.0)
  square = _dot(reference, reference)
  share = conflict / jnp.where(square > 0, square, 1.0)
  return jax.tree.map(
    lambda g, r: (g - share * r).astype(g.dtype), gradients, reference
  )
