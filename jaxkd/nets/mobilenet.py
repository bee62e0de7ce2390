"""MobileNetV2.

Reference: Sandler et al., https://arxiv.org/abs/1801.04381, Table 2.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import inverted
from jaxkd.nets.depthwise import Padding
from jaxkd.nets.inverted import Activation, MobileStage

Array = jax.Array

_STAGES = (
  MobileStage(1, 3, 1, 1, 16),
  MobileStage(2, 3, 2, 6, 24),
  MobileStage(3, 3, 2, 6, 32),
  MobileStage(4, 3, 2, 6, 64),
  MobileStage(3, 3, 1, 6, 96),
  MobileStage(3, 3, 2, 6, 160),
  MobileStage(1, 3, 1, 6, 320),
)


class MobileNetV2(nn.Module, kw_only=True):
  """Inverted residual blocks without gates.

  Shapes: image `[B, H, W, C]` -> logits `[B, num_classes]`, or with
  `num_classes=None` the pooled feature `[B, 1280 max(1, width)]`.

  Taps:
    stem: `[B, H/2, W/2, 32 width]`, activated; inside: `conv`, `bn`.
    block1, ..., block17: the blocks' maps; inside: see `InvertedResidual`.
      Blocks 1, 3, 6, 13 and 17 end the maps of H/2, H/4, H/8, H/16, H/32.
    head: `[B, H/32, W/32, 1280 max(1, width)]`, activated; inside: `conv`,
      `bn`.
    pool: `[B, 1280 max(1, width)]`.
    fc: the logits.

  Attributes:
    width: factor of all numbers of channels, which are rounded to eights; that
      of the head does not fall.
    activation: `relu6` or `swish`.
    padding: `same`, TensorFlow's, or `symmetric`, PyTorch's.
    momentum: of the batch norms.
    epsilon: of the batch norms.
    num_classes: number of classes; None: no classifier.
    dtype: computation type; None: float32.
    remat: whether the inside of blocks is computed again for the gradient
      instead of kept.
  """

  width: float = 1.0
  activation: Activation = "relu6"
  padding: Padding = "same"
  momentum: float = 0.997
  epsilon: float = 1e-3
  num_classes: int | None = 1000
  dtype: DTypeLike | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    """Returns the logits of `image`."""
    inverted.check("MobileNetV2", self.activation, self.padding)
    return inverted.run(
      image,
      stem=self._scaled(32),
      block_stages=[
        stage._replace(width=self._scaled(stage.width)) for stage in _STAGES
      ],
      head=max(1280, self._scaled(1280)),
      num_classes=self.num_classes,
      residual=lambda number, channels, stage: (
        channels == stage.width
        and stage.expansion > 1
        and (number > 1 or stage.strides == 1)
      ),
      remat=self.remat,
      squeeze=0.0,
      train=train,
      activation=self.activation,
      padding=self.padding,
      momentum=self.momentum,
      epsilon=self.epsilon,
      dtype=self.dtype,
    )

  def _scaled(self, channels: int) -> int:
    return inverted.divisible(round(channels * self.width))
