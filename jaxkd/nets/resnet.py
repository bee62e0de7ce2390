"""Residual stages of ResNet-18 and squeeze-and-excitation.

References: He et al., https://arxiv.org/abs/1512.03385; Hu et al. (SE),
https://arxiv.org/abs/1709.01507.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers, pooling
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array


def conv(
  features: int,
  size: int,
  strides: int,
  name: str,
  dtype: DTypeLike | None = None,
) -> layers.Conv:
  """Returns a convolution without bias that keeps the size but for strides.

  Args:
    features: number of output channels.
    size: of the kernel, odd.
    strides: step along both axes.
    name: of the submodule.
    dtype: computation type; None: float32.
  """
  return layers.Conv(
    features,
    size,
    strides=strides,
    padding=size // 2,
    use_bias=False,
    kernel_init=jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    dtype=dtype,
    name=name,
  )


class BasicBlock(nn.Module, kw_only=True):
  """Two 3x3 convolutions with batch norm, added to their input.

  Shapes: `[B, H, W, I]` -> `[B, ceil(H / s), ceil(W / s), features]`.

  Taps, all of the output's shape and before their activation:
    conv1, bn1, conv2, bn2.
    shortcut, shortcut_bn: where the input has another shape.

  Attributes:
    features: number of channels.
    strides: s, of the first convolution.
    dtype: computation type; None: float32.
  """

  features: int
  strides: int = 1
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the block's output."""
    x = self._normed(inputs, 3, self.strides, "conv1", "bn1", train)
    x = self._normed(nn.relu(x), 3, 1, "conv2", "bn2", train)
    if inputs.shape != x.shape:
      inputs = self._normed(
        inputs, 1, self.strides, "shortcut", "shortcut_bn", train
      )
    return nn.relu(x + inputs)

  def _normed(
    self, x: Array, size: int, strides: int, name: str, bn: str, train: bool
  ) -> Array:
    """Returns a convolution of `x` behind its batch norm."""
    x = conv(self.features, size, strides, name, self.dtype)(x)
    return BatchNorm(dtype=self.dtype, name=bn)(x, train=train)


class ResNetStage(nn.Module, kw_only=True):
  """Basic blocks of one width, the first of which may halve the map.

  Shapes: `[B, H, W, I]` -> `[B, ceil(H / s), ceil(W / s), features]`.

  Taps:
    block1, block2, ...: of the output's shape; inside: see `BasicBlock`.

  Attributes:
    features: number of channels.
    strides: s, of the first block.
    depth: number of blocks.
    dtype: computation type; None: float32.
  """

  features: int
  strides: int = 1
  depth: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the stage's map."""
    x = inputs
    for number in range(1, self.depth + 1):
      block = BasicBlock(
        features=self.features,
        strides=self.strides if number == 1 else 1,
        dtype=self.dtype,
        name=f"block{number}",
      )
      x = block(x, train=train)
    return x


class SqueezeExcitation(nn.Module, kw_only=True):
  """Every channel times a factor in (0, 1), read from the means of all.

  Shapes: `[B, *spatial, C]` -> `[B, *spatial, C]`.

  Taps:
    fc1: `[B, C // reduction]`, before its activation.
    fc2: `[B, C]`, the logits of the factors.

  Attributes:
    reduction: how much narrower the layer between is.
    dtype: computation type; None: float32.
  """

  reduction: int = 16
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the scaled map."""
    channels = inputs.shape[-1]
    x = pooling.global_average_pool(inputs)
    hidden = max(1, channels // self.reduction)
    x = nn.relu(layers.Linear(hidden, dtype=self.dtype, name="fc1")(x))
    x = nn.sigmoid(layers.Linear(channels, dtype=self.dtype, name="fc2")(x))
    return inputs * x.reshape(len(x), *(1,) * (inputs.ndim - 2), channels)
