"""Modules without parameters: points of a network that can be tapped.

Taps and edits address a submodule's output by its path. Where a network joins
its inputs no layer has that output, so these give it a name.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array


class Identity(nn.Module):
  """Returns its input, `[...]` -> `[...]`."""

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns `inputs`."""
    return inputs


class Concat(nn.Module):
  """Flattens every input and joins them, `[B, ...]`s -> `[B, sum of sizes]`."""

  @nn.compact
  def __call__(self, *inputs: Array) -> Array:
    """Returns the inputs side by side, in the order of the arguments."""
    rows = [array.reshape(array.shape[0], -1) for array in inputs]
    return jnp.concatenate(rows, axis=-1)
