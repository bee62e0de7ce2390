"""ResNet: blocks, stages, whole networks; squeeze-and-excitation.

Blocks are those of version 1.5, whose bottlenecks step in their 3x3
convolution.

References: He et al., https://arxiv.org/abs/1512.03385, Table 1; Goyal et al.
(the place of the step), https://arxiv.org/abs/1706.02677; Hu et al. (SE),
https://arxiv.org/abs/1709.01507.
"""

import functools
from typing import Any

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.nets import layers, pooling, stages
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
    part = functools.partial(_normed, train=train, dtype=self.dtype)
    x = part(inputs, self.features, 3, self.strides, "conv1", "bn1")
    x = part(nn.relu(x), self.features, 3, 1, "conv2", "bn2")
    return nn.relu(x + _shortcut(inputs, x, self.strides, part))


class Bottleneck(nn.Module, kw_only=True):
  """A 3x3 convolution between two of 1x1, added to their input.

  Shapes: `[B, H, W, I]` -> `[B, ceil(H / s), ceil(W / s), features]`.

  Taps, all before their activation:
    conv1, bn1: `[B, H, W, features / 4]`.
    conv2, bn2: `[B, ceil(H / s), ceil(W / s), features / 4]`.
    conv3, bn3: of the output's shape.
    shortcut, shortcut_bn: likewise, where the input has another shape.

  Attributes:
    features: number of channels of the output.
    strides: s, of the 3x3 convolution.
    dtype: computation type; None: float32.
  """

  features: int
  strides: int = 1
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the block's output."""
    part = functools.partial(_normed, train=train, dtype=self.dtype)
    narrow = self.features // 4
    x = part(inputs, narrow, 1, 1, "conv1", "bn1")
    x = part(nn.relu(x), narrow, 3, self.strides, "conv2", "bn2")
    x = part(nn.relu(x), self.features, 1, 1, "conv3", "bn3")
    return nn.relu(x + _shortcut(inputs, x, self.strides, part))


def _normed(
  x: Array,
  features: int,
  size: int,
  strides: int,
  name: str,
  bn: str,
  *,
  train: bool,
  dtype: DTypeLike | None,
) -> Array:
  """Returns a convolution of `x` behind its batch norm."""
  x = conv(features, size, strides, name, dtype)(x)
  return BatchNorm(dtype=dtype, name=bn)(x, train=train)


def _shortcut(inputs: Array, x: Array, strides: int, part) -> Array:
  """Returns the block's input in the shape of `x`, its convolutions' output."""
  features = x.shape[-1]
  if strides == 1 and inputs.shape[-1] == features:
    return inputs
  return part(inputs, features, 1, strides, "shortcut", "shortcut_bn")


class ResNetStage(nn.Module, kw_only=True):
  """Blocks of one width, the first of which may halve the map.

  Shapes: `[B, H, W, I]` -> `[B, ceil(H / s), ceil(W / s), features]`.

  Taps:
    block1, block2, ...: of the output's shape; inside: see `BasicBlock` and
      `Bottleneck`.

  Attributes:
    features: number of channels.
    strides: s, of the first block.
    depth: number of blocks.
    bottleneck: whether they are bottlenecks, or basic blocks.
    dtype: computation type; None: float32.
    remat: whether the inside of blocks is computed again for the gradient
      instead of kept.
  """

  features: int
  strides: int = 1
  depth: int = 2
  bottleneck: bool = False
  dtype: DTypeLike | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the stage's map."""

    def call(block, x):
      return block(x, train=train)

    call = nn.remat(call) if self.remat else call
    kind = Bottleneck if self.bottleneck else BasicBlock
    x = inputs
    for number in range(1, self.depth + 1):
      block = kind(
        features=self.features,
        strides=self.strides if number == 1 else 1,
        dtype=self.dtype,
        name=f"block{number}",
      )
      x = call(block, x)
    return x


class ResNetStem(nn.Module, kw_only=True):
  """A 7x7 convolution and a maximum, each of which halves the map.

  Shapes: `[B, H, W, I]` -> `[B, H/4, W/4, features]`, rounded up.

  Taps: conv, bn (before the activation), both `[B, H/2, W/2, features]`.

  Attributes:
    features: number of channels.
    dtype: computation type; None: float32.
  """

  features: int = 64
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the map."""
    x = _normed(
      inputs, self.features, 7, 2, "conv", "bn", train=train, dtype=self.dtype
    )
    around = ((1, 1), (1, 1))
    return nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=around)


class ResNet(nn.Module, kw_only=True):
  """Stem, stages, the mean over places and a linear classifier.

  Shapes: image `[B, H, W, C]` -> logits `[B, num_classes]`, or with
  `num_classes=None` the pooled feature `[B, features[-1]]`.

  Taps:
    stem: `[B, H/4, W/4, stem_features]`; inside: `conv`, `bn`.
    stage1, stage2, ...: `[B, H/4, W/4, features[0]]`, then half the size every
      time; inside: see `ResNetStage`.
    pool: `[B, features[-1]]`.
    fc: the logits.

  Attributes:
    depths: blocks of the stages.
    features: channels of the stages' outputs.
    bottleneck: whether blocks are bottlenecks, or basic blocks.
    stem_features: channels of the stem.
    num_classes: number of classes; None: no classifier.
    dtype: computation type; None: float32.
    remat: whether the inside of blocks is computed again for the gradient
      instead of kept.
  """

  depths: tuple[int, ...] = (3, 4, 6, 3)
  features: tuple[int, ...] = (256, 512, 1024, 2048)
  bottleneck: bool = True
  stem_features: int = 64
  num_classes: int | None = 1000
  dtype: DTypeLike | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    """Returns the logits of `image`."""
    x = ResNetStem(features=self.stem_features, dtype=self.dtype, name="stem")(
      image, train=train
    )
    if len(self.depths) != len(self.features):
      raise ConfigError(
        f"ResNet.depths={self.depths}, features={self.features}: expected as "
        "many of both"
      )
    for number, (depth, width) in enumerate(
      zip(self.depths, self.features, strict=True), start=1
    ):
      stage = ResNetStage(
        features=width,
        strides=1 if number == 1 else 2,
        depth=depth,
        bottleneck=self.bottleneck,
        dtype=self.dtype,
        remat=self.remat,
        name=f"stage{number}",
      )
      x = stage(x, train=train)
    x = stages.Pool(name="pool")(x)
    if self.num_classes is None:
      return x
    return layers.Linear(self.num_classes, dtype=self.dtype, name="fc")(x)


RESNETS = {
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}


def resnet_variant(depth: int, **options: Any) -> ResNet:
  """A published size.

  Args:
    depth: 18, 34 (of basic blocks), 50, 101 or 152 (of bottlenecks).
    **options: other attributes of `ResNet`.

  Raises:
    ConfigError: for another depth.
  """
  if depth not in RESNETS:
    known = ", ".join(map(str, RESNETS))
    raise ConfigError(f"ResNet depth {depth}; expected one of {known}")
  depths, bottleneck = RESNETS[depth]
  base = 256 if bottleneck else 64
  features = (base, 2 * base, 4 * base, 8 * base)
  return ResNet(
    depths=depths, features=features, bottleneck=bottleneck, **options
  )


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
    return inputs * x.reshape(x.shape[0], *(1,) * (inputs.ndim - 2), channels)
