"""A controller: how much of an example's loss is the teacher's.

Reference: Hu et al. (TGeo-KD), https://arxiv.org/abs/2312.15112.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers

Array = jax.Array


class Controller(nn.Module, kw_only=True):
  """A perceptron with leaky ReLUs that gives one number in (0, 1).

  Shapes: state `[B, D]` -> share of the teacher `[B]`.

  Taps (before their activation):
    fc1, fc2, ...: `[B, features[0]]`, ...; the last one `[B, 1]`.

  Attributes:
    features: sizes of the layers before the last one.
    slope: of the leaky ReLU below 0.
    dtype: computation type; None: float32.
  """

  features: tuple[int, ...] = (32, 16)
  slope: float = 0.01
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, state: Array) -> Array:
    """Returns the share for each row of `state`."""
    x = state
    for i, size in enumerate((*self.features, 1), start=1):
      x = x if i == 1 else nn.leaky_relu(x, self.slope)
      x = layers.Linear(size, dtype=self.dtype, name=f"fc{i}")(x)
    return nn.sigmoid(jnp.squeeze(x, axis=-1))
