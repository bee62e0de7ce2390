"""Losses of an example's candidates, whose first one is right.

Scores [B, K + 1]: y of the student, t of the teacher; the right candidate is in
column 0. `contrastive.hard_negatives` chooses the others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.rows import counted, mean, over
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def _scores(
  loss: str, student: Array, teacher: Array, where: Array | None
) -> tuple[Array, Array, Array]:
  """Checked scores in float32, 0 in rows that do not count; which do."""
  checks.rank(loss, "student", student, "B K+1")
  checks.logits(loss, student, teacher)
  keep = counted(loss, where, len(student))
  student, teacher = (
    at_least_float32(checks.masked(loss, x, where)) for x in (student, teacher)
  )
  return student, teacher, keep


def dynamic_contrastive(
  student: Array,
  teacher: Array,
  *,
  alpha: float = 0.2,
  per_example: bool = True,
  where: Array | None = None,
) -> Array:
  """Score regression where the teacher is certain, self-training elsewhere.

    alpha sum_i w_i mean_k (t_ik - y_ik)^2
    + (1 - alpha) sum_i e_i mean_k BCE(y_ik, [k = 0]),
    e_i = H(softmax t_i) / sum_j H(softmax t_j), w = softmax_i((1 - e_i)^2)

  The weights are the teacher's and constants. In the released code they cancel
  in the first term, which is the plain mean then: `per_example=False`. Its
  temperature cancels too.

  Args:
    student: scores y, [B, K + 1], those of the right candidates first.
    teacher: scores t of the same candidates, [B, K + 1].
    alpha: share of the regression, 0 to 1.
    per_example: whether the regression has the weights w.
    where: [B], examples that are not true are left out.

  Returns:
    Scalar.

  Raises:
    ValueError: if the shapes differ or alpha is out of range.

  Needs: logits; access white; batch level.
  Checked: raojay7/DCD@fbb5ff0.
  Reference: Rao et al. (DCD), https://arxiv.org/abs/2207.01426.
  """
  name = "dynamic_contrastive"
  checks.between(name, "alpha", alpha, 0, 1)
  y, t, keep = _scores(name, student, teacher, where)
  log_p = jax.nn.log_softmax(stop_gradient(t))
  p = jnp.exp(log_p)
  entropy = -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), -1) * keep
  e = over(entropy, jnp.sum(entropy))
  w = keep
  if per_example:
    w = jnp.exp((1 - e) ** 2) * keep  # at most e, so that nothing overflows
  regression = mean(jnp.mean((t - y) ** 2, -1), w)
  right = jnp.zeros_like(y).at[:, 0].set(1.0)
  bce = right * jax.nn.softplus(-y) + (1 - right) * jax.nn.softplus(y)
  own = jnp.sum(e * jnp.mean(bce, -1))
  return alpha * regression + (1 - alpha) * own


def focal_scores(
  student: Array,
  teacher: Array,
  *,
  alpha: float = 0.2,
  where: Array | None = None,
) -> Array:
  """Score regression weighted by how far the student is behind, and its CE.

    alpha mean_i(f_i) mean_ik (t_ik - y_ik)^2 - mean_i log softmax(y_i)_0,
    f_i = 1 - exp(-CE(y_i) / CE(t_i)), a constant

  CE is the cross entropy of the right candidate.

  Args:
    student: scores y, [B, K + 1], those of the right candidates first.
    teacher: scores t of the same candidates, [B, K + 1].
    alpha: weight of the regression, at least 0.
    where: [B], examples that are not true are left out.

  Returns:
    Scalar.

  Raises:
    ValueError: if the shapes differ or alpha is out of range.

  Needs: logits; access white; batch level.
  Checked: raojay7/DCD@fbb5ff0.
  Reference: Rao et al. (DCD), https://arxiv.org/abs/2207.01426, its released
    alternative, after Zhou et al., https://arxiv.org/abs/2102.00650.
  """
  checks.between("focal_scores", "alpha", alpha, 0, float("inf"))
  y, t, keep = _scores("focal_scores", student, teacher, where)
  ours, theirs = (-jax.nn.log_softmax(x)[:, 0] for x in (y, t))
  behind = stop_gradient(ours / (theirs + 1e-7))
  focus = mean(1 - jnp.exp(-behind), keep)
  regression = mean(jnp.mean((t - y) ** 2, -1), keep)
  return alpha * focus * regression + mean(ours, keep)
