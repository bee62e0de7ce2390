"""Inverted residual blocks, of which mobile networks are made.

A block widens its input, filters every channel by itself, and narrows the
result again.

References: Sandler et al. (MobileNetV2), https://arxiv.org/abs/1801.04381; Tan
and Le (EfficientNet), https://arxiv.org/abs/1905.11946; Hu et al. (SE),
https://arxiv.org/abs/1709.01507.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.nets import depthwise, layers, pooling, stages, stochastic_depth
from jaxkd.nets.batchnorm import BatchNorm
from jaxkd.nets.depthwise import Padding

Array = jax.Array
Activation = Literal["relu6", "swish"]

ACTIVATIONS = {"relu6": nn.relu6, "swish": nn.swish}
_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


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


class ConvNorm(nn.Module, kw_only=True):
  """A convolution or filters, batch norm, and an activation.

  Shapes: `[B, H, W, I]` -> `[B, ceil(H / s), ceil(W / s), features]`.

  Taps, both of the output's shape and before the activation: conv, bn.

  Attributes:
    features: channels of the output; None: filters of every channel.
    kernel_size: of the kernel, odd.
    strides: s.
    activation: `relu6`, `swish`, or None for none.
    padding: see `depthwise.margins`.
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
    return depthwise.DepthwiseConv(
      kernel_size=self.kernel_size,
      strides=self.strides,
      padding=self.padding,
      dtype=self.dtype,
      name="conv",
    )(inputs)

  def _mixed(self, inputs: Array) -> Array:
    around = depthwise.around(
      inputs, self.kernel_size, self.strides, self.padding
    )
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
    dropped: probability that the input is left as it is, for an example.
    squeeze: hidden channels of the gate, as a share of I; 0: no gate.
    activation: inside the block.
    padding: see `depthwise.margins`.
    momentum: of the batch norms.
    epsilon: of the batch norms.
    dtype: computation type; None: float32.
  """

  features: int
  kernel_size: int
  strides: int
  expansion: int
  residual: bool
  dropped: float
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
    if not self.residual:
      return x
    if train and self.dropped:
      x = stochastic_depth.drop(self.make_rng("dropout"), x, self.dropped)
    return x + inputs


def check(owner: str, activation: str, padding: str) -> None:
  """Raises `ConfigError` for an activation or a padding that is not known."""
  for field, value, known in (
    ("activation", activation, tuple(ACTIVATIONS)),
    ("padding", padding, depthwise.PADDINGS),
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
  most_dropped: float = 0.0,
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
    train: whether batch statistics are used and moved, and blocks dropped.
    most_dropped: probability that a block adds nothing to an example: that of
      block i of n, from 0, is i / n of it.
    **style: activation, padding, momentum, epsilon, dtype.

  Returns:
    Logits [B, num_classes], or the pooled feature [B, head].
  """
  x = ConvNorm(features=stem, kernel_size=3, strides=2, name="stem", **style)(
    image, train=train
  )
  x = _run_blocks(
    x,
    [(stage, i) for stage in block_stages for i in range(1, stage.repeats + 1)],
    residual=residual,
    remat=remat,
    most_dropped=most_dropped,
    train=train,
    squeeze=squeeze,
    **style,
  )
  x = ConvNorm(features=head, name="head", **style)(x, train=train)
  x = stages.Pool(name="pool")(x)
  if num_classes is None:
    return x
  return layers.Linear(num_classes, dtype=style["dtype"], name="fc")(x)


def _run_blocks(
  x: Array,
  blocks: Sequence[tuple[MobileStage, int]],
  *,
  residual: Callable[[int, int, MobileStage], bool],
  remat: bool,
  most_dropped: float,
  train: bool,
  **fields: Any,
) -> Array:
  """Runs blocks, each given by its stage and its number there."""

  def call(block, x):
    return block(x, train=train)

  call = nn.remat(call) if remat else call
  for before, (stage, number) in enumerate(blocks):
    block = InvertedResidual(
      features=stage.width,
      kernel_size=stage.kernel_size,
      strides=stage.strides if number == 1 else 1,
      expansion=stage.expansion,
      residual=residual(number, x.shape[-1], stage),
      dropped=most_dropped * before / len(blocks),
      name=f"block{before + 1}",
      **fields,
    )
    x = call(block, x)
  return x
