"""Divergences between two categorical distributions: one family, four forms.

Notation: p is the teacher, q the student, both a softmax of logits divided by
the temperature T; D(p, q) is a divergence, a `Divergence` object. Called with
logits it is the dense form; `TopK` in place of the teacher's logits makes it
the top-k + tail form; `linear_divergence` streams it over hidden states and
output heads, `sharded_divergence` over a vocabulary that lies on several
devices. All of them evaluate the formulas of this file.

Every form takes the student first and the teacher second, carries the factor
T^2 that keeps gradients of the order of those at T = 1, computes in float32 at
least, and stops no gradient: the caller decides. Classes at -inf have
probability 0 and pass no gradient; a position whose classes are all at -inf
has value 0.

Arguments of every form:
  temperature: T, above 0; a number, or an array of one value per position.
  axis: the class axis.
  where: [...], entries that are not true give 0 and pass no gradient,
    whatever is in them.
  soft_cap: logits become cap tanh(logits / cap) before anything else; a number
    for both networks, or a pair (student, teacher) with None for no cap.
  standardize: logits are brought to mean 0 and (unbiased) standard deviation 1
    over the classes before T divides them (https://arxiv.org/abs/2403.01427).
  vocab_size: how many classes are real. Those beyond it are padding rows and
    have probability 0 on both sides; student and teacher may have unequal
    numbers of them.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.softmax import (
  LAST,
  Cap,
  Reduction,
  log_probabilities,
  student_and_teacher,
)
from jaxkd.losses.topk import TopK

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Divergence(abc.ABC):
  """A divergence D(p, q) made of sums over classes."""

  @abc.abstractmethod
  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """What every class adds to each of the sums, [..., C] each."""

  def value(self, *sums: Array) -> Array:
    """The divergence from the sums; the first one if not said otherwise."""
    return sums[0]

  def context(self, log_p: Array, over: Reduction) -> Any:
    """What `terms` has to know of the teacher's whole distribution."""
    del log_p, over

  def evaluate(
    self, log_p: Array, log_q: Array, over: Reduction = LAST
  ) -> Array:
    """D(p, q) of log-probabilities [..., C], as [..., 1]."""
    context = self.context(stop_gradient(log_p), over)
    terms = self.terms(log_p, log_q, context)
    return self.value(*(over.sum(term) for term in terms))

  def __call__(
    self,
    student: Array,
    teacher: Array | TopK,
    *,
    temperature: float | Array = 1.0,
    axis: int = -1,
    where: Array | None = None,
    soft_cap: Cap = None,
    standardize: bool = False,
    vocab_size: int | None = None,
  ) -> Array:
    """T^2 D(p, q) of every position.

    Args:
      student: logits, [..., C].
      teacher: logits, [..., C], or `TopK` of them.
      temperature: this and what follows: see the module.
      axis: the class axis.
      where: [...].
      soft_cap: of the logits.
      standardize: whether to standardize the logits.
      vocab_size: real classes.

    Returns:
      [...], nats times T^2 (total variation: no unit, times T^2).

    Raises:
      ValueError: if shapes or class axes differ, a number is out of range, or
        top-k is asked for what it cannot give.
    """
    if isinstance(teacher, TopK):
      from jaxkd.losses.sparse import topk_divergence

      checks.topk_options(
        self.name, student, axis=axis, standardize=standardize
      )
      return topk_divergence(
        self,
        student,
        teacher,
        temperature=temperature,
        where=where,
        soft_cap=student_and_teacher(soft_cap)[0],
        vocab_size=vocab_size,
      )
    student, teacher = self._real(student, teacher, axis, vocab_size)
    checks.temperature(self.name, temperature, student.shape[:-1])
    log_q, log_p = (
      log_probabilities(
        checks.masked(self.name, logits, where),
        per_class(temperature),
        cap=cap,
        standardized=standardize,
      )
      for logits, cap in zip(
        (student, teacher), student_and_teacher(soft_cap), strict=True
      )
    )
    return scaled(self.evaluate(log_p, log_q)[..., 0], temperature, where)

  def _real(self, student, teacher, axis, vocab_size):
    """The logits of the real classes, checked, classes last."""
    student, teacher = (
      checks.classes(self.name, who, logits, axis, vocab_size)
      for who, logits in (("student", student), ("teacher", teacher))
    )
    checks.logits(self.name, student, teacher, axis)
    return (jnp.moveaxis(logits, axis, -1) for logits in (student, teacher))

  @property
  def name(self) -> str:
    """How errors call it."""
    return type(self).__name__


def per_class(temperature: float | Array) -> float | Array:
  """The temperature, made to broadcast against logits [..., C]."""
  return temperature[..., None] if jnp.ndim(temperature) else temperature


def scaled(
  values: Array, temperature: float | Array, where: Array | None
) -> Array:
  """T^2 times the values, 0 where `where` is not true."""
  values = temperature**2 * values
  return values if where is None else jnp.where(where.astype(bool), values, 0)


@jax.custom_jvp
def relative_entropy(log_a: Array, log_b: Array) -> Array:
  """Terms of KL(a || b), each at least 0: a (log a - log b) - a + b.

  Both sum to 1, so that the last two add nothing to the sum but the precision
  of small divergences: an error common to all log-probabilities cancels.
  """
  in_b = log_b > -jnp.inf
  a, b = exp(log_a), exp(log_b)
  ratio = jnp.where((log_a > -jnp.inf) & in_b, log_a - log_b, -1.0)
  near = jnp.abs(ratio) < 0.5
  close = a * _curvature(jnp.where(near, ratio, 0.0))
  terms = jnp.where(near, close, a * (ratio - 1) + b)
  return jnp.where((a > 0) & ~in_b, jnp.inf, terms)


@relative_entropy.defjvp
def _relative_entropy_jvp(primals, tangents):
  """The slopes are a (log a - log b) and b - a, from what the terms need."""
  log_a, log_b = primals
  in_b = log_b > -jnp.inf
  a, b = exp(log_a), exp(log_b)
  ratio = jnp.where((log_a > -jnp.inf) & in_b, log_a - log_b, 0.0)
  by_a, by_b = a * ratio, jnp.where(in_b, b - a, 0.0)
  terms = relative_entropy(log_a, log_b)
  return terms, by_a * tangents[0] + by_b * tangents[1]


def _curvature(x: Array) -> Array:
  """exp(-x) - 1 + x to float64's precision, for x between -1/2 and 1/2.

  A series: what subtracts loses x's digits, and what calls a function is not
  fused with its neighbours by XLA on a CPU.
  """
  series = jnp.zeros_like(x)
  for n in range(14, 1, -1):
    series = series * x + (-1) ** n / math.factorial(n)
  return series * x**2


def mixture(log_a: Array, log_b: Array, weight: float) -> Array:
  """log(weight a + (1 - weight) b)."""
  if weight in (0, 1):
    return log_a if weight else log_b
  nowhere = jnp.isneginf(log_a) & jnp.isneginf(log_b)
  log_a = jnp.where(nowhere, 0.0, log_a) + jnp.log(weight)
  log_b = jnp.where(nowhere, 0.0, log_b) + jnp.log1p(-weight)
  return jnp.where(nowhere, -jnp.inf, jnp.logaddexp(log_a, log_b))


def exp(log_a: Array) -> Array:
  """Probabilities of log-probabilities, with no gradient at -inf."""
  inside = log_a > -jnp.inf
  return jnp.where(inside, jnp.exp(jnp.where(inside, log_a, 0.0)), 0.0)
