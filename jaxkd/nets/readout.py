"""What is read off an encoder: one vector of all positions."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.losses import rows
from jaxkd.losses.softmax import at_least_float32
from jaxkd.nets import encoder

Array = jax.Array
Pool = Literal["none", "first", "mean", "pooler"]


class Pooling(nn.Module, kw_only=True):
  """One vector of all positions.

  Shapes: `[B, L, D]`, mask `[B, L]` -> `[B, D]`.

  Attributes:
    how: `first`, the first position's; `mean`, over the positions that are
      there.
    normalised: whether the vector is brought to length 1.
  """

  how: Literal["first", "mean"]
  normalised: bool = False

  @nn.compact
  def __call__(self, inputs: Array, mask: Array | None = None) -> Array:
    """Returns the vector of `inputs` where `mask` is not 0."""
    if self.how == "first":
      x = inputs[:, 0]
    elif mask is None:
      x = jnp.mean(at_least_float32(inputs), axis=1)
    else:
      there = (mask != 0)[..., None]
      count = jnp.maximum(jnp.sum(there, axis=1), 1)
      x = jnp.sum(jnp.where(there, at_least_float32(inputs), 0), axis=1) / count
    if self.normalised:
      x = rows.unit(at_least_float32(x))
    return x.astype(inputs.dtype)


class Pooler(nn.Module, kw_only=True):
  """The first position's vector through a layer with tanh.

  Shapes: `[B, L, D]` -> `[B, D]`.

  Taps: fc, before its activation, `[B, D]`.

  Attributes:
    dtype: computation type; None: float32.
  """

  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the vector of `inputs`."""
    fc = encoder.dense(inputs.shape[-1], "fc", self.dtype)
    return jnp.tanh(fc(inputs[:, 0]))


def pool(
  inputs: Array,
  mask: Array | None = None,
  *,
  how: Pool,
  normalised: bool = False,
  pooler: bool = False,
  dtype: DTypeLike | None = None,
) -> Array | None:
  """Makes one vector of all positions, in a compact method.

  Args:
    inputs: [B, L, D].
    mask: [B, L] or None.
    how: `none`, or what `Pooling` and `Pooler` are named by.
    normalised: see `Pooling`.
    pooler: whether there is a `Pooler` even if it is not asked for.
    dtype: of the pooler.

  Returns:
    [B, D]; None for `none`.
  """
  vector = None
  if pooler or how == "pooler":
    vector = Pooler(dtype=dtype, name="pooler")(inputs)
  if how == "none":
    return None
  if how == "pooler":
    return vector
  return Pooling(how=how, normalised=normalised, name="pooled")(inputs, mask)
