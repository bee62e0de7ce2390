"""Convolutional networks on spectrograms of 112 by 112.

Reference: https://arxiv.org/abs/2507.07015, networks of AV-MNIST.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers, pooling

Array = jax.Array


class ThreeLayerCNN(nn.Module, kw_only=True):
  """ThreeLayerCNN-A: three 3x3 convolutions and a linear layer.

  Shapes: audio `[B, 112, 112, 1]` -> logits `[B, num_classes]`.

  Taps (before their activation):
    conv1: `[B, 112, 112, 32]`.
    conv2: `[B, 56, 56, 64]`.
    conv3: `[B, 28, 28, 128]`.
    fc1: `[B, num_classes]`.

  Attributes:
    num_classes: number of classes.
    widths: channels of the convolutions.
    dtype: computation type; None: float32.
  """

  num_classes: int = 10
  widths: tuple[int, ...] = (32, 64, 128)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, audio: Array) -> Array:
    """Returns the logits of `audio`."""
    x = audio
    for i, width in enumerate(self.widths, start=1):
      x = layers.Conv(width, 3, padding=1, dtype=self.dtype, name=f"conv{i}")(x)
      x = pooling.max_pool(nn.relu(x), 2)  # [B, H / 2^i, W / 2^i, width]
    x = x.reshape(x.shape[0], -1)  # [B, 25088]
    return layers.Linear(self.num_classes, dtype=self.dtype, name="fc1")(x)


class FiveLayerCNNTrunk(nn.Module, kw_only=True):
  """Five 3x3 convolutions and a global average, without a classifier.

  Max pooling follows all convolutions but the last.

  Shapes: audio `[B, 112, 112, 1]` -> features `[B, 512]`, after a ReLU.

  Taps (before their activation):
    conv1 ... conv5: `[B, 112, 112, 32]` ... `[B, 7, 7, 512]`.

  Attributes:
    widths: channels of the convolutions.
    dtype: computation type; None: float32.
  """

  widths: tuple[int, ...] = (32, 64, 128, 256, 512)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, audio: Array) -> Array:
    """Returns the features of `audio`."""
    x = audio
    for i, width in enumerate(self.widths, start=1):
      x = x if i == 1 else pooling.max_pool(x, 2)
      x = layers.Conv(width, 3, padding=1, dtype=self.dtype, name=f"conv{i}")(x)
      x = nn.relu(x)  # [B, H / 2^(i-1), W / 2^(i-1), width]
    return pooling.global_average_pool(x)
