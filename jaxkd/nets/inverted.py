"""Inverted residual blocks, of which mobile networks are made.

A block widens its input, filters every channel by itself, and narrows the
result again.

References: Sandler et al. (MobileNetV2), https://arxiv.org/abs/1801.04381; Tan
and Le (EfficientNet), https://arxiv.org/abs/1905.11946; Hu et al. (SE),
https://arxiv.org/abs/1709.01507.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.nets import layers, pooling, stages
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array
Activation = Literal["relu6", "swish"]
Padding = Literal["same", "symmetric"]

ACTIVATIONS = {"relu6": nn.relu6, "swish": nn.swish}
PADDINGS = ("same", "symmetric")
_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_DEPTHWISE_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class MobileStage(NamedTuple):
  """Blocks of one width.

  Attributes:
    repeats: number of blocks.
    kernel_size: of the filters.
    strides: of the first block.
    expansion: how much wider a block is inside; 1: no wider, and no layer.
    width: channels of the output.
  """

  repeats: int
  kernel_size: int
  strides: int
  expansion: int
  width: int


def divisible(channels: float) -> int:
  """Returns the multiple of 8 near a width, at least 8 and 9/10 of it."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded


def margins(
  size: int, kernel_size: int, strides: int, padding: Padding
) -> tuple[int, int]:
  """Returns how many zeros stand before and behind an axis.

  Args:
    size: of the axis.
    kernel_size: k.
    strides: s.
    padding: `same`: as few as give ceil(size / s) places, of an odd number
      more behind (TensorFlow's rule); `symmetric`: k // 2 on both sides.
  """
  if padding == "symmetric":
    return kernel_size // 2, kernel_size // 2
  places = -(-size // strides)
  total = max((places - 1) * strides + kernel_size - size, 0)
  return total // 2, total - total // 2


class DepthwiseConv(nn.Module, kw_only=True):
  """A filter for every channel.

  Shapes: `[B, H, W, C]` -> `[B, ceil(H / s), ceil(W / s), C]`.

  Attributes:
    kernel_size: k, odd; the kernel is `[k, k, 1, C]`.
    strides: s, along both axes.
    padding: see `margins`.
    dtype: computation type; None: the promotion of input and float32.
  """

  kernel_size: int
  strides: int = 1
  padding: Padding = "same"
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the filtered map."""
    shape = (self.kernel_size, self.kernel_size, 1, inputs.shape[-1])
    kernel = self.param("kernel", _DEPTHWISE_INIT, shape, jnp.float32)
    inputs, kernel = dtypes.promote_dtype(inputs, kernel, dtype=self.dtype)
    around = _around(inputs, self.kernel_size, self.strides, self.padding)
    return jax.lax.platform_dependent(
      inputs,
      kernel,
      cpu=functools.partial(_shifted_sum, strides=self.strides, around=around),
      default=functools.partial(_grouped, strides=self.strides, around=around),
    )


def _around(inputs: Array, kernel_size: int, strides: int, padding: Padding):
  """The margins of height and width."""
  return tuple(
    margins(size, kernel_size, strides, padding) for size in inputs.shape[1:3]
  )


def _shifted_sum(inputs: Array, kernel: Array, *, strides: int, around):
  """One product for every place of the kernel: the fast way on a CPU."""
  x = jnp.pad(inputs, ((0, 0), *around, (0, 0)))
  size = len(kernel)
  height, width = ((n - size) // strides + 1 for n in x.shape[1:3])
  return sum(
    x[:, i : i + strides * height : strides, j : j + strides * width : strides]
    * kernel[i : i + 1, j : j + 1]
    for i, j in itertools.product(range(size), repeat=2)
  )


def _grouped(inputs: Array, kernel: Array, *, strides: int, around):
  """A convolution with one channel in every group."""
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    window_strides=(strides, strides),
    padding=around,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=inputs.shape[-1],
  )


class ConvNorm(nn.Module, kw_only=True):
  """A convolution or filters, batch norm, and an activation.

  Shapes: `[B, H, W, I]` -> `[B, ceil(H / s), ceil(W / s), features]`.

  Taps, both of the output's shape and before the activation: conv, bn.

  Attributes:
    features: channels of the output; None: filters of every channel.
    kernel_size: of the kernel, odd.
    strides: s.
    activation: `relu6`, `swish`, or None for none.
    padding: see `margins`.
    momentum: of the batch norm.
    epsilon: of the batch norm.
    dtype: computation type; None: float32.
  """

  features: int | None
  kernel_size: int = 1
  strides: int = 1
  activation: Activation | None
  padding: Padding
  momentum: float
  epsilon: float
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the map."""
    x = self._filtered(inputs) if self.features is None else self._mixed(inputs)
    x = BatchNorm(self.momentum, self.epsilon, dtype=self.dtype, name="bn")(
      x, train=train
    )
    return ACTIVATIONS[self.activation](x) if self.activation else x

  def _filtered(self, inputs: Array) -> Array:
    return DepthwiseConv(
      kernel_size=self.kernel_size,
      strides=self.strides,
      padding=self.padding,
      dtype=self.dtype,
      name="conv",
    )(inputs)

  def _mixed(self, inputs: Array) -> Array:
    around = _around(inputs, self.kernel_size, self.strides, self.padding)
    return layers.Conv(
      self.features,
      self.kernel_size,
      strides=self.strides,
      use_bias=False,
      kernel_init=_INIT,
      dtype=self.dtype,
      name="conv",
    )(jnp.pad(inputs, ((0, 0), *around, (0, 0))))


class ChannelGate(nn.Module, kw_only=True):
  """Every channel times a factor in (0, 1), read from the means of all.

  Squeeze-and-excitation with convolutions of 1 by 1, as checkpoints have it.

  Shapes: `[B, H, W, C]` -> `[B, H, W, C]`.

  Taps:
    reduce: `[B, 1, 1, hidden]`, before its activation.
    expand: `[B, 1, 1, C]`, the logits of the factors.

  Attributes:
    hidden: channels of the layer between.
    activation: of the layer between.
    dtype: computation type; None: float32.
  """

  hidden: int
  activation: Activation
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the scaled map."""
    x = pooling.global_average_pool(inputs)[:, None, None]
    x = layers.Conv(self.hidden, 1, dtype=self.dtype, name="reduce")(x)
    x = ACTIVATIONS[self.activation](x)
    x = layers.Conv(inputs.shape[-1], 1, dtype=self.dtype, name="expand")(x)
    return inputs * nn.sigmoid(x)


class InvertedResidual(nn.Module, kw_only=True):
  """Wide inside, narrow outside.

  Shapes: `[B, H, W, I]` -> `[B, ceil(H / s), ceil(W / s), features]`.

  Taps, with `conv` and `bn` inside each but the gate:
    expand: `[B, H, W, I expansion]`, activated; absent where expansion is 1.
    depthwise: `[B, ceil(H / s), ceil(W / s), I expansion]`, activated.
    gate: of the same shape; absent where squeeze is 0.
    project: of the output's shape, before the input is added.

  Attributes:
    features: channels of the output.
    kernel_size: of the filters.
    strides: s, of the filters.
    expansion: how much wider the block is inside.
    residual: whether the input is added.
    squeeze: hidden channels of the gate, as a share of I; 0: no gate.
    activation: inside the block.
    padding: see `margins`.
    momentum: of the batch norms.
    epsilon: of the batch norms.
    dtype: computation type; None: float32.
  """

  features: int
  kernel_size: int
  strides: int
  expansion: int
  residual: bool
  squeeze: float
  activation: Activation
  padding: Padding
  momentum: float
  epsilon: float
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the block's output."""
    x, narrow = inputs, inputs.shape[-1]
    part = functools.partial(
      ConvNorm,
      padding=self.padding,
      momentum=self.momentum,
      epsilon=self.epsilon,
      dtype=self.dtype,
    )
    if self.expansion != 1:
      wide = narrow * self.expansion
      x = part(features=wide, activation=self.activation, name="expand")(
        x, train=train
      )
    x = part(
      features=None,
      kernel_size=self.kernel_size,
      strides=self.strides,
      activation=self.activation,
      name="depthwise",
    )(x, train=train)
    if self.squeeze:
      x = ChannelGate(
        hidden=max(1, int(narrow * self.squeeze)),
        activation=self.activation,
        dtype=self.dtype,
        name="gate",
      )(x)
    x = part(features=self.features, activation=None, name="project")(
      x, train=train
    )
    return x + inputs if self.residual else x


def check(owner: str, activation: str, padding: str) -> None:
  """Raises `ConfigError` for an activation or a padding that is not known."""
  for field, value, known in (
    ("activation", activation, tuple(ACTIVATIONS)),
    ("padding", padding, PADDINGS),
  ):
    if value not in known:
      raise ConfigError(
        f"{owner}.{field}={value!r}: expected one of {', '.join(known)}"
        + did_you_mean(str(value), known)
      )


def run(
  image: Array,
  *,
  stem: int,
  block_stages: Sequence[MobileStage],
  head: int,
  num_classes: int | None,
  residual: Callable[[int, int, MobileStage], bool],
  remat: bool,
  squeeze: float,
  train: bool,
  **style: Any,
) -> Array:
  """Runs stem, blocks, head, mean and classifier in a compact method.

  Args:
    image: [B, H, W, C].
    stem: channels of the stem.
    block_stages: of the blocks `block1`, `block2`, ...
    head: channels of the head.
    num_classes: number of classes; None: no classifier.
    residual: `(number, channels, stage) -> ` whether block `number` of its
      stage, from 1, adds its input of so many channels.
    remat: whether a block's inside is computed again for the gradient instead
      of kept.
    squeeze: see `InvertedResidual`.
    train: whether batch statistics are used and moved.
    **style: activation, padding, momentum, epsilon, dtype.

  Returns:
    Logits [B, num_classes], or the pooled feature [B, head].
  """

  def call(block, x):
    return block(x, train=train)

  call = nn.remat(call) if remat else call
  x = ConvNorm(features=stem, kernel_size=3, strides=2, name="stem", **style)(
    image, train=train
  )
  names = (f"block{number}" for number in itertools.count(1))
  for stage in block_stages:
    for number in range(1, stage.repeats + 1):
      block = InvertedResidual(
        features=stage.width,
        kernel_size=stage.kernel_size,
        strides=stage.strides if number == 1 else 1,
        expansion=stage.expansion,
        residual=residual(number, x.shape[-1], stage),
        squeeze=squeeze,
        name=next(names),
        **style,
      )
      x = call(block, x)
  x = ConvNorm(features=head, name="head", **style)(x, train=train)
  x = stages.Pool(name="pool")(x)
  if num_classes is None:
    return x
  return layers.Linear(num_classes, dtype=style["dtype"], name="fc")(x)
