"""BERT: an encoder of texts, and what is read off it.

The sentence encoders that are trained from it (MiniLM and its like) are the
same net with the mean of the tokens' vectors at its end.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.nets import blocks, encoder, readout

Array = jax.Array
Head = Literal["none", "classes", "masked_lm"]


class MaskedHead(nn.Module, kw_only=True):
  """Logits of the tokens in the places of others, from the table of words.

    norm(act(x W + b)) E^T + c

  Shapes: `[B, L, D]`, table `[V, D]` -> logits `[B, L, V]`.

  Taps: fc, before its activation, and norm, `[B, L, D]`.

  Attributes:
    activation: of the hidden layer.
    epsilon: of the norm.
    dtype: computation type; None: float32.
  """

  activation: str = "gelu"
  epsilon: float = 1e-12
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, table: Array) -> Array:
    """Returns the logits of `inputs`."""
    fc = encoder.dense(inputs.shape[-1], "fc", self.dtype)
    x = encoder.activation(self.activation)(fc(inputs))
    x = blocks.layer_norm("norm", self.dtype, self.epsilon)(x)
    bias = self.param(
      "word_bias", nn.initializers.zeros, (len(table),), jnp.float32
    )
    x, table, bias = dtypes.promote_dtype(x, table, bias, dtype=self.dtype)
    return x @ table.T + bias[None, None]


class BERT(nn.Module, kw_only=True):
  """A transformer encoder of texts, normalised behind every part.

  Shapes: tokens, integers `[B, L]`, L <= length; token_mask `[B, L]`, 0 where
  there is no token (None: all are there); token_types, integers `[B, L]` (None:
  zeros) -> by `head`:
    none: the tokens' vectors `[B, L, width]`, or with `pooling` the text's
      vector `[B, width]`.
    classes: logits `[B, num_classes]` of the text's vector.
    masked_lm: logits `[B, L, vocabulary_size]`.

  Taps, `[B, L, width]` but for those of the end:
    words, positions (`[1, L, width]`), types, embedding_norm,
      embedding_dropout.
    block1, block2, ...: inside: `attention`, `attention_dropout`,
      `attention_norm`, `mlp`, `mlp_dropout`, `mlp_norm`; inside attention:
      `query`, `key`, `value`, `weights` (`[B, heads, L, L]`), `dropout`, `out`;
      inside mlp: `fc1`, `fc2`. With `scan_layers` there is `blocks` instead,
      whose taps have one more leading axis, the depth.
    pooler: with a pooler, `[B, width]`; inside: `fc`.
    pooled: with a pooling by `first` or `mean`, `[B, width]`.
    head_dropout, head: with classes, `[B, width]` and the logits; with
      masked_lm only head; inside: `fc`, `norm`.

  Attributes:
    vocabulary_size: number of tokens.
    width: size of a position's vector.
    depth: number of blocks.
    heads: attention heads; divide the width.
    hidden: size of the perceptrons' hidden layers.
    length: number of positions that have an embedding.
    types: number of token types.
    activation: of the perceptrons; `gelu` is the exact one.
    epsilon: of the norms.
    pooling: the text's vector: `first`, that of the first token; `mean`, over
      the tokens that are there; `pooler`, the pooler's. `classes` needs one.
    normalised: whether a vector by `first` or `mean` is brought to length 1.
    pooler: whether there is a pooler though `pooling` does not need it, as in
      most checkpoints; it is a tap then.
    head: what is returned.
    num_classes: of head `classes`.
    dropout: probability that an entry is dropped, of the embedding, of what
      every part of a block adds, and of the vector that is classified.
    attention_dropout: probability that an attention weight is dropped.
    remat: whether a block's inside is computed again for the gradient.
    scan_layers: whether the blocks are one loop over stacked parameters.
    dtype: computation type; None: float32.

  References: Devlin et al., https://arxiv.org/abs/1810.04805; Reimers and
    Gurevych, https://arxiv.org/abs/1908.10084 (sentence vectors); Wang et al.
    (MiniLM), https://arxiv.org/abs/2002.10957.
  """

  vocabulary_size: int
  width: int = 384
  depth: int = 6
  heads: int = 12
  hidden: int = 1536
  length: int = 512
  types: int = 2
  activation: str = "gelu"
  epsilon: float = 1e-12
  pooling: readout.Pool = "none"
  normalised: bool = False
  pooler: bool = False
  head: Head = "none"
  num_classes: int = 2
  dropout: float = 0.0
  attention_dropout: float = 0.0
  remat: bool = False
  scan_layers: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    token_mask: Array | None = None,
    token_types: Array | None = None,
    *,
    train: bool = False,
  ) -> Array:
    """Returns what `head` makes of `tokens`."""
    self._check(tokens)
    words = encoder.embed(self.vocabulary_size, self.width, "words", self.dtype)
    block = functools.partial(
      encoder.EncoderBlock,
      heads=self.heads,
      hidden=self.hidden,
      norm_first=False,
      activation=self.activation,
      epsilon=self.epsilon,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
      dtype=self.dtype,
    )
    x = encoder.run_blocks(
      block,
      self._embedded(words, tokens, token_types, train=train),
      token_mask,
      depth=self.depth,
      train=train,
      remat=self.remat,
      scan_layers=self.scan_layers,
    )
    vector = readout.pool(
      x,
      token_mask,
      how=self.pooling,
      normalised=self.normalised,
      pooler=self.pooler,
      dtype=self.dtype,
    )
    if self.head == "masked_lm":
      return MaskedHead(
        activation=self.activation,
        epsilon=self.epsilon,
        dtype=self.dtype,
        name="head",
      )(x, words.embedding)
    if self.head == "none":
      return x if vector is None else vector
    vector = nn.Dropout(self.dropout, name="head_dropout")(
      vector, deterministic=not train
    )
    return encoder.dense(self.num_classes, "head", self.dtype)(vector)

  def _embedded(
    self, words: nn.Embed, tokens: Array, types: Array | None, *, train: bool
  ) -> Array:
    """Returns the vectors that the first block reads."""
    make = functools.partial(
      encoder.embed, features=self.width, dtype=self.dtype
    )
    places = jnp.arange(tokens.shape[1])[None]
    kinds = jnp.zeros_like(tokens) if types is None else types
    x = words(tokens) + make(self.length, name="positions")(places)
    x = x + make(self.types, name="types")(kinds)
    x = blocks.layer_norm("embedding_norm", self.dtype, self.epsilon)(x)
    dropout = nn.Dropout(self.dropout, name="embedding_dropout")
    return dropout(x, deterministic=not train)

  def _check(self, tokens: Array) -> None:
    """Raises where fields contradict each other, or `tokens` them."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise ConfigError(
        f"BERT: tokens are {tokens.dtype} {tokens.shape}; expected integers "
        "[B, L]"
      )
    if tokens.shape[1] > self.length:
      raise ConfigError(
        f"BERT: {tokens.shape[1]} tokens in a row; expected at most "
        f"length={self.length}"
      )
    encoder.check_choice("BERT.head", self.head, Head)
    encoder.check_choice("BERT.pooling", self.pooling, readout.Pool)
    if self.head != "none" and (self.head == "classes") == (
      self.pooling == "none"
    ):
      raise ConfigError(
        f"BERT: head={self.head!r} with pooling={self.pooling!r}; expected a "
        "pooling for 'classes', and 'none' for 'masked_lm'"
      )
