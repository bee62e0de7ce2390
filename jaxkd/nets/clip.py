"""CLIP's two towers: images and texts in one space.

`TwoTowers` joins them: it brings both outputs to length 1, scales their cosines
and learns the scale.

Reference: Radford et al., https://arxiv.org/abs/2103.00020.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.nets import blocks, encoder, vit

Array = jax.Array


class CLIPStem(nn.Module, kw_only=True):
  """Patches without bias, a class token before them, learned positions.

  Shapes: image `[B, H, H, C]` -> `[B, 1 + (H / patch)^2, width]`.

  Taps: patches, `[B, H / patch, H / patch, width]`.

  Attributes:
    width: size of a token.
    patch: side of a patch.
    image_size: side of the image, H.
    channels: of the image, C.
    dtype: computation type; None: float32.
  """

  width: int
  patch: int
  image_size: int
  channels: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Returns the tokens of `image`."""
    x = vit.patches(
      image,
      width=self.width,
      patch=self.patch,
      image_size=self.image_size,
      channels=self.channels,
      bias=False,
      dtype=self.dtype,
    )
    shape = (self.width,)
    token = self.param("class_token", encoder.WEIGHTS, shape, jnp.float32)
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
    x = jnp.concatenate([token, x], axis=1)
    shape = x.shape[1:]
    position = self.param("positions", encoder.WEIGHTS, shape, jnp.float32)
    return x + position.astype(x.dtype)[None]


class CLIPImageTower(nn.Module, kw_only=True):
  """A transformer of patches; the class token's vector is projected.

  Shapes: image `[B, image_size, image_size, channels]` -> `[B, features]`,
  not normalised to length 1.

  Taps, `[B, 1 + P, width]` but for those of the end:
    stem: inside: `patches`, `[B, side, side, width]`.
    stem_norm.
    block1, block2, ...: see `VisionTransformer`.
    norm: of the class token alone, `[B, width]`.
    projection: `[B, features]`.

  Attributes:
    features: size of the common space.
    image_size: side of the image.
    patch: side of a patch.
    channels: of the image, C.
    width: size of a token.
    depth: number of blocks.
    heads: attention heads; divide the width.
    hidden: size of the perceptrons' hidden layers.
    activation: of the perceptrons.
    epsilon: of the norms.
    attention_dropout: probability that an attention weight is dropped.
    remat: whether a block's inside is computed again for the gradient.
    scan_layers: whether the blocks are one loop over stacked parameters.
    dtype: computation type; None: float32.
  """

  features: int = 512
  image_size: int = 224
  patch: int = 32
  channels: int = 3
  width: int = 768
  depth: int = 12
  heads: int = 12
  hidden: int = 3072
  activation: str = "quick_gelu"
  epsilon: float = 1e-5
  attention_dropout: float = 0.0
  remat: bool = False
  scan_layers: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    """Returns the place of `image` in the common space."""
    x = CLIPStem(
      width=self.width,
      patch=self.patch,
      image_size=self.image_size,
      channels=self.channels,
      dtype=self.dtype,
      name="stem",
    )(image)
    x = blocks.layer_norm("stem_norm", self.dtype, self.epsilon)(x)
    x = _run(self, x, causal=False, train=train)
    x = blocks.layer_norm("norm", self.dtype, self.epsilon)(x[:, 0])
    return encoder.dense(self.features, "projection", self.dtype, bias=False)(x)


class CLIPTextTower(nn.Module, kw_only=True):
  """A causal transformer of tokens; the end token's vector is projected.

  A position sees those before it alone, so that padding behind the end token
  needs no mask.

  Shapes: tokens, integers `[..., L]`, L <= length -> `[..., features]`, not
  normalised to length 1.

  Taps, `[N, L, width]` but for those of the end, N the product of the leading
    axes:
    words; positions, `[1, L, width]`.
    block1, block2, ...: see `VisionTransformer`.
    norm.
    projection: `[N, features]`.

  Attributes:
    features: size of the common space.
    vocabulary_size: number of tokens.
    length: number of positions that have an embedding.
    end_token: whose first place is read; None for the highest token of a row,
      as in OpenAI's models.
    width: size of a token.
    depth: number of blocks.
    heads: attention heads; divide the width.
    hidden: size of the perceptrons' hidden layers.
    activation: of the perceptrons.
    epsilon: of the norms.
    attention_dropout: probability that an attention weight is dropped.
    remat: whether a block's inside is computed again for the gradient.
    scan_layers: whether the blocks are one loop over stacked parameters.
    dtype: computation type; None: float32.
  """

  features: int = 512
  vocabulary_size: int = 49408
  length: int = 77
  end_token: int | None = None
  width: int = 512
  depth: int = 12
  heads: int = 8
  hidden: int = 2048
  activation: str = "quick_gelu"
  epsilon: float = 1e-5
  attention_dropout: float = 0.0
  remat: bool = False
  scan_layers: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, tokens: Array, *, train: bool = False) -> Array:
    """Returns the places of `tokens` in the common space."""
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or (
      tokens.shape[-1] > self.length
    ):
      raise ConfigError(
        f"CLIPTextTower: tokens are {tokens.dtype} {tokens.shape}; expected "
        f"integers [..., L] with L at most {self.length}"
      )
    rows = tokens.reshape(-1, tokens.shape[-1])
    make = functools.partial(
      encoder.embed, features=self.width, dtype=self.dtype
    )
    places = jnp.arange(rows.shape[1])[None]
    x = make(self.vocabulary_size, name="words")(rows)
    x = x + make(self.length, name="positions")(places)
    x = _run(self, x, causal=True, train=train)
    x = blocks.layer_norm("norm", self.dtype, self.epsilon)(x)
    if self.end_token is not None:
      rows = rows == self.end_token
    ends = jnp.argmax(rows, axis=-1)
    x = jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
    x = encoder.dense(self.features, "projection", self.dtype, bias=False)(x)
    return x.reshape(*tokens.shape[:-1], self.features)


def _run(
  tower: CLIPImageTower | CLIPTextTower,
  inputs: Array,
  *,
  causal: bool,
  train: bool,
) -> Array:
  """Runs the blocks of a tower."""
  block = functools.partial(
    encoder.EncoderBlock,
    heads=tower.heads,
    hidden=tower.hidden,
    norm_first=True,
    activation=tower.activation,
    causal=causal,
    epsilon=tower.epsilon,
    attention_dropout=tower.attention_dropout,
    dtype=tower.dtype,
  )
  return encoder.run_blocks(
    block,
    inputs,
    depth=tower.depth,
    train=train,
    remat=tower.remat,
    scan_layers=tower.scan_layers,
  )
