"""FuseNet: semantic segmentation of colour and depth images.

A VGG-16 encoder of five stages whose max-pooling keeps the position of each
maximum, and a mirrored decoder that puts the values back there. The fused
network runs two encoders and averages the depth stages into the colour ones.

Reference: Hazirbas et al., FuseNet, ACCV 2016; this variant:
https://arxiv.org/abs/2507.07015, networks of NYU-Depth-V2.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import batchnorm, initializers, junctions, layers, pooling

Array = jax.Array
Widths = tuple[tuple[int, ...], ...]

VGG16_WIDTHS: Widths = (
  (64, 64),
  (128, 128),
  (256, 256, 256),
  (512, 512, 512),
  (512, 512, 512),
)
_FIRST_DROPPED_STAGE = 3  # stages from here on end in dropout


class ConvBlock(nn.Module, kw_only=True):
  """3x3 convolutions, each with batch norm and ReLU.

  Shapes: `[B, H, W, I]` -> `[B, H, W, widths[-1]]`.

  Taps: `conv1`, `bn1`, `conv2`, `bn2`, ..., before their activation.

  Attributes:
    widths: channels of the convolutions.
    classes: None, or the channels of one more convolution at the end, without
      batch norm and ReLU.
    xavier_gain: see `FuseNet`.
    dtype: computation type; None: float32.
  """

  widths: tuple[int, ...]
  classes: int | None = None
  xavier_gain: float | None = 0.02
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the features, or with `classes` the logits, of `inputs`."""
    x = inputs
    for i, width in enumerate(self.widths, start=1):
      x = self._conv(width, i)(x)
      x = nn.relu(self._batch_norm(i)(x, train=train))
    if self.classes is None:
      return x
    return self._conv(self.classes, len(self.widths) + 1)(x)

  def _conv(self, width: int, i: int) -> layers.Conv:
    """Returns the convolution number `i`, initialised as asked."""
    if self.xavier_gain is None:
      return layers.Conv(width, 3, padding=1, dtype=self.dtype, name=f"conv{i}")
    return layers.Conv(
      width,
      3,
      padding=1,
      kernel_init=initializers.xavier_normal(self.xavier_gain),
      bias_init=initializers.zero_bias,
      dtype=self.dtype,
      name=f"conv{i}",
    )

  def _batch_norm(self, i: int) -> batchnorm.BatchNorm:
    """Returns the batch norm number `i`, initialised as asked."""
    if self.xavier_gain is None:
      return batchnorm.BatchNorm(dtype=self.dtype, name=f"bn{i}")
    return batchnorm.BatchNorm(
      scale_init=initializers.normal_around_one(self.xavier_gain),
      dtype=self.dtype,
      name=f"bn{i}",
    )


def _dropout(
  x: Array, stage: int, prefix: str, rate: float, train: bool
) -> Array:
  """Applies the dropout that ends `stage`, if that stage has one."""
  if stage < _FIRST_DROPPED_STAGE:
    return x
  drop = nn.Dropout(rate, deterministic=not train, name=f"{prefix}{stage}")
  return drop(x)


def _check_size(image: Array, stages: int) -> None:
  """Raises if the image cannot be halved and doubled back `stages` times."""
  multiple = 2**stages
  if image.ndim != 4 or any(size % multiple for size in image.shape[1:3]):
    raise errors.ConfigError(
      f"FuseNet: input of shape {image.shape}: expected [B, H, W, C] with H "
      f"and W multiples of {multiple}"
    )


