"""Projectors from a stage's feature to class logits.

Every tapped stage of a student gets one, and each of its outputs is compared
with the teacher's logits (`jaxkd.losses.ofa`). They are thrown away after
training.

Reference: https://arxiv.org/abs/2310.19444, OFA-KD, in the sizes of
https://arxiv.org/abs/2507.07015.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import batchnorm, initializers, layers, pooling

Array = jax.Array

CONV_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
LINEAR_INIT = jax.nn.initializers.normal(0.02)


class SeparableBlock(nn.Module, kw_only=True):
  """Two separable convolutions, the first of stride 2, each with BN and ReLU.

  Shapes: `[B, H, W, C]` -> `[B, ceil(H / 2), ceil(W / 2), features]`.

  Taps, before their activation, all `[B, ceil(H / 2), ceil(W / 2), ...]`:
    depthwise1, pointwise1, bn1, depthwise2: `C` channels.
    pointwise2, bn2: `features` channels.

  Attributes:
    features: channels of the output.
    dtype: computation type; None: float32.
  """

  features: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool) -> Array:
    """Returns the block's output."""
    size = feature.shape[-1]
    x = feature
    for index, (strides, width) in enumerate(
      ((2, size), (1, self.features)), start=1
    ):
      depthwise = layers.Conv(
        size,
        3,
        strides=strides,
        padding=1,
        groups=size,
        use_bias=False,
        kernel_init=CONV_INIT,
        dtype=self.dtype,
        name=f"depthwise{index}",
      )
      pointwise = layers.Conv(
        width,
        1,
        use_bias=False,
        kernel_init=CONV_INIT,
        dtype=self.dtype,
        name=f"pointwise{index}",
      )
      bn = batchnorm.BatchNorm(dtype=self.dtype, name=f"bn{index}")
      x = nn.relu(bn(pointwise(depthwise(x)), train=train))
    return x


class OFAProjector(nn.Module, kw_only=True):
  """Class logits of a feature map.

  Shapes: `[B, H, W, C]` -> `[B, classes]`.

  Taps:
    block1: `[B, ceil(H / 2), ceil(W / 2), 2 C]`; inside: `SeparableBlock`.
    block2: `[B, ceil(H / 4), ceil(W / 4), 2 classes]`; inside: likewise.
    fc: `[B, classes]`.

  Attributes:
    classes: number of classes.
    dtype: computation type; None: float32.
  """

  classes: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool = False) -> Array:
    """Returns the logits of `feature`."""
    widths = 2 * feature.shape[-1], 2 * self.classes
    x = feature
    for index, width in enumerate(widths, start=1):
      block = SeparableBlock(
        features=width, dtype=self.dtype, name=f"block{index}"
      )
      x = block(x, train=train)
    x = pooling.global_average_pool(x)  # [B, 2 classes]
    return layers.Linear(
      self.classes,
      kernel_init=LINEAR_INIT,
      bias_init=initializers.zero_bias,
      dtype=self.dtype,
      name="fc",
    )(x)


class OFAProjector1d(nn.Module, kw_only=True):
  """Class logits of a feature vector.

  Shapes: `[B, D]` -> `[B, classes]`.

  Taps:
    fc1: `[B, 2 classes]`, before its activation.
    fc2: `[B, classes]`.

  Attributes:
    classes: number of classes.
    dtype: computation type; None: float32.
  """

  classes: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array) -> Array:
    """Returns the logits of `feature`."""
    options = {
      "kernel_init": LINEAR_INIT,
      "bias_init": initializers.zero_bias,
      "dtype": self.dtype,
    }
    x = layers.Linear(2 * self.classes, name="fc1", **options)(feature)
    return layers.Linear(self.classes, name="fc2", **options)(nn.relu(x))
