"""Losses of the order of the classes, and a measure of it.

Notation: s are the student's logits, t the teacher's, pi a ranking of the
classes, the best first: pi_1 is the class that comes first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.divergence import exp
from jaxkd.losses.logits import kept, kept_labels
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array
ABSENT = -1e30  # the logit of a class at -inf: below all others, but a number


def list_mle(
  student: Array,
  ranking: Array,
  *,
  weights: Array | None = None,
  where: Array | None = None,
) -> Array:
  """Negative log-likelihood of a ranking under the Plackett-Luce model.

    sum_k w_k [log sum_{l >= k} exp(s_{pi_l}) - s_{pi_k}]

  The classes are chosen one after the other, each by a softmax over those that
  are left; w weighs the choices. Convex in s and blind to a constant added to
  it. w = (1, 0, ..., 0) is the cross entropy of the first class, w_k = 2^(C-k)
  - 1 the position-aware P-ListMLE.

  Args:
    student: logits s, [..., C]; a class at -inf counts as far below all others.
    ranking: pi, integers [..., C], every class once.
    weights: w, [..., C] in the order of the ranking; 1 if not given.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats.

  Raises:
    ValueError: if the shapes differ or the ranking has no integers.

  Needs: logits; access text; per example.
  Checked: formula.
  Reference: Xia et al. (ListMLE), ICML 2008,
    https://doi.org/10.1145/1390156.1390306.
  """
  checks.same("list_mle", student=student, ranking=ranking)
  checks.labels("list_mle", ranking, student.shape)
  s = at_least_float32(checks.masked("list_mle", student, where))
  s = jnp.where(jnp.isneginf(s), ABSENT, s)
  if where is not None:
    ranking = jnp.where(where.astype(bool)[..., None], ranking, 0)
  s = jnp.take_along_axis(s, ranking, axis=-1)
  costs = jax.lax.cumlogsumexp(s, axis=s.ndim - 1, reverse=True) - s
  if weights is not None:
    checks.same("list_mle", student=student, weights=weights)
    costs = checks.masked("list_mle", weights, where) * costs
  return kept(jnp.sum(costs, -1), where)


def label_first_ranking(teacher: Array, labels: Array) -> Array:
  """The label, then the other classes by descending teacher logit.

  Args:
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].

  Returns:
    int32 [..., C], the best class first; ties in the order of the classes.

  Raises:
    ValueError: if the labels do not fit the logits.

  Reference: Bassam et al. (PLD), https://arxiv.org/abs/2506.12542, App. C.
  """
  checks.white("label_first_ranking", teacher)
  checks.labels("label_first_ranking", labels, teacher.shape[:-1])
  is_label = jax.nn.one_hot(labels, teacher.shape[-1], dtype=bool)
  key = jnp.where(is_label, jnp.inf, at_least_float32(teacher))
  return jnp.argsort(-key, axis=-1).astype(jnp.int32)


def plackett_luce(
  student: Array,
  teacher: Array,
  labels: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """List-wise distillation of the label and the teacher's order (PLD).

    sum_k p_{pi_k} [log sum_{l >= k} exp(s_{pi_l}) - s_{pi_k}],
    p = softmax(t / T), pi = label_first_ranking(t, y)

  It stands in the place of cross entropy and distillation together. T acts on
  the weights p alone and there is no T^2. The first step has the weight of the
  label, which is small where the teacher is wrong.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    labels: integers in 0..C-1, [...].
    temperature: T, above 0.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats.

  Raises:
    ValueError: if shapes differ, labels are no integers, or T is not above 0.

  Needs: logits, labels; access white; per example.
  Checked: formula.
  Reference: Bassam et al. (PLD), https://arxiv.org/abs/2506.12542, App. C.
  """
  name = "plackett_luce"
  checks.logits(name, student, teacher)
  checks.temperature(name, temperature)
  labels = kept_labels(name, labels, student, where)
  teacher = checks.masked(name, teacher, where)
  ranking = label_first_ranking(teacher, labels)
  p = exp(log_probabilities(teacher, temperature))
  weights = jnp.take_along_axis(p, ranking, axis=-1)
  return list_mle(student, ranking, weights=weights, where=where)


def kendall_tau(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """Kendall's tau-b of the order of the classes: agreement, not a loss.

    (concordant - discordant) / sqrt((n - ties_student) (n - ties_teacher)),
    over the n = C (C - 1) / 2 pairs of classes

  1 for one order, -1 for the reverse; 0 if a row has one value only. It has no
  gradient. Memory is quadratic in C.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    where: [...], entries that are not true give 0.

  Returns:
    [...], -1 to 1, float32.

  Raises:
    ValueError: if the shapes differ.

  Reference: Kendall, Biometrika 33 (1945), https://doi.org/10.1093/biomet/33.3.239.
  """
  checks.logits("kendall_tau", student, teacher)
  a, b = (
    _pair_signs(checks.masked("kendall_tau", logits, where))
    for logits in (student, teacher)
  )
  agreement = jnp.sum(a * b, (-2, -1))
  pairs = jnp.sum(a**2, (-2, -1)) * jnp.sum(b**2, (-2, -1))
  root = jnp.sqrt(jnp.maximum(pairs, 1.0))
  return kept(jnp.where(pairs > 0, agreement / root, 0.0), where)


def _pair_signs(logits: Array) -> Array:
  """1, 0 or -1 of every ordered pair of classes, [..., C, C]."""
  first, second = logits[..., :, None], logits[..., None, :]
  above, below = first > second, first < second
  return above.astype(jnp.float32) - below.astype(jnp.float32)
