"""From tokens to vectors and back: the two ends of a decoder."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.losses.softmax import soft_cap
from jaxkd.nets import initializers, layers

Array = jax.Array


class Decoder(Protocol):
  """What the two ends need to know of a net."""

  vocabulary_size: int
  width: int
  tied: bool
  dtype: DTypeLike | None


class Head(nn.Module, kw_only=True):
  """Logits of a vocabulary: `x W`, or `x E^T` of a table of embeddings.

  Shapes: `[B, L, D]`, table `[V, D]` or None -> logits `[B, L, V]`.

  Attributes:
    vocabulary_size: V.
    kernel_init: initialiser of W.
    cap: soft-cap of the logits, cap tanh(logit / cap).
    dtype: computation type; None: float32.
  """

  vocabulary_size: int
  kernel_init: initializers.Initializer
  cap: float | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, table: Array | None = None) -> Array:
    """Returns the logits of `inputs`."""
    if table is None:
      shape = (inputs.shape[-1], self.vocabulary_size)
      kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    else:
      kernel = table.T
    inputs, kernel = dtypes.promote_dtype(inputs, kernel, dtype=self.dtype)
    return soft_cap(layers.rows_dot(inputs, kernel), self.cap)


def embedding(net: Decoder, tokens: Array, stddev: float) -> nn.Embed:
  """Returns the net's layer `embedding`, or raises if it cannot read."""
  if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ConfigError(
      f"{type(net).__name__}: tokens are {tokens.dtype} {tokens.shape}; "
      "expected integers [B, L]"
    )
  return nn.Embed(
    net.vocabulary_size,
    net.width,
    embedding_init=jax.nn.initializers.normal(stddev),
    dtype=net.dtype,
    name="embedding",
  )


def logits(
  net: Decoder,
  inputs: Array,
  table: nn.Embed,
  kernel_init: initializers.Initializer,
  cap: float | None = None,
) -> Array:
  """Returns the output of the net's layer `head`."""
  head = Head(
    vocabulary_size=net.vocabulary_size,
    kernel_init=kernel_init,
    cap=cap,
    dtype=net.dtype,
    name="head",
  )
  return head(inputs, table.embedding if net.tied else None)
