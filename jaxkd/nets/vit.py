"""Vision transformers: ViT, and DeiT with its token that is taught."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.nets import (
  blocks,
  encoder,
  initializers,
  layers,
  readout,
  stochastic_depth,
)

Array = jax.Array
Head = Literal["none", "classes", "distilled"]


def patches(
  image: Array,
  *,
  width: int,
  patch: int,
  image_size: int,
  channels: int,
  bias: bool,
  dtype: DTypeLike | None,
) -> Array:
  """Maps the patches of an image, by a layer `patches` in a compact method.

  Args:
    image: [B, image_size, image_size, channels].
    width: size of a patch's vector.
    patch: side of a patch.
    image_size: side of the image.
    channels: of the image, C.
    bias: whether a bias is added.
    dtype: computation type; None: float32.

  Returns:
    [B, (image_size / patch)^2, width], row by row.

  Raises:
    ConfigError: for another shape.
  """
  expected = (image_size, image_size, channels)
  if image.shape[1:] != expected:
    raise ConfigError(
      f"image of shape {image.shape}: expected [B, "
      f"{', '.join(map(str, expected))}]; other sizes have no positions"
    )
  conv = layers.Conv(
    width,
    patch,
    strides=patch,
    use_bias=bias,
    kernel_init=encoder.WEIGHTS,
    bias_init=initializers.zero_bias,
    dtype=dtype,
    name="patches",
  )
  return conv(image).reshape(image.shape[0], -1, width)


class ImageTokens(nn.Module, kw_only=True):
  """Patches as tokens, learned tokens before them, learned positions.

  Shapes: image `[B, H, H, C]` -> `[B, T + (H / patch)^2, width]`, with T 1, or
  2 with the token that is taught.

  Taps: patches, `[B, H / patch, H / patch, width]`.

  Attributes:
    width: size of a token.
    patch: side of a patch.
    image_size: side of the image, H.
    channels: of the image, C.
    taught: whether a second token follows the class token.
    dtype: computation type; None: float32.
  """

  width: int
  patch: int
  image_size: int
  channels: int
  taught: bool
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Returns the tokens of `image`."""
    x = patches(
      image,
      width=self.width,
      patch=self.patch,
      image_size=self.image_size,
      channels=self.channels,
      bias=True,
      dtype=self.dtype,
    )
    names = ("class_token", "taught_token")[: 1 + self.taught]
    tokens = [
      self.param(name, encoder.WEIGHTS, (1, 1, self.width), jnp.float32)
      for name in names
    ]
    shape = (x.shape[0], 1, self.width)
    first = [jnp.broadcast_to(token.astype(x.dtype), shape) for token in tokens]
    x = jnp.concatenate([*first, x], axis=1)
    shape = (1, *x.shape[1:])
    position = self.param("positions", encoder.WEIGHTS, shape, jnp.float32)
    return x + position.astype(x.dtype)


