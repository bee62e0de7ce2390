"""Denoisers of diffusion models: networks of an example, a time and a class.

They predict the example `x` without its noise, in its own shape. Without batch
statistics: what one example becomes does not depend on the others.

References: Ho et al. (DDPM), https://arxiv.org/abs/2006.11239, App. B; Dhariwal
and Nichol, https://arxiv.org/abs/2105.05233.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import layers, resizing

Array = jax.Array

_STEPS = 1000  # times in 0-1 are read as DDPM's numbers of steps
_PERIOD = 10_000


def time_embedding(t: Array, size: int) -> Array:
  """Cosines and sines of times, at frequencies that fall geometrically.

  cos(1000 t w_i), sin(1000 t w_i), w_i = 10000^(-i / (size / 2)),
  i = 0 ... size / 2 - 1.

  Args:
    t: times, `[B]`, 0 to 1.
    size: of an embedding, even.

  Returns:
    `[B, size]`, float32, all cosines first.

  Raises:
    ConfigError: the size is odd or the times are no `[B]`.
  """
  if t.ndim != 1 or size < 2 or size % 2:
    raise errors.ConfigError(
      f"time embedding of size {size} of times of shape {t.shape}: expected "
      "an even size and [B]"
    )
  half = size // 2
  frequencies = _STEPS * float(_PERIOD) ** (-np.arange(half) / half)
  frequencies = jnp.asarray(frequencies, jnp.float32)
  angles = t.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeCondition(nn.Module, kw_only=True):
  """What the blocks of a denoiser are told: the time, and perhaps a class.

  Shapes: t `[B]`, condition int `[B]` or None -> `[B, features]`.

  Taps:
    fc1, fc2: of the time, `[B, features]`, fc1 before its activation.
    classes: of the condition, `[B, features]`; not without classes.

  Attributes:
    features: size of the output, even.
    num_classes: number of classes, or None. The condition `num_classes` is
      none of them, and so is no condition.
    dtype: computation type; None: float32.
  """

  features: int
  num_classes: int | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, t: Array, condition: Array | None = None) -> Array:
    """Returns the embedding of the pairs `(t, condition)`."""
    fc1, fc2 = (
      layers.Linear(self.features, dtype=self.dtype, name=name)
      for name in ("fc1", "fc2")
    )
    x = fc2(nn.silu(fc1(time_embedding(t, self.features))))
    if self.num_classes is None:
      return x
    if condition is None:
      condition = jnp.full(t.shape, self.num_classes)
    classes = nn.Embed(
      self.num_classes + 1, self.features, dtype=self.dtype, name="classes"
    )
    return x + classes(condition)


class ResidualLinear(nn.Module, kw_only=True):
  """Two linear layers with the condition between, added to their input.

  Shapes: `[B, D]`, condition `[B, E]` -> `[B, D]`.

  Taps: norm, fc1, time (the condition's part), fc2, all `[B, D]`.

  Attributes:
    dtype: computation type; None: float32.
  """

  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, condition: Array) -> Array:
    """Returns the sum of `inputs` and what the layers make of it."""
    fc1, time, fc2 = (
      layers.Linear(inputs.shape[-1], dtype=self.dtype, name=name)
      for name in ("fc1", "time", "fc2")
    )
    x = _layer_norm(self.dtype)(inputs)
    x = fc1(nn.silu(x)) + time(nn.silu(condition))
    return inputs + fc2(nn.silu(x))


class DenoisingMLP(nn.Module, kw_only=True):
  """A residual perceptron that predicts examples from noisy ones.

  Shapes: x `[B, ...]`, t `[B]`, perhaps condition int `[B]` -> the shape of x.
  The inputs of a network are `("x", "t")` or `("x", "t", "condition")`, or
  whatever the batch calls them.

  Taps:
    embedding: `[B, features]`; inside: the taps of `TimeCondition`.
    stem: `[B, features]`.
    block1, block2, ...: `[B, features]`; inside: those of `ResidualLinear`.
    norm: `[B, features]`.
    out: `[B, D]`, D the numbers of an example.

  Attributes:
    features: width, even.
    blocks: number of residual blocks.
    num_classes: see `TimeCondition`.
    dtype: computation type; None: float32.
  """

  features: int = 256
  blocks: int = 3
  num_classes: int | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: Array, t: Array, condition: Array | None = None
  ) -> Array:
    """Returns the predicted examples."""
    embedding = _embedded(self, self.features, x, t, condition)
    flat = x.reshape(x.shape[0], -1)
    h = layers.Linear(self.features, dtype=self.dtype, name="stem")(flat)
    for i in range(1, self.blocks + 1):
      h = ResidualLinear(dtype=self.dtype, name=f"block{i}")(h, embedding)
    h = nn.silu(_layer_norm(self.dtype)(h))
    out = layers.Linear(flat.shape[-1], dtype=self.dtype, name="out")(h)
    return out.reshape(x.shape)


class ResidualConv(nn.Module, kw_only=True):
  """Two convolutions with the condition between, added to their input.

  Shapes: `[B, H, W, I]`, condition `[B, E]` -> `[B, H, W, width]`.

  Taps:
    norm1: `[B, H, W, I]`.
    conv1, norm2, conv2: `[B, H, W, width]`.
    time: the condition's part, `[B, width]`.
    shortcut: `[B, H, W, width]`, of the input; not where I is the width.

  Attributes:
    width: channels of the output.
    groups: number of groups of channels in a norm, at most.
    dtype: computation type; None: float32.
  """

  width: int
  groups: int = 8
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, condition: Array) -> Array:
    """Returns the sum of `inputs` and what the layers make of it."""
    conv1, conv2 = (_conv(self, self.width, f"conv{i}") for i in (1, 2))
    time = layers.Linear(self.width, dtype=self.dtype, name="time")
    x = _group_norm(self, inputs, "norm1")(inputs)
    x = conv1(nn.silu(x)) + time(nn.silu(condition))[:, None, None]
    x = conv2(nn.silu(_group_norm(self, x, "norm2")(x)))
    if inputs.shape[-1] == self.width:
      return inputs + x
    shortcut = layers.Conv(self.width, 1, dtype=self.dtype, name="shortcut")
    return shortcut(inputs) + x


class DenoisingUNet(nn.Module, kw_only=True):
  """A small U-Net that predicts images from noisy ones.

  Every level has one block on the way down and one on the way up, which reads
  the first one's map as well. Maps are halved, rounding up, between levels, so
  that any size of image will do.

  Shapes: x `[B, H, W, C]`, t `[B]`, perhaps condition int `[B]` ->
  `[B, H, W, C]`. The inputs of a network are `("x", "t")` or
  `("x", "t", "condition")`, or whatever the batch calls them.

  Taps, with H' and W' of the level:
    embedding: `[B, 4 widths[0]]`; inside: the taps of `TimeCondition`.
    stem: `[B, H, W, widths[0]]`.
    down1, down2, ...: `[B, H', W', widths[0]]`, ...; inside: those of
      `ResidualConv`.
    shrink1, shrink2, ...: halved maps, between levels.
    middle: the deepest level's map; inside: those of `ResidualConv`.
    up1, up2, ...: as down1, down2, ..., run from the deepest to up1.
    grow1, grow2, ...: enlarged maps, between levels, in the widths of what
      they lead to.
    norm: `[B, H, W, widths[0]]`.
    out: `[B, H, W, C]`.

  Attributes:
    widths: channels of the levels.
    groups: number of groups of channels in a norm, at most.
    num_classes: see `TimeCondition`.
    dtype: computation type; None: float32.
  """

  widths: tuple[int, ...] = (32, 64)
  groups: int = 8
  num_classes: int | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, x: Array, t: Array, condition: Array | None = None
  ) -> Array:
    """Returns the predicted images."""
    if x.ndim != 4:
      raise errors.ConfigError(
        f"DenoisingUNet: x of shape {x.shape}: expected [B, H, W, C]"
      )
    embedding = _embedded(self, 4 * self.widths[0], x, t, condition)
    h = _conv(self, self.widths[0], "stem")(x)
    skips = []
    for level, width in enumerate(self.widths, start=1):
      if level > 1:
        h = _conv(self, width, f"shrink{level - 1}", strides=2)(h)
      h = self._block(width, f"down{level}")(h, embedding)
      skips.append(h)
    h = self._block(self.widths[-1], "middle")(h, embedding)
    for level in range(len(self.widths), 0, -1):
      width, skip = self.widths[level - 1], skips[level - 1]
      if level < len(self.widths):
        h = resizing.nearest(h, skip.shape[1:-1])
        h = _conv(self, width, f"grow{level}")(h)
      h = jnp.concatenate([h, skip], axis=-1)
      h = self._block(width, f"up{level}")(h, embedding)
    h = nn.silu(_group_norm(self, h, "norm")(h))
    return _conv(self, x.shape[-1], "out")(h)

  def _block(self, width: int, name: str) -> ResidualConv:
    return ResidualConv(
      width=width, groups=self.groups, dtype=self.dtype, name=name
    )


def _embedded(
  net: DenoisingMLP | DenoisingUNet,
  features: int,
  x: Array,
  t: Array,
  condition: Array | None,
) -> Array:
  """The embedding of time and class, `[B, features]`, for checked inputs."""
  name = type(net).__name__
  given = (t,) if condition is None else (t, condition)
  if any(array.shape != x.shape[:1] for array in given):
    shapes = ", ".join(str(array.shape) for array in given)
    raise errors.ConfigError(
      f"{name}: time, and class if there is one, of shape {shapes} for x of "
      f"shape {x.shape}: expected one number per example, {x.shape[:1]}"
    )
  if condition is not None and net.num_classes is None:
    raise errors.ConfigError(
      f"{name}: a condition, but num_classes=None: expected num_classes to be "
      "set, or the inputs x and t alone"
    )
  return TimeCondition(
    features=features,
    num_classes=net.num_classes,
    dtype=net.dtype,
    name="embedding",
  )(t, condition)


def _layer_norm(dtype: DTypeLike | None) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=1e-5, use_fast_variance=False, dtype=dtype, name="norm"
  )


def _group_norm(
  net: ResidualConv | DenoisingUNet, x: Array, name: str
) -> nn.GroupNorm:
  """As many groups as divide the channels."""
  return nn.GroupNorm(
    num_groups=math.gcd(net.groups, x.shape[-1]),
    epsilon=1e-5,
    use_fast_variance=False,
    dtype=net.dtype,
    name=name,
  )


def _conv(
  net: ResidualConv | DenoisingUNet, width: int, name: str, strides: int = 1
) -> layers.Conv:
  """A convolution of 3 that keeps, or halves, the size of a map."""
  return layers.Conv(
    width, 3, strides=strides, padding=1, dtype=net.dtype, name=name
  )
