"""Parts of residual networks, on vectors and on the tokens of an image.

A vector `[B, D]` is mapped by blocks of an MLP, tokens `[B, T, D]` by blocks of
attention and an MLP (vision transformers); a mixture of experts can take the
place of the MLP.

References: Dosovitskiy et al. (ViT), https://arxiv.org/abs/2010.11929;
Riquelme et al. (V-MoE), https://arxiv.org/abs/2106.05974.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import initializers, layers, moe

Array = jax.Array

BLOCK_EPSILON = 1e-6


def layer_norm(
  name: str, dtype: DTypeLike | None, epsilon: float = BLOCK_EPSILON
) -> nn.LayerNorm:
  """Returns a layer norm with the two-pass variance.

  Args:
    name: of the submodule.
    dtype: computation type; None: float32.
    epsilon: added to the variance.
  """
  return nn.LayerNorm(
    epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name
  )


class PatchStem(nn.Module, kw_only=True):
  """Square patches as tokens, a class token before them, learned positions.

  Shapes: image `[B, H, W, C]` -> tokens `[B, 1 + P, width]`,
  P = H W / patch^2; H and W multiples of `patch`.

  Taps:
    patches: `[B, H / patch, W / patch, width]`.

  Attributes:
    width: size of a token.
    patch: side of a patch.
    dtype: computation type; None: float32.
  """

  width: int
  patch: int = 4
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Returns the tokens of `image`."""
    if image.ndim != 4 or any(n % self.patch for n in image.shape[1:3]):
      raise errors.ConfigError(
        f"PatchStem: image of shape {image.shape}: expected [B, H, W, C] with "
        f"H and W multiples of {self.patch}"
      )
    patches = layers.Conv(
      self.width,
      self.patch,
      strides=self.patch,
      dtype=self.dtype,
      name="patches",
    )
    x = patches(image)
    x = x.reshape(x.shape[0], -1, self.width)  # [B, P, D]
    init = jax.nn.initializers.normal(0.02)
    token = self.param("class_token", init, (1, 1, self.width), jnp.float32)
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
    x = jnp.concatenate([token, x], axis=1)
    position = self.param("position", init, (1, *x.shape[1:]), jnp.float32)
    return x + position.astype(x.dtype)


class VectorStem(nn.Module, kw_only=True):
  """A linear map of the flattened image.

  Shapes: `[B, ...]` -> `[B, width]`.

  Taps:
    fc: `[B, width]`.

  Attributes:
    width: size of the vector.
    dtype: computation type; None: float32.
  """

  width: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Returns the vector of `image`."""
    x = image.reshape(image.shape[0], -1)
    return layers.Linear(self.width, dtype=self.dtype, name="fc")(x)


class ResidualBlock(nn.Module, kw_only=True):
  """Attention over tokens, then an MLP or experts, each added to its input.

  Shapes: tokens `[B, T, D]` -> `[B, T, D]`; without heads there is no
  attention: `[..., D]` -> `[..., D]`.

  Taps, all of the input's shape:
    norm1, attention: with heads; inside attention: `query`, `key`, `value`,
      `out`.
    norm2.
    mlp: without experts; inside: `fc1`, `fc2`.
    moe: with experts; inside: the taps of `MixtureOfExperts`.

  Attributes:
    hidden: size of the layer inside the MLP or each expert.
    heads: attention heads; 0 for no attention.
    experts: how many take the place of the MLP; 0 for the MLP.
    chosen: how many experts a token is given.
    dtype: computation type; None: float32.
  """

  hidden: int
  heads: int = 0
  experts: int = 0
  chosen: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the block's output."""
    x = inputs
    if self.heads:
      attention = nn.MultiHeadDotProductAttention(
        num_heads=self.heads,
        kernel_init=initializers.fan_in_uniform(),
        dtype=self.dtype,
        name="attention",
      )
      x = x + attention(layer_norm("norm1", self.dtype)(x))
    return x + self._map()(layer_norm("norm2", self.dtype)(x))

  def _map(self) -> nn.Module:
    """Returns the MLP or the experts."""
    options = {"hidden": self.hidden, "dtype": self.dtype}
    if not self.experts:
      return moe.FeedForward(name="mlp", **options)
    return moe.MixtureOfExperts(
      experts=self.experts, chosen=self.chosen, name="moe", **options
    )


class ClassHead(nn.Module, kw_only=True):
  """Layer norm and linear classifier, of tokens on the first one.

  Shapes: `[B, D]` or `[B, T, D]` -> logits `[B, num_classes]`.

  Taps:
    norm: `[B, D]`.
    fc: `[B, num_classes]`.

  Attributes:
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  num_classes: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the logits of `inputs`."""
    x = inputs[:, 0] if inputs.ndim == 3 else inputs
    x = layer_norm("norm", self.dtype)(x)
    return layers.Linear(self.num_classes, dtype=self.dtype, name="fc")(x)


class Stitch(nn.Module, kw_only=True):
  """Brings states of one network to the width of another one.

  Shapes: `[..., I]` -> `[..., features]`.

  Taps:
    norm: `[..., I]`; its epsilon is 1e-5, other than that of the blocks.
    fc: `[..., features]`.

  Attributes:
    features: the width.
    norm: whether a layer norm comes first.
    dtype: computation type; None: float32.

  Reference: Lo et al. (m2mKD), https://arxiv.org/abs/2402.16918.
  """

  features: int
  norm: bool = True
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the states in the new width."""
    x = inputs
    if self.norm:
      x = layer_norm("norm", self.dtype, epsilon=1e-5)(x)
    return layers.Linear(self.features, dtype=self.dtype, name="fc")(x)
