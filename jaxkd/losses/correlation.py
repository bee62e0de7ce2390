"""Losses that compare class columns and batch rows of probabilities.

Notation: p is the teacher, q the student, softmax of logits / T, matrices of N
rows (all positions of the batch that count) and C columns. All losses are
batch level: a row's term depends on the other rows, so that a sharded batch has
to be gathered first.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import Precision, stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.divergence import exp
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import log_probabilities

Array = jax.Array
FLAT = 1e-6  # a vector's spread relative to its length that is rounding


def _rows(
  loss: str,
  student: Array,
  teacher: Array,
  temperature: float,
  where: Array | None,
) -> tuple[Array, Array, Array]:
  """Matrices q and p [N, C], 0 in rows that do not count; which do [N]."""
  checks.logits(loss, student, teacher)
  checks.temperature(loss, temperature)
  keep = jnp.ones(student.shape[:-1]) if where is None else where
  keep = keep.astype(bool).reshape(-1)
  rows = []
  for logits in (student, teacher):
    logits = checks.masked(loss, logits, where)
    probabilities = exp(log_probabilities(logits, temperature))
    probabilities = probabilities.reshape(-1, logits.shape[-1])
    rows.append(jnp.where(keep[:, None], probabilities, 0.0))
  return rows[0], rows[1], keep


def _mean(values: Array, keep: Array) -> Array:
  """Mean of the values that count; 0 if there are none."""
  total = jnp.sum(jnp.where(keep, values, 0.0))
  return total / jnp.maximum(jnp.sum(keep), 1)


def dist(
  student: Array,
  teacher: Array,
  *,
  inter_weight: float = 1.0,
  intra_weight: float = 1.0,
  temperature: float = 1.0,
  eps: float = 1e-8,
  where: Array | None = None,
) -> Array:
  """Pearson correlation of rows and of columns (DIST).

    T^2 [b mean_i (1 - r(p_i, q_i)) + g mean_c (1 - r(p^c, q^c))]

  The first term correlates the classes of an example, the second the examples
  of a class. Where the teacher's row or column has one value only there is
  nothing to correlate with: the term is 0 (1, with no gradient either, in the
  authors' code). The authors' code for dense prediction has T = 1.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    inter_weight: b, of the rows.
    intra_weight: g, of the columns.
    temperature: T, above 0.
    eps: added to the product of the norms, which damps the columns of rare
      classes; 0 is the plain correlation, as some libraries have it.
    where: [...], rows that are not true are left out.

  Returns:
    Scalar, without unit, times T^2.

  Raises:
    ValueError: if the shapes differ or the temperature is not above 0.

  Needs: logits; access white; batch level.
  Checked: hunto/DIST_KD@2418f18;
    skyshoumeng/Label_Assisted_Distillation@cd08406;
    yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Huang et al. (DIST), https://arxiv.org/abs/2205.10536, Eq. 10.
  """
  q, p, keep = _rows("dist", student, teacher, temperature, where)
  rows = _pearson_distance(q, p, jnp.ones_like(q, dtype=bool), eps)
  counted = jnp.broadcast_to(keep, q.T.shape)
  columns = _pearson_distance(q.T, p.T, counted, eps)
  inter, intra = _mean(rows, keep), jnp.mean(columns)
  return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _pearson_distance(q: Array, p: Array, keep: Array, eps: float) -> Array:
  """1 - correlation of q and p [M, N] along the last axis, [M]."""
  q, q_norm, _ = _centred(q, keep)
  p, p_norm, p_flat = _centred(p, keep)
  norms = q_norm * p_norm
  correlation = jnp.sum(q * p, -1) / jnp.where(norms > 0, norms + eps, 1.0)
  return jnp.where(p_flat, 0.0, 1 - correlation)


def _centred(x: Array, keep: Array) -> tuple[Array, Array, Array]:
  """Entries minus their mean, their norm, and whether all are equal."""
  count = jnp.maximum(jnp.sum(keep, -1, keepdims=True), 1)
  mean = jnp.sum(jnp.where(keep, x, 0.0), -1, keepdims=True) / count
  centred = jnp.where(keep, x - mean, 0.0)
  square = jnp.sum(centred**2, -1)
  flat = square <= FLAT**2 * jnp.sum(jnp.where(keep, x, 0.0) ** 2, -1)
  norm = jnp.sqrt(jnp.where(flat, 1.0, square))
  return centred, jnp.where(flat, 0.0, norm), flat


def _gram_gaps(q: Array, p: Array) -> Array:
  """Row sums of the squares of p p^T - q q^T, [N, C] -> [N]."""
  gram_q, gram_p = (
    jnp.matmul(x, x.T, precision=Precision.HIGHEST) for x in (q, p)
  )
  return jnp.sum((gram_p - gram_q) ** 2, -1)


def class_correlation(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Squared difference of the class-by-class matrices of probabilities.

    (1 / C) |p^T p - q^T q|^2 (Frobenius)

  T only softens: there is no T^2. The mean over the C^2 entries is this
  divided by C.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    temperature: T, above 0.
    where: [...], rows that are not true are left out.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the shapes differ or the temperature is not above 0.

  Needs: logits; access white; batch level.
  Checked: Gray-OREO/MST-Distill@093b2fe;
    Jin-Ying/Multi-Level-Logit-Distillation@5ee473f;
    sunshangquan/logit-standardization-KD@f6e5aa5.
  Reference: Jin et al. (Multi-Level Logit Distillation), CVPR 2023.
  """
  q, p, _ = _rows("class_correlation", student, teacher, temperature, where)
  return jnp.mean(_gram_gaps(q.T, p.T))


def batch_correlation(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
) -> Array:
  """Squared difference of the row-by-row matrices of probabilities.

    (1 / N) |p p^T - q q^T|^2 (Frobenius)

  T only softens: there is no T^2. The mean over the N^2 entries is this
  divided by N. Memory is quadratic in N.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    temperature: T, above 0.
    where: [...], rows that are not true are left out.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the shapes differ or the temperature is not above 0.

  Needs: logits; access white; batch level.
  Checked: Gray-OREO/MST-Distill@093b2fe;
    Jin-Ying/Multi-Level-Logit-Distillation@5ee473f;
    sunshangquan/logit-standardization-KD@f6e5aa5.
  Reference: Jin et al. (Multi-Level Logit Distillation), CVPR 2023.
  """
  q, p, keep = _rows("batch_correlation", student, teacher, temperature, where)
  return _mean(_gram_gaps(q, p), keep)


def confidence_masks(
  teacher: Array, *, where: Array | None = None
) -> tuple[Array, Array]:
  """Which rows and classes the teacher is least sure of.

  A row is chosen if its largest probability is at most the median over the
  batch, a class if its total probability is at most the median over the
  classes.

  Args:
    teacher: logits, [..., C].
    where: [...], rows that are not true are left out and not chosen.

  Returns:
    bool [...] and bool [C].

  Reference: Jin et al. (Multi-Level Logit Distillation), CVPR 2023.
  """
  _, p, keep = _rows("confidence_masks", teacher, teacher, 1.0, where)
  p = stop_gradient(p)
  largest = jnp.max(p, -1)
  middle = jnp.nanmedian(jnp.where(keep, largest, jnp.nan))
  rows = keep & (largest <= middle)
  mass = jnp.sum(p, 0)
  return rows.reshape(teacher.shape[:-1]), mass <= jnp.median(mass)


def mlkd(
  student: Array,
  teacher: Array,
  *,
  temperatures: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0),
  masks: Literal["per_sample", "code"] = "per_sample",
  standardize: bool = False,
  where: Array | None = None,
) -> Array:
  """Multi-level logit distillation: instances, classes and batch.

    sum_T [mean_i m_i T^2 KL(p_i || q_i) + (1/C) sum_c n_c |(p^T p - q^T q)_c|^2
           + (1/N) sum_i m_i |(p p^T - q q^T)_i|^2],
    m, n = confidence_masks(t)

  The sum is over the temperatures. `masks="per_sample"` is the formula. The
  authors' code multiplies sums that are reduced already, which leaves the
  factors mean(m) and mean(n) (`masks="code"`). Its whole objective adds the
  cross entropy of both views of the batch and a KL of the strong view.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    temperatures: T, each above 0.
    masks: how the masks act.
    standardize: whether KL sees standardized logits (the others never do).
    where: [...], rows that are not true are left out.

  Returns:
    Scalar; nats times T^2 for its first part.

  Raises:
    ValueError: if the shapes differ, a temperature is not above 0, or `masks`
      is neither of its values.

  Needs: logits; access white; batch level.
  Checked: sunshangquan/logit-standardization-KD@f6e5aa5.
  Reference: Jin et al. (Multi-Level Logit Distillation), CVPR 2023.
  """
  checks.one_of("mlkd", "masks", masks, ("per_sample", "code"))
  _rows("mlkd", student, teacher, 1.0, where)  # refuses in the name of mlkd
  chosen, classes = confidence_masks(teacher, where=where)
  chosen, total = chosen.reshape(-1), 0.0
  for temperature in temperatures:
    q, p, keep = _rows("mlkd", student, teacher, temperature, where)
    instances = kl(
      student,
      teacher,
      temperature=temperature,
      standardize=standardize,
      where=where,
    ).reshape(-1)
    rows = instances + _gram_gaps(q, p)
    columns = _gram_gaps(q.T, p.T)
    if masks == "code":
      total += _mean(chosen, keep) * _mean(rows, keep)
      total += jnp.mean(classes) * jnp.mean(columns)
    else:
      total += _mean(chosen * rows, keep) + jnp.mean(classes * columns)
  return total
