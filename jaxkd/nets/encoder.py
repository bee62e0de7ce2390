"""Transformer encoders: what BERT, ViT and CLIP have in common.

A block is attention of all positions to each other and a perceptron. Either is
added to what it reads, which is normalised before the part or after the sum.
"""

import functools
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.nets import blocks, layers, stochastic_depth
from jaxkd.nets.junctions import Identity

Array = jax.Array
STDDEV = 0.02  # of fresh weights
WEIGHTS = jax.nn.initializers.normal(STDDEV)
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


def dense(
  features: int, name: str, dtype: DTypeLike | None, *, bias: bool = True
) -> nn.Dense:
  """Returns a linear layer whose kernel starts small, for a compact method.

  Args:
    features: size of the output.
    name: of the submodule.
    dtype: computation type; None: float32.
    bias: whether a bias is added, at the start 0.
  """
  return nn.Dense(
    features,
    use_bias=bias,
    kernel_init=WEIGHTS,
    dtype=dtype,
    dot_general=layers.rows_dot_general,
    name=name,
  )


def embed(
  count: int, features: int, name: str, dtype: DTypeLike | None
) -> nn.Embed:
  """Returns a table of embeddings that starts small.

  Args:
    count: rows of the table.
    features: size of a row.
    name: of the submodule.
    dtype: computation type; None: float32.
  """
  return nn.Embed(
    count, features, embedding_init=WEIGHTS, dtype=dtype, name=name
  )


