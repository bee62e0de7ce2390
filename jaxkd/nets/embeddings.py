"""Small trained maps between the spaces of student and teacher.

References: https://arxiv.org/abs/1910.10699 (CRD), and the code of RKD and CC
that followed it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets.layers import Linear

Array = jax.Array


class UnitEmbedding(nn.Module, kw_only=True):
  """A linear map to vectors of length 1, as CRD, RKD and CC compare them.

  Shapes: `[B, ...]`, flattened -> `[B, features]`, rows of length 1. A zero
  vector stays one, with gradient 0.

  Taps:
    linear: `[B, features]`, before its length is divided out.

  Attributes:
    features: size of the embedding.
    dtype: computation type of the map; None: float32. The length is divided
      out in float32.
  """

  features: int = 128
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the embeddings of `inputs`."""
    x = inputs.reshape(inputs.shape[0], -1)
    x = Linear(self.features, dtype=self.dtype, name="linear")(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    real = square > 0
    return jnp.where(real, x * jax.lax.rsqrt(jnp.where(real, square, 1.0)), 0.0)


class ModulatedProjection(nn.Module, kw_only=True):
  """A normalised linear map, scaled and shifted by two others of the input.

  `(1 + scale(x)) LayerNorm(project(x)) + shift(x)`, the norm without
  parameters: brings semantic embeddings of items into the space of
  collaborative ones.

  Shapes: `[..., I]` -> `[..., features]`.

  Taps:
    project, scale, shift: `[..., features]`.

  Attributes:
    features: size of the output.
    dtype: computation type; None: float32.
  """

  features: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the projection of `inputs`."""
    x, scale, shift = (
      Linear(self.features, dtype=self.dtype, name=name)(inputs)
      for name in ("project", "scale", "shift")
    )
    norm = nn.LayerNorm(
      epsilon=1e-5,
      use_bias=False,
      use_scale=False,
      use_fast_variance=False,
      dtype=self.dtype,
      name="norm",
    )
    return (1 + scale) * norm(x) + shift
