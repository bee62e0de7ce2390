"""Losses that tell an example's own counterpart from all others, and rankings.

Notation: s_i, t_i the student's and the teacher's embedding of example i, tau
the temperature. None of these losses has a factor tau^2: tau is the width of a
similarity here, not one of two softened distributions. Losses of a batch need
all of it: sharded over devices, XLA gathers the embeddings.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks, rows
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def cosine_distance(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """One minus the cosine of student and teacher.

    1 - cos(s_i, t_i)

  The cosine with a zero vector is 0. PRORec reports it beside its InfoNCE.

  Args:
    student: embeddings, [B, ...].
    teacher: embeddings, [B, ...], as wide.
    where: [B], examples that count.

  Returns:
    [B], 0 to 2.

  Raises:
    ValueError: if the shapes differ.

  Needs: features; access white; per example.
  Checked: formula.
  Reference: Nguyen and Bai, https://doi.org/10.1007/978-3-642-19309-5_55.
  """
  student, teacher, keep = rows.pair("cosine_distance", student, teacher, where)
  cosines = jnp.sum(rows.unit(student) * rows.unit(teacher), axis=1)
  return keep * (1 - cosines)


def _own_column(scores: Array, candidates: Array) -> Array:
  """-log softmax_j(scores_ij) at j = i, over the candidates of row i."""
  scores = jnp.where(candidates, scores, -jnp.inf)
  return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)


def info_nce(
  student: Array,
  teacher: Array,
  *,
  temperature: float | Array = 0.07,
  symmetric: bool = False,
  groups: Array | None = None,
  where: Array | None = None,
) -> Array:
  """InfoNCE: each student finds its own teacher among those of the batch.

    mean_i -log exp(cos(s_i, t_i) / tau) / sum_j exp(cos(s_i, t_j) / tau)

  With `symmetric` half of it, and half of the same with student and teacher
  exchanged, which is the loss of CLIP (its logit scale is 1 / tau). The sum
  over j leaves out the other examples of i's group, such as copies of one item
  or examples of one class, which are no negatives. It is least, though not 0,
  where own counterparts coincide and all others are far apart.

  Args:
    student: embeddings, [B, ...].
    teacher: embeddings, [B, ...], as wide.
    temperature: tau, above 0; an array if it is learned.
    symmetric: whether teachers look for their students as well.
    groups: integers, [B], equal for examples that are no negatives.
    where: [B], examples that count.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes differ, groups are no integers, or tau is not
      above 0.

  Needs: features; access white; batch level.
  Checked: formula.
  Reference: van den Oord et al., https://arxiv.org/abs/1807.03748, Eq. 4; CLIP:
    Radford et al., https://arxiv.org/abs/2103.00020, Fig. 3.
  """
  student, teacher, keep = rows.pair("info_nce", student, teacher, where)
  checks.temperature("info_nce", temperature)
  scores = rows.unit(student) @ rows.unit(teacher).T / temperature
  own = jnp.eye(len(keep), dtype=bool)
  candidates = jnp.broadcast_to(keep[None] > 0, own.shape)
  if groups is not None:
    checks.labels("info_nce", groups, keep.shape)
    candidates &= groups[:, None] != groups[None]
  values = _own_column(scores, candidates | own)
  if symmetric:
    values = (values + _own_column(scores.T, candidates | own)) / 2
  return rows.mean(values, keep)


def nt_xent(
  first: Array,
  second: Array,
  *,
  temperature: float | Array = 0.5,
  where: Array | None = None,
) -> Array:
  """NT-Xent: two views of an example find each other among all 2 B views.

    mean_a -log exp(cos(z_a, z_b) / tau) / sum_{j != a} exp(cos(z_a, z_j) / tau)

  The mean is over the 2 B views a, b is the other view of a's example. KD3
  takes tau = 0.3 and the embeddings of one network on clean and mixed images.

  Args:
    first: embeddings of one view, [B, ...].
    second: embeddings of the other view, [B, ...], as wide.
    temperature: tau, above 0.
    where: [B], examples that count.

  Returns:
    Scalar, nats; 0 for one example.

  Raises:
    ValueError: if the shapes differ, or tau is not above 0.

  Needs: features; access white; batch level.
  Checked: tangjialiang97/KD3@91e2d4c.
  Reference: Chen et al. (SimCLR), https://arxiv.org/abs/2002.05709, Eq. 1.
  """
  first, second, keep = rows.pair("nt_xent", first, second, where)
  checks.temperature("nt_xent", temperature)
  z = rows.unit(jnp.concatenate([first, second]))
  scores = z @ z.T / temperature
  twice = jnp.concatenate([keep, keep])
  itself = jnp.eye(len(z), dtype=bool)
  partner = jnp.roll(itself, len(first), axis=1)
  candidates = ((twice[None] > 0) | partner) & ~itself
  # Columns are turned by half so that the partner of view a is column a.
  values = _own_column(
    jnp.roll(scores, len(first), axis=1),
    jnp.roll(candidates, len(first), axis=1),
  )
  return rows.mean(values, twice)


def hard_negatives(scores: Array, positive: Array, count: int) -> Array:
  """The candidates that score best without being right, best first.

  Args:
    scores: student's similarities of queries and candidates, [B, N].
    positive: which candidates are right, bool, [B, N].
    count: K, 1 to N.

  Returns:
    int32 [B, K]; no gradient passes through the choice.

  Raises:
    ValueError: if the shapes differ, or count is not in 1 to N.
  """
  checks.same("hard_negatives", scores=scores, positive=positive)
  checks.between("hard_negatives", "count", count, 1, scores.shape[1])
  scores = jnp.where(positive.astype(bool), -jnp.inf, stop_gradient(scores))
  return jax.lax.top_k(scores, count)[1]


def ranking_factors(scores: Array) -> Array:
  """Factors of the Plackett-Luce likelihood of an order, [B, K] -> [B, K].

    -log exp(x_j) / sum_{k >= j} exp(x_k)

  Args:
    scores: x, [B, K], in the order whose likelihood is asked for.

  Returns:
    [B, K], nats; 0 in the last column.
  """
  return jax.lax.cumlogsumexp(scores, axis=1, reverse=True) - scores


def partial_ranking(
  student: Array,
  teacher: Array,
  *,
  threshold: float = 0.1,
  temperature: float | Array = 0.07,
  reduction: Literal["sum", "mean"] = "sum",
  where: Array | None = None,
) -> Array:
  """Partial ranking of hard negatives: the teacher's order of the valid ones.

    -sum_{j <= J} log exp(x_j / tau) / sum_{k >= j} exp(x_k / tau),
    x in the order of falling teacher scores, J = how many reach the threshold

  A Plackett-Luce likelihood cut off after the candidates that the teacher
  takes seriously; the rest only stand in denominators. The teacher scores the
  K candidates that `hard_negatives` found, so that it is never run on all
  pairs. With the threshold below all scores it is ListMLE. No gradient passes
  through the teacher's scores. The paper's rule for J is not public.

  Args:
    student: similarities x of a query and its candidates, [B, K].
    teacher: scores of the same pairs, [B, K].
    threshold: delta, least score of a valid candidate.
    temperature: tau, above 0.
    reduction: sum over j, or its mean over the J of each query.
    where: [B], queries that count.

  Returns:
    [B], nats; 0 where no candidate is valid.

  Raises:
    ValueError: if the shapes differ, tau is not above 0, or the reduction is
      not known.

  Needs: logits (similarities of pairs); access topk; per example.
  Checked: formula.
  Reference: Chen et al. (CPRD), https://arxiv.org/abs/2407.07479; the formula
    as quoted by others, there is no released code.
  """
  name = "partial_ranking"
  checks.rank(name, "student", student, "B K")
  checks.same(name, student=student, teacher=teacher)
  checks.temperature(name, temperature)
  checks.one_of(name, "reduction", reduction, ("sum", "mean"))
  keep = rows.counted(name, where, len(student))
  student = rows.flat(student, keep) / temperature
  teacher = stop_gradient(rows.flat(teacher, keep))
  order = jnp.argsort(-teacher, axis=1, stable=True)
  scores, theirs = (
    jnp.take_along_axis(x, order, axis=1) for x in (student, teacher)
  )
  valid = (theirs >= threshold) & (keep[:, None] > 0)
  values = jnp.sum(jnp.where(valid, ranking_factors(scores), 0.0), axis=1)
  if reduction == "sum":
    return values
  return values / jnp.maximum(jnp.sum(valid, axis=1), 1)


def low_rank_similarity(
  diagonal: Array, left: Array, right: Array, *, scale: float = 1.0
) -> Array:
  """Learned similarities of N pairs, in 2 N r + N numbers.

    diag(a) + (scale / r) L R^T

  Args:
    diagonal: a, [N]; ones at the start.
    left: L, [N, r]; normal at the start.
    right: R, [N, r]; zeros at the start, so that only pairs are similar.
    scale: alpha.

  Returns:
    [N, N]; rows of all three arrays at an index are those of its mini-batch.

  Raises:
    ValueError: if the shapes do not fit.

  Reference: Xu et al. (LoRS), https://arxiv.org/abs/2406.03793.
  """
  checks.same("low_rank_similarity", left=left, right=right)
  checks.same("low_rank_similarity", diagonal=diagonal, left=left[:, 0])
  diagonal, left, right = map(at_least_float32, (diagonal, left, right))
  return jnp.diag(diagonal) + scale / left.shape[1] * left @ right.T
