"""Soft masks on a feature, by self-attention over its dimensions.

A mask net reads a feature and returns a factor in (0, 1) for each of its `D`
dimensions or channels. The dimensions are the tokens of the attention, so the
embedding alone has `D^2 * hidden` weights, where
`hidden = D // (hidden_dim_factor * heads) * heads`: 16M for 320 dimensions,
106M for 596.

Reference: https://arxiv.org/abs/2507.07015, MaskNet.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import batchnorm, initializers, layers, pooling

Array = jax.Array


def _squeezed(feature: Array) -> Array:
  """Returns `[B, 1, 1, C]` as `[B, C]`, anything else unchanged."""
  if feature.ndim == 4 and feature.shape[1:3] == (1, 1):
    return feature.reshape(feature.shape[0], feature.shape[-1])
  return feature


def apply_mask(feature: Array, mask: Array) -> Array:
  """Returns `feature` with every dimension or channel times its mask.

  Args:
    feature: `[B, C]`, or `[B, *spatial, C]`, where the mask is the same at all
      places; `[B, 1, 1, C]` comes back squeezed, as the official code does.
    mask: `[B, C]`.

  Returns:
    `[B, C]` or `[B, *spatial, C]`.

  Raises:
    ConfigError: batch or channels of the two do not agree.
  """
  feature = _squeezed(feature)
  expected = (feature.shape[0], feature.shape[-1])
  if mask.shape != expected:
    raise errors.ConfigError(
      f"mask of shape {mask.shape} for a feature of shape {feature.shape}: "
      f"expected a mask of shape {expected}"
    )
  spatial = (1,) * (feature.ndim - 2)
  return feature * mask.reshape(mask.shape[0], *spatial, mask.shape[-1])


class MaskNet1d(nn.Module, kw_only=True):
  """Mask of a feature vector.

  Shapes: `[B, D]` or `[B, 1, 1, D]` -> mask `[B, D]` in (0, 1).

  Taps:
    embed: `[B, D * hidden]`, the tokens before their reshape.
    attention: `[B, D, hidden]`; inside: `query`, `key`, `value`, `out`.
    fc: `[B, D, 1]`, the logit of the mask.

  Attributes:
    heads: attention heads.
    hidden_dim_factor: how much smaller the token size is than `D`.
    dtype: computation type; None: float32.
  """

  heads: int = 3
  hidden_dim_factor: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array) -> Array:
    """Returns the mask of `feature`."""
    x = _squeezed(feature)
    hidden = self._hidden_size(x)
    size = x.shape[-1]
    x = layers.Linear(size * hidden, dtype=self.dtype, name="embed")(x)
    x = x.reshape(x.shape[0], size, hidden)  # [B, D, hidden]
    x = nn.MultiHeadDotProductAttention(
      num_heads=self.heads,
      kernel_init=initializers.symmetric_uniform(math.sqrt(1.5 / hidden)),
      out_kernel_init=initializers.fan_in_uniform(),
      dtype=self.dtype,
      name="attention",
    )(x)
    x = layers.Linear(1, dtype=self.dtype, name="fc")(x)  # [B, D, 1]
    return nn.sigmoid(jnp.squeeze(x, axis=-1))

  def _hidden_size(self, feature: Array) -> int:
    """Returns the token size for `feature` `[B, D]`, or raises."""
    smallest = self.hidden_dim_factor * self.heads
    size = feature.shape[-1]
    if feature.ndim != 2 or size < smallest:
      raise errors.ConfigError(
        f"MaskNet1d: feature of shape {feature.shape}: expected [B, D] or "
        f"[B, 1, 1, D] with D >= hidden_dim_factor * heads = {smallest}"
      )
    return size // smallest * self.heads


class SpatialReduction(nn.Module, kw_only=True):
  """One vector from a map: separable convolution of stride 2, then average.

  Shapes: `[B, H, W, C]` -> `[B, C]`.

  Taps: `depthwise`, `pointwise`, `bn`, all `[B, ceil(H/2), ceil(W/2), C]`.

  Attributes:
    dtype: computation type; None: float32.
  """

  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool) -> Array:
    """Returns the summary of `feature`."""
    size = feature.shape[-1]
    depthwise = layers.Conv(
      size,
      3,
      strides=2,
      padding=1,
      groups=size,
      use_bias=False,
      dtype=self.dtype,
      name="depthwise",
    )
    pointwise = layers.Conv(
      size, 1, use_bias=False, dtype=self.dtype, name="pointwise"
    )
    bn = batchnorm.BatchNorm(dtype=self.dtype, name="bn")
    x = bn(pointwise(depthwise(feature)), train=train)
    return pooling.global_average_pool(nn.relu(x))


class MaskNet2d(nn.Module, kw_only=True):
  """Mask of the channels of a feature map.

  Shapes: `[B, H, W, C]` -> mask `[B, C]` in (0, 1), to be put on the map with
  `apply_mask`.

  Taps:
    spatial_reduce: `[B, C]`; inside: `depthwise`, `pointwise`, `bn`.
    vector_mask: `[B, C]`, the mask; inside: the taps of `MaskNet1d`.

  Attributes:
    heads: attention heads.
    hidden_dim_factor: how much smaller the token size is than `C`.
    dtype: computation type; None: float32.
  """

  heads: int = 3
  hidden_dim_factor: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool = False) -> Array:
    """Returns the channel mask of `feature`."""
    reduce = SpatialReduction(dtype=self.dtype, name="spatial_reduce")
    mask = MaskNet1d(
      heads=self.heads,
      hidden_dim_factor=self.hidden_dim_factor,
      dtype=self.dtype,
      name="vector_mask",
    )
    return mask(reduce(feature, train=train))


class MaskNet(nn.Module, kw_only=True):
  """The mask net that fits a feature: 1d for vectors, 2d for maps.

  Shapes: `[B, D]`, `[B, 1, 1, D]` or `[B, H, W, D]` -> mask `[B, D]`.

  Taps:
    net: the mask; inside: the taps of `MaskNet1d` or `MaskNet2d`.

  Attributes:
    heads: attention heads.
    hidden_dim_factor: how much smaller the token size is than `D`.
    dtype: computation type; None: float32.
  """

  heads: int = 3
  hidden_dim_factor: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool = False) -> Array:
    """Returns the mask of `feature`."""
    options = {
      "heads": self.heads,
      "hidden_dim_factor": self.hidden_dim_factor,
      "dtype": self.dtype,
      "name": "net",
    }
    x = _squeezed(feature)
    if x.ndim == 2:
      return MaskNet1d(**options)(x)
    return MaskNet2d(**options)(x, train=train)