class SelfAttention(nn.Module, kw_only=True):
  """Attention of every position to those that are there.

    softmax(q_i . k_j / sqrt(D / heads)) over j, times v_j

  Its softmax is at least in float32.

  Shapes: `[B, L, D]`, mask `[B, L]` -> `[B, L, D]`.

  Taps: query, key, value, out, `[B, L, D]`; weights, the softmax before its
    dropout, `[B, heads, L, L]`.

  Attributes:
    heads: divides D.
    bias: whether query, key and value have one.
    causal: whether a position sees none behind it.
    dropout: probability that a weight is dropped.
    dtype: computation type; None: float32.
  """

  heads: int
  bias: bool = True
  causal: bool = False
  dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, inputs: Array, mask: Array | None = None, *, train: bool = False
  ) -> Array:
    """Returns what the positions gather where `mask` is not 0."""
    batch, length, width = inputs.shape
    if width % self.heads:
      raise ConfigError(
        f"SelfAttention: {self.heads} heads on a width of {width}; expected a "
        "divisor"
      )
    query, key, value = (
      dense(width, name, self.dtype, bias=self.bias)(inputs).reshape(
        batch, length, self.heads, -1
      )
      for name in ("query", "key", "value")
    )
    precise = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum(
      "bqhd,bkhd->bhqk", query, key, preferred_element_type=precise
    ) / math.sqrt(width // self.heads)
    seen = self._seen(mask, length)
    if seen is not None:
      scores = jnp.where(seen, scores, jnp.finfo(precise).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = nn.Dropout(self.dropout, name="dropout")(
      Identity(name="weights")(weights), deterministic=not train
    )
    x = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return dense(width, "out", self.dtype)(x.reshape(batch, length, width))

  def _seen(self, mask: Array | None, length: int) -> Array | None:
    """Which scores count, broadcastable to [B, heads, L, L]; None: all."""
    seen = None if mask is None else (mask != 0)[:, None, None]
    if not self.causal:
      return seen
    before = jnp.tril(jnp.ones((1, 1, length, length), bool))
    return before if seen is None else before & seen


class Perceptron(nn.Module, kw_only=True):
  """Two layers with an activation between them.

  Shapes: `[..., D]` -> `[..., D]`.

  Taps: fc1, before its activation, `[..., hidden]`; fc2.

  Attributes:
    hidden: size of the hidden layer.
    activation: a name in `ACTIVATIONS`; `gelu` is the exact one.
    dtype: computation type; None: float32.
  """

  hidden: int
  activation: str = "gelu"
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the output for `inputs`."""
    x = activation(self.activation)(
      dense(self.hidden, "fc1", self.dtype)(inputs)
    )
    return dense(inputs.shape[-1], "fc2", self.dtype)(x)


def activation(name: str) -> Callable[[Array], Array]:
  """Returns the activation of this name.

  Raises:
    ConfigError: there is none.
  """
  if name not in ACTIVATIONS:
    raise ConfigError(
      f"activation={name!r}{did_you_mean(name, ACTIVATIONS)} (known: "
      f"{', '.join(ACTIVATIONS)})"
    )
  return ACTIVATIONS[name]


class EncoderBlock(nn.Module, kw_only=True):
  """Attention and a perceptron, each added to what it reads.

  Shapes: `[B, L, D]`, mask `[B, L]` -> `[B, L, D]`.

  Taps, all `[B, L, D]`:
    attention_norm, attention, attention_dropout: inside attention: `query`,
      `key`, `value`, `weights`, `dropout`, `out`.
    mlp_norm, mlp, mlp_dropout: inside mlp: `fc1`, `fc2`.

  Attributes:
    heads: attention heads.
    hidden: size of the perceptron's hidden layer.
    norm_first: whether a part reads the norm of the sum, `x + f(norm(x))`, as
      in ViT and CLIP; else the sum is normalised, `norm(x + f(x))`, as in BERT.
    activation: of the perceptron.
    bias: whether query, key and value have one.
    causal: whether a position sees none behind it.
    epsilon: of the norms.
    dropout: probability that an entry of what is added is dropped.
    attention_dropout: probability that an attention weight is dropped.
    dtype: computation type; None: float32.
  """

  heads: int
  hidden: int
  norm_first: bool
  activation: str = "gelu"
  bias: bool = True
  causal: bool = False
  epsilon: float = 1e-12
  dropout: float = 0.0
  attention_dropout: float = 0.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    inputs: Array,
    mask: Array | None = None,
    dropped: Array | float | None = None,
    *,
    train: bool = False,
  ) -> Array:
    """Returns `inputs` with what both parts add.

    Args:
      inputs: [B, L, D].
      mask: [B, L] or None.
      dropped: probability that a part adds nothing to an example; None: 0.
      train: whether anything is dropped.
    """
    attention = SelfAttention(
      heads=self.heads,
      bias=self.bias,
      causal=self.causal,
      dropout=self.attention_dropout,
      dtype=self.dtype,
      name="attention",
    )
    parts = {
      "attention": functools.partial(attention, mask=mask, train=train),
      "mlp": Perceptron(
        hidden=self.hidden,
        activation=self.activation,
        dtype=self.dtype,
        name="mlp",
      ),
    }
    x = inputs
    for name, part in parts.items():
      norm = blocks.layer_norm(f"{name}_norm", self.dtype, self.epsilon)
      dropout = nn.Dropout(self.dropout, name=f"{name}_dropout")
      added = dropout(
        part(norm(x) if self.norm_first else x), deterministic=not train
      )
      if train and dropped is not None:
        key = self.make_rng("dropout")
        added = stochastic_depth.drop(key, added, dropped)
      x = x + added if self.norm_first else norm(x + added)
    return x


def run_blocks(
  make: Callable[..., EncoderBlock],
  inputs: Array,
  mask: Array | None = None,
  *,
  depth: int,
  train: bool,
  remat: bool,
  scan_layers: bool,
  most_dropped: float = 0.0,
) -> Array:
  """Runs a stack of equal blocks in a compact method.

  Args:
    make: makes a block of a name.
    inputs: [B, L, D].
    mask: [B, L] or None.
    depth: number of blocks.
    train: whether dropout drops.
    remat: whether a block's inside is computed again for the gradient instead
      of kept.
    scan_layers: whether the blocks are one submodule `blocks`, whose parameters
      have a leading axis [depth], and one loop, which compiles in the time of a
      block. Its taps have the axis too; an edit edits every block.
    most_dropped: probability that a part of the last block adds nothing to an
      example; it grows linearly from 0 at the first block.

  Returns:
    [B, L, D].
  """

  def call(block, x, dropped):
    return block(x, mask, dropped, train=train)

  # No draws where nothing is dropped.
  rates = (
    np.linspace(0, most_dropped, depth, dtype=np.float32)
    if most_dropped
    else None
  )
  if remat:
    call = nn.remat(call, prevent_cse=not scan_layers)
  if not scan_layers:
    x = inputs
    for i in range(depth):
      dropped = None if rates is None else rates[i]
      x = call(make(name=f"block{i + 1}"), x, dropped)
    return x
  scan = nn.scan(
    lambda block, x, dropped: (call(block, x, dropped), None),
    variable_axes={"params": 0, "intermediates": 0},
    split_rngs={"params": True, "dropout": True},
    length=depth,
  )
  return scan(make(name="blocks"), inputs, rates)[0]


def check_choice(field: str, value: str, choices: Any) -> None:
  """Raises `ConfigError` unless a value is in a `Literal`."""
  known = typing.get_args(choices)
  if value not in known:
    raise ConfigError(
      f"{field}={value!r}: expected one of {', '.join(known)}"
      + did_you_mean(str(value), known)
    )
