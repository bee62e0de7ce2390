"""Divergences from a teacher of which k classes and their mass are known.

Notation as in `divergence`: p is the teacher, q the student, T the
temperature; S the k classes that the teacher returned.

The bucket of the teacher is at least the machine epsilon, below which the
rounding of the sum leaves nothing of it. The student's is a sum over the
classes outside S and not a difference, so that small ones keep their digits.
Where the student has no class outside S (none is left, or all are at -inf)
the bucket is empty for both.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.divergence import Divergence, per_class, scaled
from jaxkd.losses.softmax import at_least_float32, log_probabilities
from jaxkd.losses.topk import TopK

Array = jax.Array


def topk_divergence(
  divergence: Divergence,
  student: Array,
  teacher: TopK,
  *,
  temperature: float | Array = 1.0,
  where: Array | None = None,
  soft_cap: float | None = None,
  vocab_size: int | None = None,
  tail: Literal["bucket", "renormalize"] = "bucket",
) -> Array:
  """T^2 D(p', q') with both distributions reduced to what the teacher told.

    p' = softmax(log [p_c for c in S, 1 - sum_S p_c] / T),
    q' = softmax(log [q_c for c in S, sum of q_c outside S] / T)

  Everything outside S is one class, the bucket. At T = 1 and for a divergence
  that merging classes cannot raise (all but AdaptiveKL) the value is at most
  that of the dense form; they are equal where p and q are proportional outside
  S, and where S has every class. At another T the known probabilities are
  tempered with the bucket as one class, on both sides: no reduction of the
  tempered distributions, which k classes do not determine, and no bound.

  `tail="renormalize"` leaves the bucket out, p' = softmax(log [p_c] / T) over
  S. This is exact for the distribution within S at any T, but says nothing of
  the mass that the student gives to S: no gradient moves mass between S and
  the rest, and k = 1 gives 0 whatever the student is.

  Args:
    divergence: D, such as `kl`.
    student: logits, [..., C].
    teacher: ids and log-probabilities (T = 1), [..., k]; an entry at -inf was
      not returned, its class is outside S. An id that is no class gives NaN.
    temperature: T, above 0; a number, or one per position.
    where: [...], entries that are not true give 0 and pass no gradient.
    soft_cap: of the student's logits; what the teacher gave is as it is.
    vocab_size: real classes of the student; those beyond it are padding.
    tail: what becomes of the classes outside S.

  Returns:
    [...], nats times T^2 (total variation: no unit, times T^2).

  Raises:
    ValueError: if shapes, ids' type, a number or `tail` do not fit.

  Needs: logits; access topk; per example.
  Checked: huggingface/trl@f2cd577; siyan-zhao/OPSD@590ec26.
  Reference: data processing inequality, https://arxiv.org/abs/1206.2459, Th. 1.
  """
  name = divergence.name
  checks.one_of(name, "tail", tail, ("bucket", "renormalize"))
  student = checks.classes(name, "student", student, -1, vocab_size)
  checks.topk(name, student, teacher)
  checks.temperature(name, temperature, student.shape[:-1])
  log_q = log_probabilities(checks.masked(name, student, where), cap=soft_cap)
  log_p = at_least_float32(checks.masked(name, teacher.log_probs, where))
  ids = checks.masked(name, teacher.ids, where)
  slots = _slots(log_p, log_q, ids, bucket=tail == "bucket")
  divide = per_class(temperature)
  value = divergence.evaluate(*(log_probabilities(x, divide) for x in slots))
  return scaled(value[..., 0], temperature, where)


def _slots(
  log_p: Array, log_q: Array, ids: Array, *, bucket: bool
) -> tuple[Array, Array]:
  """Teacher and student on the classes of S and, if asked for, the bucket."""
  returned = log_p > -jnp.inf
  # A class that was not returned is read at 0 and written nowhere.
  ids = jnp.where(returned, ids, 0)
  head = jnp.take_along_axis(log_q, ids, axis=-1)
  head = jnp.where(returned, head, -jnp.inf)
  if not bucket:
    return log_p, head
  outside = _outside(ids, returned, log_q.shape[-1])
  q_rest = _log_sum(jnp.where(outside, log_q, -jnp.inf))
  p_rest = jnp.where(q_rest > -jnp.inf, _log_remainder(log_p), -jnp.inf)
  p, q = (log_p, p_rest), (head, q_rest)
  return jnp.concatenate(p, axis=-1), jnp.concatenate(q, axis=-1)


def _outside(ids: Array, returned: Array, classes: int) -> Array:
  """Whether a class is none of those returned, [..., C]."""
  everywhere = jnp.ones((*ids.shape[:-1], classes), bool)
  return jnp.put_along_axis(
    everywhere,
    jnp.where(returned, ids, classes),
    False,
    axis=-1,
    inplace=False,
    mode="drop",
  )


def _log_sum(log_q: Array) -> Array:
  """Logarithm of the sum of probabilities, [..., 1]; -inf if there are none."""
  largest = jnp.max(jax.lax.stop_gradient(log_q), axis=-1, keepdims=True)
  some = largest > -jnp.inf
  largest = jnp.where(some, largest, 0.0)
  total = jnp.sum(jnp.exp(log_q - largest), axis=-1, keepdims=True)
  return jnp.where(
    some, jnp.log(jnp.where(some, total, 1.0)) + largest, -jnp.inf
  )


def _log_remainder(log_p: Array) -> Array:
  """log(1 - sum of probabilities), at least that of the machine epsilon.

  1 - p of the largest is exact by expm1; the others are taken from that.
  """
  largest = jnp.argmax(log_p, axis=-1, keepdims=True)
  first = jnp.take_along_axis(log_p, largest, axis=-1)
  others = jnp.put_along_axis(log_p, largest, -jnp.inf, axis=-1, inplace=False)
  rest = -jnp.expm1(first) - jnp.sum(jnp.exp(others), axis=-1, keepdims=True)
  return jnp.log(jnp.maximum(rest, jnp.finfo(rest.dtype).eps))
