"""A small convolutional network of stages, for comparing feature losses.

The stem-and-stages shape on which feature distillation is compared, without
the residual blocks: every stage halves the map and its output is one tap.

Reference: Tian et al., https://arxiv.org/abs/1910.10699, Sec. 4 (the taps).
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers, pooling
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array


class Stage(nn.Module):
  """Convolution of 3, batch norm, ReLU, then the mean of every 2 by 2.

  Shapes: `[B, H, W, I]` -> `[B, H / 2, W / 2, features]`, rounded down.

  Taps: conv, norm (before the ReLU), both `[B, H, W, features]`.
  """

  features: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the stage's map."""
    x = layers.Conv(
      self.features, 3, padding=1, use_bias=False, dtype=self.dtype, name="conv"
    )(inputs)
    x = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
    return pooling.average_pool(x, 2)


class Pool(nn.Module):
  """Mean over all places: `[B, H, W, C]` -> `[B, C]`."""

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the mean of every channel."""
    return pooling.global_average_pool(inputs)


class StageCNN(nn.Module, kw_only=True):
  """Stages of convolutions, a mean over places and a linear classifier.

  Shapes: image `[B, H, W, C]` -> logits `[B, num_classes]`.

  Taps:
    stage1, stage2, ...: the stages' maps.
    pooled: `[B, widths[-1]]`.
    classifier: `[B, num_classes]`.

  Attributes:
    widths: channels of the stages.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  widths: tuple[int, ...] = (16, 32, 64)
  num_classes: int = 10
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    """Returns the logits of `image`."""
    x = image
    for number, width in enumerate(self.widths, start=1):
      x = Stage(width, dtype=self.dtype, name=f"stage{number}")(x, train=train)
    x = Pool(name="pooled")(x)
    return layers.Linear(self.num_classes, dtype=self.dtype, name="classifier")(
      x
    )
