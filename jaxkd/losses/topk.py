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
  def of(cls, logits: Array | TopK, k: int) -> TopK:
    """The k largest classes of logits [..., C] or of a top-k.

    Raises:
      ValueError: k is below 1, or above the classes that there are.
    """
    seen = logits.log_probs if isinstance(logits, TopK) else logits
    if not 1 <= k <= seen.shape[-1]:
      raise ValueError(
        f"TopK.of: k={k}; expected 1 to {seen.shape[-1]}, the classes"
        + (" that this teacher gives" if seen is not logits else "")
      )
    if seen is not logits:
      values, places = jax.lax.top_k(seen, k)
      ids = jnp.take_along_axis(logits.ids, places, axis=-1)
      return cls(ids=ids, log_probs=values)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    log_p = jax.nn.log_softmax(logits.astype(dtype), -1)
    values, ids = jax.lax.top_k(log_p, k)
    return cls(ids=ids.astype(jnp.int32), log_probs=values)
