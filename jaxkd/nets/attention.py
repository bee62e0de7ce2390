"""Causal attention with rotary positions, as decoders have it.

Heads of queries may share keys and values, positions may be seen through a
window, and keys and values may be kept between calls.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.errors import ConfigError
from jaxkd.losses.softmax import soft_cap
from jaxkd.nets import initializers, layers
from jaxkd.nets.rotary import DynamicScaling, Scaling, rotary

Array = jax.Array
STDDEV = 0.02  # of fresh weights
WEIGHTS = jax.nn.initializers.normal(STDDEV)


def matrix(
  features: int,
  *,
  dtype: DTypeLike | None,
  name: str,
  kernel_init: initializers.Initializer = WEIGHTS,
  bias: bool = False,
) -> nn.Dense:
  """Returns a linear layer, for a module's compact method."""
  return nn.Dense(
    features,
    use_bias=bias,
    kernel_init=kernel_init,
    dtype=dtype,
    dot_general=layers.rows_dot_general,
    name=name,
  )


class Attention(nn.Module, kw_only=True):
  """Attention of every position to itself and those before it.

  Shapes: `[B, L, D]` -> `[B, L, D]`. Its softmax is in float32.

  With a collection `cache` of `key` and `value`, `[B, M, key_value_heads,
  head_size]`, what is attended to is the cache: a position's key and value are
  put into the slot of its number first, and the changed cache is returned as
  collections are. A slot that is not yet filled is not seen, as long as a row's
  positions come in order; positions of M and above are not kept.

  Taps: query, key (both before they are normalised and turned),
    `[B, L, heads * head_size]`; value; out, `[B, L, D]`; query_norm, key_norm
    if there are any, `[B, L, heads, head_size]`. Keys and values have
    `key_value_heads` in place of `heads`.

  Attributes:
    heads: of queries.
    key_value_heads: of keys and values, a divisor of heads; as many if not
      given.
    head_size: even; D / heads if not given.
    qk_norm: whether every head's query and key are normalised (RMS).
    epsilon: added to the mean square in these norms.
    bias: whether query, key and value have one.
    out_bias: whether the output has one.
    base: of the rotary positions.
    scaling: of the rotary positions.
    window: positions that are seen, the own one included; all if not given.
    cap: soft-cap of the scores, cap tanh(score / cap).
    out_init: initialiser of the last kernel.
    dtype: computation type; None: float32.

  Reference: Ainslie et al. (shared keys), https://arxiv.org/abs/2305.13245;
    Jiang et al. (window), https://arxiv.org/abs/2310.06825.
  """

  heads: int
  key_value_heads: int | None = None
  head_size: int | None = None
  qk_norm: bool = False
  epsilon: float = 1e-6
  bias: bool = False
  out_bias: bool = False
  base: float = 1e4
  scaling: Scaling | None = None
  window: int | None = None
  cap: float | None = None
  out_init: initializers.Initializer = WEIGHTS
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    inputs: Array,
    positions: Array | None = None,
    token_mask: Array | None = None,
  ) -> Array:
    """Returns what the positions of `inputs` gather.

    Args:
      inputs: [B, L, D].
      positions: integers [B, L] or [1, L]; 0, 1, ... if not given.
      token_mask: [B, L]; where it is 0 nothing is seen or kept.
    """
    batch, length, width = inputs.shape
    size = self._head_size(width)
    if positions is None:
      positions = jnp.arange(length)[None]
    turn = functools.partial(
      rotary,
      base=self.base,
      scaling=self.scaling,
      lengths=jnp.max(positions, -1) + 1,
    )
    query = turn(self._part("query", inputs, size), positions)
    key = self._part("key", inputs, size)
    value = self._part("value", inputs, size)
    # Where rates change with the row's length, keys are kept unturned.
    at_once = not isinstance(self.scaling, DynamicScaling)
    key = turn(key, positions) if at_once else key
    places = positions
    if self.has_variable("cache", "key"):
      kept = positions
      if token_mask is not None:
        end = self.get_variable("cache", "key").shape[1]
        kept = jnp.where(token_mask > 0, positions, end)
      key, value = (
        self._kept("key", key, kept),
        self._kept("value", value, kept),
      )
      places, token_mask = jnp.arange(key.shape[1])[None], None
    key = key if at_once else turn(key, places)
    seen = _seen(positions, places, token_mask, self.window)
    x = _gather(query, key, value, seen, self.cap)
    return matrix(
      width,
      dtype=self.dtype,
      name="out",
      kernel_init=self.out_init,
      bias=self.out_bias,
    )(x.reshape(batch, length, self.heads * size))

  def _head_size(self, width: int) -> int:
    """The size of a head; raises if the heads do not fit."""
    size = self.head_size or width // self.heads
    if size % 2 or not (self.head_size or width % self.heads == 0):
      raise ConfigError(
        f"Attention: {self.heads} heads on a width of {width}; expected heads "
        f"of an even size, got {self.head_size or width / self.heads}"
      )
    if self.heads % (self.key_value_heads or self.heads):
      raise ConfigError(
        f"Attention.key_value_heads={self.key_value_heads}: expected a divisor "
        f"of heads={self.heads}"
      )
    return size

  def _part(self, name: str, inputs: Array, size: int) -> Array:
    """Queries, keys or values, [B, L, heads, size]."""
    heads = self.heads if name == "query" else self.key_value_heads
    heads = heads or self.heads
    layer = matrix(heads * size, dtype=self.dtype, name=name, bias=self.bias)
    x = layer(inputs).reshape(*inputs.shape[:2], heads, size)
    if name == "value" or not self.qk_norm:
      return x
    norm = nn.RMSNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=f"{name}_norm"
    )
    return norm(x)

  def _kept(self, name: str, new: Array, slots: Array) -> Array:
    """What the cache holds after the new entries are put into their slots."""
    held = self.get_variable("cache", name)
    rows = jnp.arange(len(new))[:, None]
    held = held.at[rows, slots].set(new.astype(held.dtype), mode="drop")
    self.put_variable("cache", name, held)
    return held.astype(new.dtype)


def _seen(
  positions: Array,
  places: Array,
  token_mask: Array | None,
  window: int | None,
) -> Array:
  """Which places [*, M] are seen from which positions [*, L]: [*, L, M]."""
  distance = positions[:, :, None] - places[:, None]
  seen = distance >= 0
  if window is not None:
    seen &= distance < window
  if token_mask is not None:
    seen &= token_mask[:, None] > 0
  return seen


def _gather(
  query: Array, key: Array, value: Array, seen: Array, cap: float | None
) -> Array:
  """Means of values by the softmax of the scores of what is seen.

  Args:
    query: [B, L, heads, D].
    key: [B, M, K, D], K a divisor of heads.
    value: as key.
    seen: [B or 1, L, M].
    cap: soft-cap of the scores.

  Returns:
    [B, L, heads, D].
  """
  batch, length, heads, size = query.shape
  shared = key.shape[2]
  query = query.reshape(batch, length, shared, heads // shared, size)
  scores = jnp.einsum(
    "blkgd,bmkd->bkglm", query, key, preferred_element_type=jnp.float32
  )
  scores = soft_cap(scores / math.sqrt(size), cap)
  least = jnp.finfo(scores.dtype).min
  weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, least))
  return jnp.einsum("bkglm,bmkd->blkgd", weights.astype(value.dtype), value)
