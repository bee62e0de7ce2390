"""A causal transformer, as language models of today are.

It gives the logits of the next token at every position. It is normalised
before every part and has rotary positions and gated perceptrons.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import initializers, vocabulary
from jaxkd.nets.attention import STDDEV, WEIGHTS, Attention, matrix
from jaxkd.nets.rotary import Scaling

Array = jax.Array


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
  out_init: initializers.Initializer = WEIGHTS
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the output at every position of `inputs`."""
    gate, up = (
      matrix(self.hidden, dtype=self.dtype, name=name)(inputs)
      for name in ("gate", "up")
    )
    return matrix(
      inputs.shape[-1],
      dtype=self.dtype,
      name="down",
      kernel_init=self.out_init,
    )(nn.silu(gate) * up)


class DecoderBlock(nn.Module, kw_only=True):
  """Attention and a perceptron, each added to what it reads normalised.

  Shapes: `[B, L, D]` -> `[B, L, D]`.

  Taps, all `[B, L, D]`:
    attention_norm, attention, attention_dropout: inside attention: its taps.
    mlp_norm, mlp, mlp_dropout: inside mlp: its taps.

  Attributes:
    attention: makes the first part, from a name.
    mlp: makes the second part, from a name.
    dropout: probability that an entry of what is added is dropped.
    epsilon: added to the mean square in norms.
    dtype: computation type; None: float32.
  """

  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  dropout: float = 0.0
  epsilon: float = 1e-6
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    inputs: Array,
    positions: Array | None = None,
    token_mask: Array | None = None,
    train: bool = False,
  ) -> Array:
    """Returns `inputs` with what both parts add."""
    attention = self.attention(name="attention")
    parts = {
      "attention": lambda x: attention(x, positions, token_mask),
      "mlp": self.mlp(name="mlp"),
    }
    x = inputs
    for name, part in parts.items():
      norm = nn.RMSNorm(
        epsilon=self.epsilon, dtype=self.dtype, name=f"{name}_norm"
      )
      dropout = nn.Dropout(self.dropout, name=f"{name}_dropout")
      x = x + dropout(part(norm(x)), deterministic=not train)
    return x


