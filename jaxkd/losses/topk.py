"""What a teacher with access `topk` gives: k log-probabilities per position.

The mass outside of the k classes is known (one minus their sum), its
distribution is not.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

Array = jax.Array


@flax.struct.dataclass
class TopK:
  """The k most probable classes of a teacher.

  Attributes:
    ids: class numbers, integers [..., k], distinct within a position.
    log_probs: their log-probabilities at temperature 1, [..., k]; an entry at
      -inf was not returned and is left out.
  """

  ids: Array
  log_probs: Array

  @classmethod
  def of(cls, logits: Array, k: int) -> TopK:
    """The k largest classes of logits [..., C]; `1 <= k <= C`."""
    if not 1 <= k <= logits.shape[-1]:
      raise ValueError(
        f"TopK.of: k={k}; expected 1 to {logits.shape[-1]}, the classes"
      )
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    log_p = jax.nn.log_softmax(logits.astype(dtype), -1)
    values, ids = jax.lax.top_k(log_p, k)
    return cls(ids=ids.astype(jnp.int32), log_probs=values)