class FuseNetBranch(nn.Module, kw_only=True):
  """FuseNet of one modality, 29M parameters.

  Shapes: image `[B, H, W, C]` -> logits `[B, H, W, num_classes]`; H and W
  multiples of 32.

  Taps:
    encoder1 ... encoder5: `[B, H, W, 64]` ... `[B, H/16, W/16, 512]`; inside:
      `conv1`, `bn1`, ...
    bottleneck: `[B, H/32, W/32, 512]`.
    decoder5 ... decoder1: `[B, H/16, W/16, 512]` ... the logits; inside:
      `conv1`, `bn1`, ...
    encoder_dropout3, 4, 5 and decoder_dropout5, 4, 3.

  Attributes:
    num_classes: number of classes.
    widths: channels of the encoder's convolutions, stage by stage.
    dropout: dropout rate after the inner three stages (needs the random stream
      `dropout` in training).
    xavier_gain: see `FuseNet`.
    dtype: computation type; None: float32.
  """

  num_classes: int = 41
  widths: Widths = VGG16_WIDTHS
  dropout: float = 0.4
  xavier_gain: float | None = 0.02
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    """Returns the logits of every pixel of `image`."""
    _check_size(image, len(self.widths))
    x, positions = image, []
    for stage, widths in enumerate(self.widths, start=1):
      x = _block(self, widths, f"encoder{stage}")(x, train=train)
      x, indices = pooling.max_pool_with_indices(x, 2)
      x = _dropout(x, stage, "encoder_dropout", self.dropout, train)
      positions.append(indices)
    x = junctions.Identity(name="bottleneck")(x)
    return _decode(self, x, positions, train)


class FuseNet(nn.Module, kw_only=True):
  """FuseNet-I: depth averaged into colour at every stage, 44M parameters.

  The decoder uses the positions of the maxima of the fused colour path.

  Shapes: image `[B, H, W, 3]`, depth `[B, H, W, 1]` -> logits
  `[B, H, W, num_classes]`; H and W multiples of 32.

  Taps:
    rgb_encoder1 ... 5, depth_encoder1 ... 5: `[B, H, W, 64]` ...
      `[B, H/16, W/16, 512]`, before the average; inside: `conv1`, `bn1`, ...
    bottleneck: `[B, H/32, W/32, 512]`, after the last average and pooling.
    decoder5 ... decoder1: `[B, H/16, W/16, 512]` ... the logits; inside:
      `conv1`, `bn1`, ...
    rgb_dropout3, 4, 5, depth_dropout3, 4 and decoder_dropout5, 4, 3.

  Attributes:
    num_classes: number of classes.
    widths: channels of the encoders' convolutions, stage by stage.
    dropout: dropout rate after the inner three stages (needs the random stream
      `dropout` in training).
    xavier_gain: gain of Xavier-normal kernels with zero biases, and standard
      deviation around 1 of the batch-norm scales; the official code overwrites
      its pretrained weights so. None: PyTorch's defaults.
    dtype: computation type; None: float32.
  """

  num_classes: int = 41
  widths: Widths = VGG16_WIDTHS
  dropout: float = 0.4
  xavier_gain: float | None = 0.02
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, image: Array, depth: Array, *, train: bool = False
  ) -> Array:
    """Returns the logits of every pixel of the pairs `(image, depth)`."""
    _check_size(image, len(self.widths))
    x, y, positions = image, depth, []
    for stage, widths in enumerate(self.widths, start=1):
      if stage > 1:
        y = pooling.max_pool(y, 2)
        y = _dropout(y, stage - 1, "depth_dropout", self.dropout, train)
      y = _block(self, widths, f"depth_encoder{stage}")(y, train=train)
      x = _block(self, widths, f"rgb_encoder{stage}")(x, train=train)
      x, indices = pooling.max_pool_with_indices((x + y) / 2, 2)
      x = _dropout(x, stage, "rgb_dropout", self.dropout, train)
      positions.append(indices)
    x = junctions.Identity(name="bottleneck")(x)
    return _decode(self, x, positions, train)


def _block(
  net: FuseNet | FuseNetBranch,
  widths: tuple[int, ...],
  name: str,
  classes: int | None = None,
) -> ConvBlock:
  """Returns a block with the settings of `net`."""
  return ConvBlock(
    widths=widths,
    classes=classes,
    xavier_gain=net.xavier_gain,
    dtype=net.dtype,
    name=name,
  )


def _decode(
  net: FuseNet | FuseNetBranch, x: Array, positions: list[Array], train: bool
) -> Array:
  """Returns the logits from the bottleneck: the encoder's stages mirrored."""
  for stage in range(len(net.widths), 0, -1):
    x = pooling.max_unpool(x, positions[stage - 1], 2)
    widths, classes = net.widths[stage - 1][:-1], net.num_classes
    if stage > 1:
      widths, classes = (*widths, net.widths[stage - 2][-1]), None
    x = _block(net, widths, f"decoder{stage}", classes)(x, train=train)
    x = _dropout(x, stage, "decoder_dropout", net.dropout, train)
  return x
