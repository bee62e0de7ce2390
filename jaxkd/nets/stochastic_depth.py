"""Stochastic depth: what a part adds is left out for some of the examples.

Also called drop path, or drop connect by EfficientNet. It is more likely from
block to block.

Reference: Huang et al., https://arxiv.org/abs/1603.09382.
"""

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError

Array = jax.Array


def drop(key: Array, added: Array, probability: Array | float) -> Array:
  """Sets whole examples to 0 and scales the others, so that the mean stays.

  Args:
    key: of the draw.
    added: what is to be added, [B, ...].
    probability: that an example is dropped, below 1.

  Returns:
    [B, ...].
  """
  keep = jnp.float32(1 - probability)
  shape = (added.shape[0],) + (1,) * (added.ndim - 1)
  kept = jax.random.bernoulli(key, keep, shape)
  return jnp.where(kept, added / keep.astype(added.dtype), 0)


def check(owner: str, probability: float) -> None:
  """Raises `ConfigError` for what is no probability below 1."""
  if not 0 <= probability < 1:
    raise ConfigError(
      f"{owner}.stochastic_depth={probability!r}: expected a number from 0 to "
      "below 1"
    )
