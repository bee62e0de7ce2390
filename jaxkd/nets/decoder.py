"""Small causal decoders: a transformer and a recurrent network on tokens.

Both give the logits of the next token at every position. A position sees
itself and those before it, so that padding at the end needs no mask.

The transformer is that of language models of today: normalised before every
part, rotary positions, gated perceptrons, no biases.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.nets import initializers, layers

Array = jax.Array
_STDDEV = 0.02  # of fresh weights
_WEIGHTS = jax.nn.initializers.normal(_STDDEV)


def rotary(x: Array, *, base: float = 1e4) -> Array:
  """Turns pairs of entries by angles that grow with the position.

    (a_i, b_i) -> (a_i cos - b_i sin, b_i cos + a_i sin) of l base^(-2 i / D)

  a and b are the two halves of an entry, l its position. Inner products of
  what is turned depend on positions by their difference alone.

  Args:
    x: queries or keys, [B, L, heads, D], D even.
    base: 2 pi times this is about the longest period.

  Returns:
    [B, L, heads, D].

  Reference: Su et al., https://arxiv.org/abs/2104.09864, Eq. 34.
  """
  length, size = x.shape[1], x.shape[-1]
  rates = base ** (-jnp.arange(0, size, 2) / size)
  angles = jnp.arange(length)[:, None] * rates[None]  # [L, D/2]
  cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
  a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, -1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x.dtype)


class Attention(nn.Module, kw_only=True):
  """Attention of every position to itself and those before it.

  Shapes: `[B, L, D]` -> `[B, L, D]`. Its softmax is in float32.

  Taps: query, key (both before they are turned), value, out, `[B, L, D]`.

  Attributes:
    heads: divides D, with an even quotient.
    out_init: initialiser of the last kernel.
    dtype: computation type; None: float32.
  """

  heads: int
  out_init: initializers.Initializer = _WEIGHTS
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns what the positions of `inputs` gather."""
    batch, length, width = inputs.shape
    if width % (2 * self.heads):
      raise ConfigError(
        f"Attention: {self.heads} heads on a width of {width}; expected heads "
        "of an even size"
      )
    query, key, value = (
      _matrix(width, self.dtype, name)(inputs).reshape(
        batch, length, self.heads, -1
      )
      for name in ("query", "key", "value")
    )
    x = jax.nn.dot_product_attention(
      rotary(query), rotary(key), value, is_causal=True
    )
    return _matrix(width, self.dtype, "out", self.out_init)(
      x.reshape(batch, length, width)
    )


class GatedMLP(nn.Module, kw_only=True):
  """Two layers, of which the first is gated: (silu(x G) * x U) D (SwiGLU).

  Shapes: `[B, L, D]` -> `[B, L, D]`.

  Taps: gate (before its activation), up, both `[B, L, hidden]`; down.

  Attributes:
    hidden: size of the hidden layer.
    out_init: initialiser of the last kernel.
    dtype: computation type; None: float32.

  Reference: Shazeer, https://arxiv.org/abs/2002.05202, Eq. 6.
  """

  hidden: int
  out_init: initializers.Initializer = _WEIGHTS
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the output at every position of `inputs`."""
    gate = _matrix(self.hidden, self.dtype, "gate")(inputs)
    up = _matrix(self.hidden, self.dtype, "up")(inputs)
    down = _matrix(inputs.shape[-1], self.dtype, "down", self.out_init)
    return down(nn.silu(gate) * up)


class DecoderBlock(nn.Module, kw_only=True):
  """Attention and a perceptron, each added to what it reads normalised.

  Shapes: `[B, L, D]` -> `[B, L, D]`.

  Taps, all `[B, L, D]`:
    attention_norm, attention, attention_dropout: inside attention: `query`,
      `key`, `value`, `out`.
    mlp_norm, mlp, mlp_dropout: inside mlp: `gate`, `up`, `down`.

  Attributes:
    heads: attention heads.
    mlp_ratio: size of the perceptron's hidden layer, in D.
    dropout: probability that an entry of what is added is dropped.
    out_init: initialiser of the kernels whose output is added.
    dtype: computation type; None: float32.
  """

  heads: int
  mlp_ratio: float
  dropout: float = 0.0
  out_init: initializers.Initializer = _WEIGHTS
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns `inputs` with what both parts add."""
    parts = {
      "attention": Attention(
        heads=self.heads,
        out_init=self.out_init,
        dtype=self.dtype,
        name="attention",
      ),
      "mlp": GatedMLP(
        hidden=round(self.mlp_ratio * inputs.shape[-1]),
        out_init=self.out_init,
        dtype=self.dtype,
        name="mlp",
      ),
    }
    x = inputs
    for name, part in parts.items():
      norm = nn.RMSNorm(dtype=self.dtype, name=f"{name}_norm")
      dropout = nn.Dropout(self.dropout, name=f"{name}_dropout")
      x = x + dropout(part(norm(x)), deterministic=not train)
    return x


