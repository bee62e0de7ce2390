"""Two networks that bring images and texts into one space, and what uses it.

Reference: Radford et al. (CLIP), https://arxiv.org/abs/2103.00020, in small;
Zhang et al. (RepBlend), https://arxiv.org/abs/2505.14705 (the projection head).
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.losses import prototypes, rows
from jaxkd.losses.softmax import at_least_float32
from jaxkd.nets import layers, stages

Array = jax.Array

LARGEST_SCALE = 100.0  # of the scores, as in CLIP


class ProjectionHead(nn.Module, kw_only=True):
  """A residual layer into the common space, on a frozen encoder's embedding.

  `LayerNorm(dropout(fc(gelu(z))) + z)` with `z = projection(x)`; the GELU is
  the exact one.

  Shapes: `[..., I]` -> `[..., features]`, not normalised to length 1.

  Taps:
    projection, fc, dropout, norm: `[..., features]`.

  Attributes:
    features: size of the space.
    dropout: rate (needs the random stream `dropout` in training).
    dtype: computation type; None: float32.
  """

  features: int
  dropout: float = 0.1
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool = False) -> Array:
    """Returns the place of `inputs` in the common space."""
    linear = lambda name: layers.Linear(
      self.features, dtype=self.dtype, name=name
    )
    z = linear("projection")(inputs)
    x = linear("fc")(jax.nn.gelu(z, approximate=False))
    x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
    norm = nn.LayerNorm(
      epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm"
    )
    return norm(x + z)


class ImageTower(nn.Module, kw_only=True):
  """Stages of convolutions, a mean over places and a linear map.

  Shapes: image `[B, H, W, C]` -> `[B, features]`.

  Taps:
    stage1, stage2, ...: the stages' maps; inside: `conv`, `norm`.
    pooled: `[B, widths[-1]]`.
    projection: `[B, features]`.

  Attributes:
    features: size of the common space.
    widths: channels of the stages, each of which halves the map.
    dtype: computation type; None: float32.
  """

  features: int = 64
  widths: tuple[int, ...] = (32, 64, 128)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Array:
    """Returns the place of `image` in the common space."""
    x = image
    for number, width in enumerate(self.widths, start=1):
      stage = stages.Stage(width, dtype=self.dtype, name=f"stage{number}")
      x = stage(x, train=train)
    x = stages.Pool(name="pooled")(x)
    return layers.Linear(self.features, dtype=self.dtype, name="projection")(x)


class TextTower(nn.Module, kw_only=True):
  """The mean of the words' vectors, a hidden layer and a linear map.

  Shapes: token ids `[..., L]` -> `[..., features]`. Id 0 is padding, which
  does not count; a text of padding alone is a vector of zeros before `fc`.

  Taps:
    words: `[..., L, width]`.
    fc: `[..., width]`, before its activation.
    projection: `[..., features]`.

  Attributes:
    features: size of the common space.
    width: size of the words' vectors and of the hidden layer.
    vocabulary: number of ids, padding included.
    dtype: computation type; None: float32.
  """

  features: int = 64
  width: int = 128
  vocabulary: int = 4096
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, text: Array, *, train: bool = False) -> Array:
    """Returns the place of `text` in the common space."""
    del train
    words = nn.Embed(
      self.vocabulary, self.width, dtype=self.dtype, name="words"
    )(text)
    counts = (text > 0)[..., None].astype(words.dtype)
    number = jnp.maximum(jnp.sum(counts, axis=-2), 1)
    x = jnp.sum(counts * words, axis=-2) / number
    x = layers.Linear(self.width, dtype=self.dtype, name="fc")(x)
    x = jax.nn.gelu(x, approximate=False)
    return layers.Linear(self.features, dtype=self.dtype, name="projection")(x)


class TwoTowers(nn.Module, kw_only=True):
  """An image tower and a text tower that are trained on pairs.

  Shapes: image `[N, ...]`, text `[M, ...]` -> a dict of `image`
  `[N, features]` and `text` `[M, features]`, rows of length 1, and `logits`
  `[N, M]`, `scale` times their cosines. A text tower that takes several
  captions an image gives `text` `[N, K, features]` and `logits` `[N, N K]`,
  the captions of the first image first.

  Taps:
    image, text: the towers' outputs; inside: the taps of the towers.

  Attributes:
    image: the tower of images, called with `train`.
    text: the tower of texts, called with `train`.
    scale: of the cosines, the inverse temperature, at the start.
    learned_scale: whether the scale is learned; it stays at most 100.
  """

  image: nn.Module
  text: nn.Module
  scale: float = 1 / 0.07
  learned_scale: bool = True

  def __post_init__(self):
    """One module given for both towers makes two, with weights of their own."""
    if self.text is self.image:
      object.__setattr__(self, "text", self.image.clone())
    super().__post_init__()

  def setup(self) -> None:
    """Makes the learned scale, as a logarithm."""
    if self.learned_scale:
      start = jax.nn.initializers.constant(math.log(self.scale))
      self.log_scale = self.param("log_scale", start, (), jnp.float32)

  def __call__(
    self, image: Array, text: Array, *, train: bool = False
  ) -> dict[str, Array]:
    """Returns both embeddings and the scores of all pairs."""
    u = self.encode_image(image, train=train)
    v = self.encode_text(text, train=train)
    scores = self._current_scale() * u @ v.reshape(-1, v.shape[-1]).T
    return {"image": u, "text": v, "logits": scores}

  def encode_image(self, image: Array, *, train: bool = False) -> Array:
    """Returns the embeddings of images, rows of length 1."""
    return rows.unit(at_least_float32(self.image(image, train=train)))

  def encode_text(self, text: Array, *, train: bool = False) -> Array:
    """Returns the embeddings of texts, rows of length 1."""
    return rows.unit(at_least_float32(self.text(text, train=train)))

  def classify(
    self, image: Array, class_text: Array, *, train: bool = False
  ) -> Array:
    """Returns logits `[N, C]` of classes that are described by texts.

    Args:
      image: `[N, ...]`.
      class_text: `[C, K, ...]`, K texts of every class; their embeddings are
        averaged.
      train: whether the image tower behaves as in training.
    """
    u = self.encode_image(image, train=train)
    names = jnp.mean(self.encode_text(class_text, train=train), axis=1)
    scale = self._current_scale()
    return prototypes.prototype_logits(u, names, scale=scale)

  def _current_scale(self) -> Array | float:
    if not self.learned_scale:
      return self.scale
    return jnp.minimum(jnp.exp(self.log_scale), LARGEST_SCALE)


class PrototypeClassifier(nn.Module, kw_only=True):
  """A classifier by the cosines of an encoder's output with prototypes.

  With the image tower of `TwoTowers` as the encoder and the mean embeddings of
  the classes' texts as the prototypes it classifies as `TwoTowers.classify`,
  and needs no text.

  Shapes: input of the encoder `[B, ...]` -> logits `[B, num_classes]`.

  Taps:
    encoder: `[B, features]`; inside: the taps of the encoder.

  Attributes:
    encoder: a network called with `train`.
    num_classes: number of classes.
    scale: of the cosines.
  """

  encoder: nn.Module
  num_classes: int = 10
  scale: float = 100.0

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool = False) -> Array:
    """Returns the logits of `inputs`."""
    feature = self.encoder(inputs, train=train)
    start = jax.nn.initializers.normal(1.0)
    shape = (self.num_classes, feature.shape[-1])
    names = self.param("prototypes", start, shape, jnp.float32)
    return prototypes.prototype_logits(feature, names, scale=self.scale)
