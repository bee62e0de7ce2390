"""A recurrent network that predicts the next token.

A position's logits depend on it and on those before it, so that padding at the
end needs no mask.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import initializers, layers, vocabulary

Array = jax.Array


class GRU(nn.Module, kw_only=True):
  """Gated recurrent unit over the positions, from a state of zeros.

    r = sigmoid(x W_r + h U_r), z = sigmoid(x W_z + h U_z),
    n = tanh(x W_n + r * (h U_n)), h <- (1 - z) * n + z * h

  with a bias beside every matrix. The state is in float32 at least.

  Shapes: `[B, L, I]` -> the states `[B, L, features]`.

  Taps: input, `[B, L, 3 features]`, the x W of r, z and n.

  Attributes:
    features: size of the state.
    dtype: computation type of the products; None: float32.

  Reference: Cho et al., https://arxiv.org/abs/1406.1078, Eq. 5-8, with the
    reset gate behind the matrix.
  """

  features: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the state at every position of `inputs`."""
    size = self.features
    uniform = initializers.symmetric_uniform(1 / math.sqrt(size))
    read = layers.Linear(
      3 * size,
      kernel_init=uniform,
      bias_init=lambda _: uniform,
      dtype=self.dtype,
      name="input",
    )(inputs)
    kernel = self.param("kernel", uniform, (size, 3 * size), jnp.float32)
    bias = self.param("bias", uniform, (3 * size,), jnp.float32)
    kernel, bias = kernel.astype(read.dtype), bias.astype(read.dtype)[None]

    def step(state, given):
      kept = state.astype(kernel.dtype) @ kernel + bias
      reset, keep, new = jnp.split(given.astype(state.dtype), 3, -1)
      reset_kept, keep_kept, new_kept = jnp.split(
        kept.astype(state.dtype), 3, -1
      )
      keep = nn.sigmoid(keep + keep_kept)
      new = jnp.tanh(new + nn.sigmoid(reset + reset_kept) * new_kept)
      state = (1 - keep) * new + keep * state
      return state, state

    precise = jnp.promote_types(read.dtype, jnp.float32)
    start = jnp.zeros((inputs.shape[0], size), precise)
    _, states = jax.lax.scan(step, start, jnp.moveaxis(read, 1, 0))
    return jnp.moveaxis(states, 0, 1).astype(read.dtype)


class GRUDecoder(nn.Module, kw_only=True):
  """A recurrent network that predicts the next token.

  Shapes: tokens, integers `[B, L]` -> logits `[B, L, vocabulary_size]`.

  Taps, `[B, L, width]` but for the last:
    embedding: of the tokens; dropout: what of it is not dropped.
    gru1, dropout1, gru2, dropout2, ...: inside a gru: `input`.
    head: the logits.

  Attributes:
    vocabulary_size: number of tokens.
    width: size of the embedding and of the states.
    depth: number of recurrent layers.
    tied: whether the head's weights are the embedding's.
    dropout: probability that an entry is dropped between layers.
    dtype: computation type; None: float32.
  """

  vocabulary_size: int
  width: int = 128
  depth: int = 1
  tied: bool = False
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, tokens: Array, *, train: bool = False) -> Array:
    """Returns the logits of what follows every one of `tokens`."""
    spread = 1 / math.sqrt(self.width) if self.tied else 1.0
    embedding = vocabulary.embedding(self, tokens, spread)
    x = nn.Dropout(self.dropout, name="dropout")(
      embedding(tokens), deterministic=not train
    )
    for number in range(1, self.depth + 1):
      gru = GRU(features=self.width, dtype=self.dtype, name=f"gru{number}")
      dropout = nn.Dropout(self.dropout, name=f"dropout{number}")
      x = dropout(gru(x), deterministic=not train)
    kernel_init = initializers.fan_in_uniform()
    return vocabulary.logits(self, x, embedding, kernel_init)
