"""Texts as the mean of their tokens' vectors: an encoder without context."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.nets import encoder, readout

Array = jax.Array


class StaticEmbedding(nn.Module, kw_only=True):
  """The mean of a text's token vectors, one vector a token in any context.

  Reading a text is a look-up and a sum: its cost does not depend on the size of
  the table, and no matrix is multiplied but the head's.

  Shapes: tokens, integers `[B, L]`; token_mask `[B, L]`, 0 where there is no
  token (None: all are there) -> by `head`: none: the text's vector
  `[B, width]`; classes: logits `[B, num_classes]` of it.

  Taps:
    words: `[B, L, width]`.
    pooled: `[B, width]`.
    head_dropout, head: with classes, `[B, width]` and the logits.

  Attributes:
    vocabulary_size: number of tokens.
    width: size of a token's vector.
    normalised: whether the text's vector is brought to length 1.
    head: what is returned.
    num_classes: of head `classes`.
    dropout: probability that an entry of the vector that is classified is
      dropped.
    dtype: computation type; None: float32.

  References: Shen et al., https://arxiv.org/abs/1805.09843 (the mean of word
    vectors beside models with context); Tulkens and van Dongen (Model2Vec),
    https://doi.org/10.5281/zenodo.17270888 (distilled from one).
  """

  vocabulary_size: int
  width: int = 256
  normalised: bool = False
  head: Literal["none", "classes"] = "none"
  num_classes: int = 2
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    token_mask: Array | None = None,
    *,
    train: bool = False,
  ) -> Array:
    """Returns what `head` makes of `tokens`."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise ConfigError(
        f"StaticEmbedding: tokens are {tokens.dtype} {tokens.shape}; expected "
        "integers [B, L]"
      )
    if self.head not in ("none", "classes"):
      raise ConfigError(
        f"StaticEmbedding.head={self.head!r}: expected none or classes"
      )
    words = encoder.embed(self.vocabulary_size, self.width, "words", self.dtype)
    vector = readout.Pooling(
      how="mean", normalised=self.normalised, name="pooled"
    )(words(tokens), token_mask)
    if self.head == "none":
      return vector
    vector = nn.Dropout(self.dropout, name="head_dropout")(
      vector, deterministic=not train
    )
    return encoder.dense(self.num_classes, "head", self.dtype)(vector)