class VisionTransformer(nn.Module, kw_only=True):
  """A transformer encoder of images, normalised before every part.

  Shapes: image `[B, image_size, image_size, channels]` -> by `head`:
    none: the tokens' vectors `[B, T + P, width]`, P patches behind T = 1 or 2
      learned tokens, or with `pooling` the image's vector `[B, width]`.
    classes: logits `[B, num_classes]` of the image's vector.
    distilled: a dict, all `[B, num_classes]`: `class_logits` of the class
      token, `taught_logits` of the token that a teacher teaches, and their
      mean `logits`, which is what is used.

  Taps, `[B, T + P, width]` but for those of the end:
    stem: inside: `patches`, `[B, side, side, width]`.
    stem_dropout.
    block1, block2, ...: inside: `attention_norm`, `attention`,
      `attention_dropout`, `mlp_norm`, `mlp`, `mlp_dropout`; inside attention:
      `query`, `key`, `value`, `weights` (`[B, heads, T + P, T + P]`),
      `dropout`, `out`; inside mlp: `fc1`, `fc2`. With `scan_layers` there is
      `blocks` instead, whose taps have one more leading axis, the depth.
    norm: of the last block's output.
    pooler: with a pooler, `[B, width]`; inside: `fc`.
    pooled: with a pooling by `first` or `mean`, `[B, width]`.
    head: the logits; class_head and taught_head instead if distilled.

  Attributes:
    image_size: side of the image.
    patch: side of a patch.
    channels: of the image, C.
    width: size of a token.
    depth: number of blocks.
    heads: attention heads; divide the width.
    hidden: size of the perceptrons' hidden layers.
    taught: whether there is a second learned token, as in DeiT.
    activation: of the perceptrons; `gelu` is the exact one.
    bias: whether query, key and value have one.
    epsilon: of the norms.
    pooling: the image's vector: `first`, that of the class token; `mean`, over
      all tokens; `pooler`, the pooler's. `classes` needs one.
    pooler: whether there is a pooler though `pooling` does not need it.
    head: what is returned; `distilled` needs the second token.
    num_classes: of the heads.
    dropout: probability that an entry is dropped, of the stem and of what every
      part of a block adds.
    attention_dropout: probability that an attention weight is dropped.
    stochastic_depth: probability that a part of the last block adds nothing to
      an example; it grows linearly from 0 at the first block. 0.1 for DeiT.
    remat: whether a block's inside is computed again for the gradient.
    scan_layers: whether the blocks are one loop over stacked parameters.
    dtype: computation type; None: float32.

  References: Dosovitskiy et al., https://arxiv.org/abs/2010.11929; Touvron et
    al. (DeiT), https://arxiv.org/abs/2012.12877.
  """

  image_size: int = 224
  patch: int = 16
  channels: int = 3
  width: int = 192
  depth: int = 12
  heads: int = 3
  hidden: int = 768
  taught: bool = False
  activation: str = "gelu"
  bias: bool = True
  epsilon: float = 1e-12
  pooling: readout.Pool = "first"
  pooler: bool = False
  head: Head = "classes"
  num_classes: int = 10
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.0
  remat: bool = False
  scan_layers: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, image: Array, *, train: bool = False
  ) -> Array | dict[str, Array]:
    """Returns what `head` makes of `image`."""
    self._check()
    x = self._encoded(image, train=train)
    x = blocks.layer_norm("norm", self.dtype, self.epsilon)(x)
    if self.head == "distilled":
      own, taught = (
        encoder.dense(self.num_classes, name, self.dtype)(x[:, i])
        for i, name in enumerate(("class_head", "taught_head"))
      )
      mean = (own + taught) / 2
      return {"logits": mean, "class_logits": own, "taught_logits": taught}
    vector = readout.pool(
      x, how=self.pooling, pooler=self.pooler, dtype=self.dtype
    )
    if self.head == "none":
      return x if vector is None else vector
    return encoder.dense(self.num_classes, "head", self.dtype)(vector)

  def _encoded(self, image: Array, *, train: bool) -> Array:
    """Returns the last block's output."""
    stem = ImageTokens(
      width=self.width,
      patch=self.patch,
      image_size=self.image_size,
      channels=self.channels,
      taught=self.taught,
      dtype=self.dtype,
      name="stem",
    )
    dropout = nn.Dropout(self.dropout, name="stem_dropout")
    block = functools.partial(
      encoder.EncoderBlock,
      heads=self.heads,
      hidden=self.hidden,
      norm_first=True,
      activation=self.activation,
      bias=self.bias,
      epsilon=self.epsilon,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      dtype=self.dtype,
    )
    return encoder.run_blocks(
      block,
      dropout(stem(image), deterministic=not train),
      depth=self.depth,
      train=train,
      remat=self.remat,
      scan_layers=self.scan_layers,
      most_dropped=self.stochastic_depth,
    )

  def _check(self) -> None:
    """Raises where fields contradict each other."""
    owner = type(self).__name__
    encoder.check_choice(f"{owner}.head", self.head, Head)
    encoder.check_choice(f"{owner}.pooling", self.pooling, readout.Pool)
    stochastic_depth.check(owner, self.stochastic_depth)
    if self.image_size % self.patch:
      raise ConfigError(
        f"{owner}: patch={self.patch} does not divide "
        f"image_size={self.image_size}"
      )
    if self.head == "classes" and self.pooling == "none":
      raise ConfigError(
        f"{owner}: head='classes' with pooling='none'; expected a pooling"
      )
    if self.head == "distilled" and not self.taught:
      raise ConfigError(
        f"{owner}: head='distilled' with taught=False; expected the second "
        "token"
      )
