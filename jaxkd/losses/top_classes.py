"""Divergences that treat the teacher's top classes and its tail unlike.

Notation as in `divergence`: p is the teacher, q the student, T the
temperature; K are the k most probable classes of the teacher and those that
are as probable as the last of them.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.divergence import (
  Divergence,
  exp,
  per_class,
  relative_entropy,
)
from jaxkd.losses.relative_entropy import kl, reverse_kl
from jaxkd.losses.softmax import (
  LAST,
  Reduction,
  least_where,
  log_probabilities,
)

Array = jax.Array
DIRECTIONS = ("forward", "reverse")


@dataclasses.dataclass(frozen=True)
class TopKLD(Divergence):
  """One direction of KL in the top classes, another one in the tail (TopKLD).

    T^2 [w_e sum_{c in K} d_e(c) + w_i sum_{c not in K} d_i(c)],
    reverse d(c) = q_c log(q_c / p_c) - q_c + p_c,
    forward d(c) = p_c log(p_c / q_c) - p_c + q_c

  Mode seeking (reverse) where sampling can go, mass covering (forward) in the
  tail. The linear terms make each part at least 0, and 0 at q = p only; with
  all classes in K they cancel, which leaves reverse KL, and with none forward
  KL. Without them (`linear_terms=False`, the formula taken literally) the
  least value is not at q = p: mass is driven out of K.

  The paper gives no formula that could be read: this is a reading of its text.

  Needs: logits; access white; per example.
  Checked: formula.
  Reference: Ding et al. (TopKLD), https://arxiv.org/abs/2501.06218, Sec. 4.
  """

  k: int  # size of K, 1 or more
  head: Literal["reverse", "forward"] = "reverse"  # in K
  tail: Literal["reverse", "forward"] = "forward"  # outside of K
  head_weight: float = 1.0  # w_e
  tail_weight: float = 1.0  # w_i
  linear_terms: bool = True

  def __post_init__(self):
    """Checks k and the directions."""
    checks.positive(self.name, "k", self.k)
    checks.one_of(self.name, "head", self.head, DIRECTIONS)
    checks.one_of(self.name, "tail", self.tail, DIRECTIONS)

  def __call__(self, student: Array, teacher: Array, **options) -> Array:
    """As every divergence; the tail's classes are read one by one."""
    checks.white(self.name, teacher)
    return super().__call__(student, teacher, **options)

  def context(self, log_p: Array, over: Reduction) -> Array:
    """The largest -log p that is in K, [..., 1]."""
    return _kth_cost(log_p, self.k, over)

  def terms(
    self, log_p: Array, log_q: Array, context: Array
  ) -> tuple[Array, ...]:
    """Each class in the direction of its part."""
    forward = relative_entropy(log_p, log_q)
    reverse = relative_entropy(log_q, log_p)
    if not self.linear_terms:
      excess = exp(log_q) - exp(log_p)
      forward, reverse = forward - excess, reverse + excess
    terms = {"forward": forward, "reverse": reverse}
    return (
      jnp.where(
        _cost(log_p) <= context,
        self.head_weight * terms[self.head],
        self.tail_weight * terms[self.tail],
      ),
    )


def renormalized_topkld(
  student: Array,
  teacher: Array,
  *,
  k: int,
  temperature: float | Array = 1.0,
  where: Array | None = None,
) -> Array:
  """TopKLD whose two parts are distributions of their own.

    T^2 [KL(q_K || p_K) + KL(p_tail || q_tail) + KL(P || Q)]

  q_K is q restricted to K and normalised, q_tail likewise outside of K; P and
  Q are the masses (in K, outside of K) of teacher and student.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    k: size of K, 1 or more.
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if the shapes differ or a number is out of range.

  Needs: logits; access white; per example.
  Checked: formula.
  Reference: Ding et al. (TopKLD), https://arxiv.org/abs/2501.06218, Sec. 4, in
    a reading whose every part is a KL divergence.
  """
  checks.logits("renormalized_topkld", student, teacher)
  checks.positive("renormalized_topkld", "k", k)
  student = checks.masked("renormalized_topkld", student, where)
  teacher = checks.masked("renormalized_topkld", teacher, where)
  log_p = stop_gradient(log_probabilities(teacher))
  top = _cost(log_p) <= _kth_cost(log_p, k, LAST)
  options = {"temperature": temperature, "where": where}
  inside, outside, masses = [], [], []
  for logits in (student, teacher):
    inside.append(jnp.where(top, logits, -jnp.inf))
    outside.append(jnp.where(top, -jnp.inf, logits))
    masses.append(_masses(logits, top, temperature))
  return (
    reverse_kl(*inside, **options)
    + kl(*outside, **options)
    + temperature**2 * kl(*masses, where=where)
  )


def _masses(logits: Array, top: Array, temperature: float | Array) -> Array:
  """Logarithms of the masses in K and outside of it, [..., 2]."""
  log_q = log_probabilities(logits, per_class(temperature))
  parts = jnp.stack([top, ~top], axis=-2)
  log_q = jnp.where(parts, log_q[..., None, :], -jnp.inf)
  largest = stop_gradient(jnp.max(log_q, axis=-1, keepdims=True))
  largest = jnp.where(jnp.isneginf(largest), 0.0, largest)
  mass = jnp.sum(exp(log_q - largest), axis=-1)
  some = mass > 0
  log_mass = jnp.log(jnp.where(some, mass, 1.0)) + largest[..., 0]
  return jnp.where(some, log_mass, -jnp.inf)


def _cost(log_p: Array) -> Array:
  """-log p as a float32 that is at least +0."""
  return jnp.abs(jnp.minimum(stop_gradient(log_p).astype(jnp.float32), 0.0))


def _kth_cost(log_p: Array, k: int, over: Reduction) -> Array:
  """The k-th least -log p, [..., 1]; infinity if there are fewer classes."""
  cost = _cost(log_p)

  def enough(limit: Array) -> Array:
    return over.sum((cost <= limit).astype(jnp.float32)) >= k

  return least_where(enough, over.sum(cost))
