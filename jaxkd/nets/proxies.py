"""Proxies of teacher and student, which learn from each other in their place.

A proxy reads one feature of its network and gives class logits; it is trained
with both networks and thrown away.

Reference: Huo et al. (C2KD), CVPR 2024, in the sizes of
https://arxiv.org/abs/2507.07015.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import batchnorm, initializers, layers, pooling

Array = jax.Array

KERNEL_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
SLOPE = 0.1  # of the leaky ReLU


class Proxy1d(nn.Module, kw_only=True):
  """Proxy on a feature vector.

  Shapes: `[B, D]` -> `[B, classes]`.

  Taps:
    fc1, bn: `[B, D]`, before the activation.
    fc2: `[B, classes]`.

  Attributes:
    classes: number of classes.
    dtype: computation type; None: float32.
  """

  classes: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool = False) -> Array:
    """Returns the logits of `feature`."""
    init = {"kernel_init": KERNEL_INIT, "bias_init": initializers.zero_bias}
    size = feature.shape[-1]
    x = layers.Linear(size, dtype=self.dtype, name="fc1", **init)(feature)
    x = batchnorm.BatchNorm(dtype=self.dtype, name="bn")(x, train=train)
    x = nn.leaky_relu(x, SLOPE)
    return layers.Linear(self.classes, dtype=self.dtype, name="fc2", **init)(x)


class Proxy2d(nn.Module, kw_only=True):
  """Proxy on the average of a feature map.

  Shapes: `[B, H, W, C]` -> `[B, classes]`.

  Taps:
    conv, bn: `[B, 1, 1, C]`, before the activation.
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
    size = feature.shape[-1]
    x = pooling.global_average_pool(feature)[:, None, None]  # [B, 1, 1, C]
    x = layers.Conv(
      size,
      1,
      use_bias=False,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      name="conv",
    )(x)
    x = batchnorm.BatchNorm(dtype=self.dtype, name="bn")(x, train=train)
    x = nn.leaky_relu(x, SLOPE)[:, 0, 0]
    return layers.Linear(self.classes, dtype=self.dtype, name="fc")(x)


class DenseProxy(nn.Module, kw_only=True):
  """Proxy on a feature map, for dense prediction.

  Shapes: `[B, H, W, C]` -> `[B, *size, classes]`.

  Taps:
    conv, bn: `[B, H, W, C]`, before the activation.
    fc: `[B, H, W, classes]`.

  Attributes:
    classes: number of classes.
    size: height and width of the output, reached by bilinear interpolation;
      None: those of the feature.
    dtype: computation type; None: float32.
  """

  classes: int
  size: tuple[int, int] | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool = False) -> Array:
    """Returns the logits of `feature`."""
    x = layers.Conv(
      feature.shape[-1],
      1,
      use_bias=False,
      kernel_init=KERNEL_INIT,
      dtype=self.dtype,
      name="conv",
    )(feature)
    x = batchnorm.BatchNorm(dtype=self.dtype, name="bn")(x, train=train)
    x = layers.Conv(
      self.classes,
      1,
      kernel_init=KERNEL_INIT,
      bias_init=initializers.zero_bias,
      dtype=self.dtype,
      name="fc",
    )(nn.relu(x))
    if self.size is None:
      return x
    shape = (x.shape[0], *self.size, self.classes)
    return jax.image.resize(x, shape, "bilinear", antialias=False)
