"""Log-probabilities of logits, however the classes lie.

The classes are on the last axis, or on the last axis of several devices or
pieces: whoever holds them says how to sum and to maximise over all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

Array = jax.Array
INFINITY = 0x7F800000  # the bits of float32's
Cap = float | tuple[float | None, float | None] | None


@dataclasses.dataclass(frozen=True)
class Reduction:
  """Sum and maximum over all classes, [..., C] -> [..., 1]."""

  sum: Callable[[Array], Array]
  max: Callable[[Array], Array]


LAST = Reduction(
  sum=lambda x: jnp.sum(x, -1, keepdims=True),
  max=lambda x: jnp.max(x, -1, keepdims=True),
)


def least_where(enough: Callable[[Array], Array], like: Array) -> Array:
  """The least float32 from 0 on at which a condition holds.

  Non-negative floats are ordered as their bits are, so that bisection on the
  bits finds it exactly in 32 trials.

  Args:
    enough: of an array of limits; once true it stays true.
    like: an array of their shape and sharding.

  Returns:
    float32 as `like`, without gradient; infinity where it never holds.
  """

  def halve(_, bounds):
    low, high = bounds  # not enough up to low, enough from high on
    middle = jnp.maximum(low + (high - low) // 2, 0)
    holds = enough(jax.lax.bitcast_convert_type(middle, jnp.float32))
    return jnp.where(holds, low, middle), jnp.where(holds, middle, high)

  zero = jnp.zeros_like(like, jnp.int32)
  _, high = jax.lax.fori_loop(0, 32, halve, (zero - 1, zero + INFINITY))
  return jax.lax.bitcast_convert_type(high, jnp.float32)


def at_least_float32(x: Array) -> Array:
  """The array in float32, or wider if it is."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def student_and_teacher(cap: Cap) -> tuple[float | None, float | None]:
  """The soft-caps of student and teacher."""
  return cap if isinstance(cap, tuple) else (cap, cap)


def soft_cap(logits: Array, cap: float | None) -> Array:
  """Cap tanh(logits / cap), with -inf kept."""
  if cap is None:
    return logits
  absent = jnp.isneginf(logits)
  safe = jnp.where(absent, 0.0, logits)
  return jnp.where(absent, -jnp.inf, cap * jnp.tanh(safe / cap))


def standardize(
  logits: Array, *, eps: float = 1e-7, over: Reduction = LAST
) -> Array:
  """Logits with mean 0 and standard deviation 1 over their classes.

  (z - mean) / (eps + std) with the unbiased std (C - 1); classes at -inf are
  not counted and stay there.

  Args:
    logits: [..., C].
    eps: added to the standard deviation.
    over: how to sum over the classes.

  Returns:
    [..., C], float32 at least.

  Reference: Sun et al., https://arxiv.org/abs/2403.01427, Alg. 1.
  """
  logits = at_least_float32(logits)
  absent = jnp.isneginf(logits)
  logits = jnp.where(absent, 0.0, logits)
  real = jnp.where(absent, 0.0, 1.0)
  count = over.sum(real)
  mean = over.sum(logits) / jnp.maximum(count, 1)
  centred = real * (logits - mean)
  variance = over.sum(centred**2) / jnp.maximum(count - 1, 1)
  varies = variance > 0
  std = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
  return jnp.where(absent, -jnp.inf, centred / (eps + std))


def log_probabilities(
  logits: Array,
  temperature: float | Array = 1.0,
  *,
  cap: float | None = None,
  standardized: bool = False,
  over: Reduction = LAST,
) -> Array:
  """Log-softmax of logits / T; -inf for a class, or a row, that is at -inf.

  Args:
    logits: [..., C].
    temperature: T, a number or an array that broadcasts against the logits.
    cap: soft-cap that is put on the logits first.
    standardized: whether the logits are standardized before T divides them.
    over: how to sum and maximise over the classes.

  Returns:
    [..., C], float32 at least.
  """
  logits = soft_cap(at_least_float32(logits), cap)
  if standardized:
    logits = standardize(logits, over=over)
  logits = logits / temperature
  largest = over.max(stop_gradient(logits))
  shifted = logits - jnp.where(jnp.isneginf(largest), 0.0, largest)
  mass = over.sum(jnp.exp(shifted))
  return shifted - jnp.log(jnp.where(mass > 0, mass, 1.0))