class CausalDecoder(nn.Module, kw_only=True):
  """A transformer that predicts the next token.

  Shapes: tokens, integers `[B, L]` -> logits `[B, L, vocabulary_size]`.

  Padding at the end of rows needs no mask. With a mask it may lie anywhere:
  positions count the tokens alone.

  With a collection `cache`, as `empty_cache` makes it, a call goes on where the
  last one ended: it reads new tokens at `positions`, and returns the changed
  cache as collections are, with `mutable=["cache"]`.

  Taps, `[B, L, width]` but for the last:
    embedding: of the tokens; dropout: what of it is not dropped.
    block1, block2, ...: inside: `attention_norm`, `attention`,
      `attention_dropout`, `mlp_norm`, `mlp`, `mlp_dropout`; inside attention:
      `query`, `key`, `value`, `out`, with qk_norm `query_norm`, `key_norm`;
      inside mlp: `gate`, `up`, `down`.
    norm: of the last block's output.
    head: the logits, if there is one.

  With `scan_layers` the blocks are one, `blocks`, whose parameters have a
  leading axis of the depth, and so have tapped outputs; an edit inside is made
  in every block.

  Attributes:
    vocabulary_size: number of tokens.
    width: size of a position's vector.
    depth: number of blocks.
    heads: attention heads.
    key_value_heads: heads of keys and values, a divisor of heads; as many if
      not given.
    head_size: even; width / heads if not given.
    mlp_ratio: size of the perceptrons' hidden layers, in widths; at 8/3 they
      have the weights of a perceptron without gate at 4.
    hidden: that size itself, in place of the ratio.
    qk_norm: whether every head's query and key are normalised (RMS).
    bias: whether query, key and value have one.
    out_bias: whether the attention's output has one.
    rotary_base: of the rotary positions.
    rotary_scaling: of the rotary positions, to longer sequences.
    window: positions that one sees, itself included; all if not given.
    epsilon: added to the mean square in norms.
    attention_cap: soft-cap of attention scores, cap tanh(score / cap).
    logit_cap: soft-cap of the logits.
    tied: whether the head's weights are the embedding's.
    head: what is returned: logits of the next token, or what `norm` gives.
    dropout: probability that an entry is dropped, of the embedding and of what
      every part of a block adds.
    dtype: computation type; None: float32.
    remat: whether the blocks are computed again for the gradient.
    scan_layers: whether the blocks are compiled as one, in a loop.

  Reference: Touvron et al. (LLaMA), https://arxiv.org/abs/2302.13971, Sec. 2.2.
  """

  vocabulary_size: int
  width: int = 128
  depth: int = 4
  heads: int = 4
  key_value_heads: int | None = None
  head_size: int | None = None
  mlp_ratio: float = 8 / 3
  hidden: int | None = None
  qk_norm: bool = False
  bias: bool = False
  out_bias: bool = False
  rotary_base: float = 1e4
  rotary_scaling: Scaling | None = None
  window: int | None = None
  epsilon: float = 1e-6
  attention_cap: float | None = None
  logit_cap: float | None = None
  tied: bool = False
  head: Literal["next_token", "none"] = "next_token"
  dropout: float = 0.0
  dtype: DTypeLike | None = None
  remat: bool = False
  scan_layers: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    token_mask: Array | None = None,
    positions: Array | None = None,
    *,
    train: bool = False,
  ) -> Array:
    """Returns the logits of what follows every one of `tokens`.

    Args:
      tokens: integers [B, L].
      token_mask: [B, L], 0 where there is padding.
      positions: integers [B, L]; if not given, the number of the row's tokens
        before.
      train: whether dropout is active.
    """
    embedding = vocabulary.embedding(self, tokens, STDDEV)
    dropout = nn.Dropout(self.dropout, name="dropout")
    x = dropout(embedding(tokens), deterministic=not train)
    if token_mask is not None and positions is None:
      before = jnp.cumsum(token_mask > 0, axis=-1, dtype=jnp.int32) - 1
      positions = jnp.maximum(before, 0)
    x = self._blocks(x, positions, token_mask, train)
    x = nn.RMSNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    if self.head == "none":
      return x
    return vocabulary.logits(self, x, embedding, WEIGHTS, self.logit_cap)

  @nn.nowrap
  def empty_cache(self, rows: int, length: int) -> dict[str, Any]:
    """A cache of nothing yet.

    Args:
      rows: B.
      length: how many positions of a row can be kept.

    Returns:
      The collection `cache`.
    """
    size = self.head_size or self.width // self.heads
    shape = (rows, length, self.key_value_heads or self.heads, size)
    if self.scan_layers:
      shape = (self.depth, *shape)
    names = [f"block{number}" for number in range(1, self.depth + 1)]
    return {
      block: {
        "attention": {
          name: jnp.zeros(shape, self.dtype or jnp.float32)
          for name in ("key", "value")
        }
      }
      for block in (["blocks"] if self.scan_layers else names)
    }

  def _blocks(
    self,
    x: Array,
    positions: Array | None,
    token_mask: Array | None,
    train: bool,
  ) -> Array:
    """Returns what the blocks make of `x`."""
    kind = DecoderBlock
    if self.remat:
      kind = nn.remat(
        DecoderBlock, static_argnums=(4,), prevent_cse=not self.scan_layers
      )
    block = functools.partial(
      kind,
      attention=self._attention(),
      mlp=self._mlp(),
      dropout=self.dropout,
      epsilon=self.epsilon,
      dtype=self.dtype,
    )
    if not self.scan_layers:
      for number in range(1, self.depth + 1):
        x = block(name=f"block{number}")(x, positions, token_mask, train)
      return x
    scanned = nn.scan(
      lambda block, x, _: (block(x, positions, token_mask, train), None),
      variable_axes={"params": 0, "cache": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True},
      length=self.depth,
    )
    return scanned(block(name="blocks"), x, None)[0]

  def _attention(self) -> Callable[..., Attention]:
    return functools.partial(
      Attention,
      heads=self.heads,
      key_value_heads=self.key_value_heads,
      head_size=self.head_size,
      qk_norm=self.qk_norm,
      epsilon=self.epsilon,
      bias=self.bias,
      out_bias=self.out_bias,
      base=self.rotary_base,
      scaling=self.rotary_scaling,
      window=self.window,
      cap=self.attention_cap,
      out_init=self._added(),
      dtype=self.dtype,
    )

  def _mlp(self) -> Callable[..., GatedMLP]:
    return functools.partial(
      GatedMLP,
      hidden=self.hidden or round(self.mlp_ratio * self.width),
      out_init=self._added(),
      dtype=self.dtype,
    )

  def _added(self) -> initializers.Initializer:
    """Initialises what is added to `x`, 2 depth times."""
    return jax.nn.initializers.normal(STDDEV / math.sqrt(2 * self.depth))