class Head(nn.Module, kw_only=True):
  """Logits of a vocabulary: `x W`, or `x E^T` of a table of embeddings.

  Shapes: `[B, L, D]`, table `[V, D]` or None -> logits `[B, L, V]`.

  Attributes:
    vocabulary_size: V.
    kernel_init: initialiser of W.
    dtype: computation type; None: float32.
  """

  vocabulary_size: int
  kernel_init: initializers.Initializer
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
    return inputs @ kernel


class CausalDecoder(nn.Module, kw_only=True):
  """A transformer that predicts the next token.

  Shapes: tokens, integers `[B, L]` -> logits `[B, L, vocabulary_size]`.

  Taps, `[B, L, width]` but for the last:
    embedding: of the tokens; dropout: what of it is not dropped.
    block1, block2, ...: inside: `attention_norm`, `attention`,
      `attention_dropout`, `mlp_norm`, `mlp`, `mlp_dropout`; inside attention:
      `query`, `key`, `value`, `out`; inside mlp: `gate`, `up`, `down`.
    norm: of the last block's output.
    head: the logits.

  Attributes:
    vocabulary_size: number of tokens.
    width: size of a position's vector.
    depth: number of blocks.
    heads: attention heads; divide the width, with an even quotient.
    mlp_ratio: size of the perceptrons' hidden layers, in widths; at 8/3 they
      have the weights of a perceptron without gate at 4.
    tied: whether the head's weights are the embedding's.
    dropout: probability that an entry is dropped, of the embedding and of what
      every part of a block adds.
    dtype: computation type; None: float32.

  Reference: Touvron et al. (LLaMA), https://arxiv.org/abs/2302.13971, Sec. 2.2.
  """

  vocabulary_size: int
  width: int = 128
  depth: int = 4
  heads: int = 4
  mlp_ratio: float = 8 / 3
  tied: bool = False
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, tokens: Array, *, train: bool = False) -> Array:
    """Returns the logits of what follows every one of `tokens`."""
    embedding = _embedding(self, tokens, _STDDEV)
    dropout = nn.Dropout(self.dropout, name="dropout")
    x = dropout(embedding(tokens), deterministic=not train)
    spread = _STDDEV / math.sqrt(2 * self.depth)  # 2 depth of them are added
    for number in range(1, self.depth + 1):
      x = DecoderBlock(
        heads=self.heads,
        mlp_ratio=self.mlp_ratio,
        dropout=self.dropout,
        out_init=jax.nn.initializers.normal(spread),
        dtype=self.dtype,
        name=f"block{number}",
      )(x, train=train)
    x = nn.RMSNorm(dtype=self.dtype, name="norm")(x)
    return _logits(self, x, embedding, _WEIGHTS)


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
    start = jnp.zeros((len(inputs), size), precise)
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
    embedding = _embedding(self, tokens, spread)
    x = nn.Dropout(self.dropout, name="dropout")(
      embedding(tokens), deterministic=not train
    )
    for number in range(1, self.depth + 1):
      gru = GRU(features=self.width, dtype=self.dtype, name=f"gru{number}")
      dropout = nn.Dropout(self.dropout, name=f"dropout{number}")
      x = dropout(gru(x), deterministic=not train)
    return _logits(self, x, embedding, initializers.fan_in_uniform())


def _matrix(
  features: int,
  dtype: DTypeLike | None,
  name: str,
  kernel_init: initializers.Initializer = _WEIGHTS,
) -> nn.Dense:
  """Returns a linear layer without bias, for a module's compact method."""
  return nn.Dense(
    features, use_bias=False, kernel_init=kernel_init, dtype=dtype, name=name
  )


def _embedding(
  net: CausalDecoder | GRUDecoder, tokens: Array, stddev: float
) -> nn.Embed:
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


def _logits(
  net: CausalDecoder | GRUDecoder,
  inputs: Array,
  embedding: nn.Embed,
  kernel_init: initializers.Initializer,
) -> Array:
  """Returns the output of the net's layer `head`."""
  head = Head(
    vocabulary_size=net.vocabulary_size,
    kernel_init=kernel_init,
    dtype=net.dtype,
    name="head",
  )
  return head(inputs, embedding.embedding if net.tied else None)
