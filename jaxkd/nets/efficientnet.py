"""EfficientNet, and its Lite form for devices without squeeze-and-excitation.

References: Tan and Le, https://arxiv.org/abs/1905.11946, Table 1 and Sec. 3.3.
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.nets import inverted, stochastic_depth
from jaxkd.nets.depthwise import Padding
from jaxkd.nets.inverted import Activation, MobileStage

Array = jax.Array

STAGES = (
  MobileStage(1, 3, 1, 1, 16),
  MobileStage(2, 3, 2, 6, 24),
  MobileStage(2, 5, 2, 6, 40),
  MobileStage(3, 3, 2, 6, 80),
  MobileStage(3, 5, 1, 6, 112),
  MobileStage(4, 5, 2, 6, 192),
  MobileStage(1, 3, 1, 6, 320),
)
SCALES = {  # width, depth
  "b0": (1.0, 1.0),
  "b1": (1.0, 1.1),
  "b2": (1.1, 1.2),
  "b3": (1.2, 1.4),
  "b4": (1.4, 1.8),
  "b5": (1.6, 2.2),
  "b6": (1.8, 2.6),
  "b7": (2.0, 3.1),
  "lite0": (1.0, 1.0),
  "lite1": (1.0, 1.1),
  "lite2": (1.1, 1.2),
  "lite3": (1.2, 1.4),
  "lite4": (1.4, 1.8),
}


class EfficientNet(nn.Module, kw_only=True):
  """Inverted residual blocks, scaled in width and depth.

  Shapes: image `[B, H, W, C]` -> logits `[B, num_classes]`, or with
  `num_classes=None` the pooled feature `[B, 1280 width]`.

  Taps:
    stem: `[B, H/2, W/2, 32 width]`, activated; inside: `conv`, `bn`.
    block1, block2, ...: the blocks' maps; inside: see `InvertedResidual`.
      Without scaling, blocks 1, 3, 5, 11 and 16 end the maps of H/2, H/4, H/8,
      H/16 and H/32.
    head: `[B, H/32, W/32, 1280 width]`, activated; inside: `conv`, `bn`.
    pool: `[B, 1280 width]`.
    fc: the logits.

  Attributes:
    width: factor of all numbers of channels, which are rounded to eights.
    depth: factor of the stages' numbers of blocks, rounded up.
    stages: rows of repeats, kernel size, strides, expansion, width.
    fixed_ends: whether the channels of stem and head and the depths of the
      first and the last stage are left as they are: Lite.
    squeeze: hidden channels of a block's gate, as a share of its input's; 0:
      no gates: Lite.
    stochastic_depth: probability that a block adds nothing to an example: that
      of block i of n, from 0, is i / n of it. 0.2 in the paper, Sec. 5.2.
    activation: `swish`, or `relu6`: Lite.
    padding: `same`, TensorFlow's, or `symmetric`.
    momentum: of the batch norms.
    epsilon: of the batch norms.
    num_classes: number of classes; None: no classifier.
    dtype: computation type; None: float32.
    remat: whether the inside of blocks is computed again for the gradient
      instead of kept.
  """

  width: float = 1.0
  depth: float = 1.0
  stages: tuple[MobileStage, ...] = STAGES
  fixed_ends: bool = False
  squeeze: float = 0.25
  stochastic_depth: float = 0.0
  activation: Activation = "swish"
  padding: Padding = "same"
  momentum: float = 0.99
  epsilon: float = 1e-3
  num_classes: int | None = 1000
  dtype: DTypeLike | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    """Returns the logits of `image`."""
    inverted.check("EfficientNet", self.activation, self.padding)
    stochastic_depth.check("EfficientNet", self.stochastic_depth)
    return inverted.run(
      image,
      stem=self._end(32),
      block_stages=self.scaled_stages(),
      head=self.head_width,
      num_classes=self.num_classes,
      residual=lambda number, channels, stage: number > 1,
      remat=self.remat,
      squeeze=self.squeeze,
      most_dropped=self.stochastic_depth,
      train=train,
      activation=self.activation,
      padding=self.padding,
      momentum=self.momentum,
      epsilon=self.epsilon,
      dtype=self.dtype,
    )

  @property
  def head_width(self) -> int:
    """Channels of the head."""
    return self._end(1280)

  def _end(self, channels: int) -> int:
    """Channels of the stem or the head."""
    if self.fixed_ends:
      return channels
    return inverted.divisible(channels * self.width)

  def scaled_stages(self) -> tuple[MobileStage, ...]:
    """The stages with their widths and depths."""
    scaled = []
    for number, stage in enumerate(self.stages):
      stage = MobileStage(*stage)
      fixed = self.fixed_ends and number in (0, len(self.stages) - 1)
      repeats = (
        stage.repeats if fixed else math.ceil(stage.repeats * self.depth)
      )
      width = inverted.divisible(stage.width * self.width)
      scaled.append(stage._replace(repeats=repeats, width=width))
    return tuple(scaled)


def efficientnet_variant(variant: str, **options: Any) -> EfficientNet:
  """A published size.

  Args:
    variant: `b0` to `b7`, `lite0` to `lite4`.
    **options: other attributes of `EfficientNet`.

  Raises:
    ConfigError: for another variant.
  """
  if variant not in SCALES:
    raise ConfigError(
      f"EfficientNet variant {variant!r}{did_you_mean(variant, SCALES)}; "
      f"expected one of {', '.join(SCALES)}"
    )
  width, depth = SCALES[variant]
  if variant.startswith("lite"):
    lite = {"fixed_ends": True, "squeeze": 0.0, "activation": "relu6"}
    options = {**lite, **options}
  return EfficientNet(width=width, depth=depth, **options)
