"""Losses of scored pairs whose right similarities are soft.

Notation: x [N, M] the student's scores of N images and M texts, scaled cosines
for example, p = sigmoid(x) where scores are read as probabilities; S [N, M]
the target similarities, given or learned (`low_rank_similarity`). All losses
of this file are scalars, and give both x and S a gradient.
"""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, log_softmax

from jaxkd.losses import checks, rows
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def _scores(loss: str, student: Array, teacher: Array) -> tuple[Array, Array]:
  checks.rank(loss, "scores", student, "N M")
  checks.same(loss, scores=student, similarities=teacher)
  return at_least_float32(student), at_least_float32(teacher)


def _cross_entropies(scores: Array, similarities: Array, eps: float) -> Array:
  """-S log(p + eps) - (1 - S) log(1 - p + eps) of every pair."""
  log_p, log_not = log_sigmoid(scores), log_sigmoid(-scores)
  if eps > 0:
    log_p, log_not = (jnp.logaddexp(x, jnp.log(eps)) for x in (log_p, log_not))
  return -similarities * log_p - (1 - similarities) * log_not


def similarity_bce(student: Array, teacher: Array) -> Array:
  """Binary cross entropy of all pairs.

    mean_ij [-S_ij log p_ij - (1 - S_ij) log(1 - p_ij)]

  Args:
    student: scores x, [N, M].
    teacher: similarities S, [N, M], 0 to 1.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes differ.

  Needs: logits (scores of pairs); access white; batch level.
  Checked: zhangxin-xd/RepBlend@4724e63.
  Reference: Xu et al. (LoRS), https://arxiv.org/abs/2406.03793.
  """
  student, teacher = _scores("similarity_bce", student, teacher)
  return jnp.mean(_cross_entropies(student, teacher, 0.0))


def balanced_similarity_bce(
  student: Array, teacher: Array, *, eps: float = 1e-6
) -> Array:
  """Binary cross entropy with as much weight on similar pairs as on others.

    (1/2) sum_{S_ij > 1/2} m_ij / (P + eps)
    + (1/2) sum_{others} m_ij / (N + eps),
    m = -S log(p + eps) - (1 - S) log(1 - p + eps)

  P and N count the pairs above 1/2 and the others; which pairs those are is a
  constant of the gradient. S may leave [0, 1] while it is learned.

  Args:
    student: scores x, [N, M].
    teacher: similarities S, [N, M].
    eps: bounds the logarithms, as in the released code; 0 for none.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes differ.

  Needs: logits (scores of pairs); access white; batch level.
  Checked: zhangxin-xd/RepBlend@4724e63.
  Reference: Xu et al. (LoRS), https://arxiv.org/abs/2406.03793.
  """
  student, teacher = _scores("balanced_similarity_bce", student, teacher)
  values = _cross_entropies(student, teacher, eps)
  halves = []
  for which in (teacher > 0.5, teacher <= 0.5):
    total = jnp.sum(jnp.where(which, values, 0.0))
    halves.append(rows.over(total, jnp.sum(which) + eps))
  return sum(halves) / 2


def soft_info_nce(
  student: Array, teacher: Array, *, normalize: bool = False
) -> Array:
  """InfoNCE in both directions with soft targets.

    -(1/2) mean_i sum_j S_ij log softmax_j(x_ij)
    -(1/2) mean_j sum_i S_ij log softmax_i(x_ij)

  Rows (and columns) of S weigh as much as they sum to; with `normalize` each
  is divided by its sum first, which is the continuously weighted contrastive
  loss, CWCL.

  Args:
    student: scores x, [N, M].
    teacher: similarities S, [N, M].
    normalize: whether rows and columns of S are divided by their sums.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes differ.

  Needs: logits (scores of pairs); access white; batch level.
  Checked: zhangxin-xd/RepBlend@4724e63.
  Reference: Srinivasa et al. (CWCL), https://arxiv.org/abs/2309.14580;
    RepBlend: https://arxiv.org/abs/2505.14705.
  """
  student, teacher = _scores("soft_info_nce", student, teacher)

  def direction(axis: int) -> Array:
    weights = teacher
    if normalize:
      weights = rows.over(weights, jnp.sum(weights, axis=axis, keepdims=True))
    return -jnp.mean(jnp.sum(weights * log_softmax(student, axis), axis=axis))

  return (direction(0) + direction(1)) / 2


def similarity_kl(
  student: Array, teacher: Array, *, sharpness: float = 10.0
) -> Array:
  """KL of scores to sharpened similarities, in both directions.

    (1/2) mean_i KL(softmax_j(sharpness S_ij) || softmax_j(x_ij)) + (1/2) of the
    same over columns

  The released code divides by the number of pairs, not of rows.

  Args:
    student: scores x, [N, M].
    teacher: similarities S, [N, M].
    sharpness: above 0.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the shapes differ, or sharpness is not above 0.

  Needs: logits (scores of pairs); access white; batch level.
  Checked: zhangxin-xd/RepBlend@4724e63.
  Reference: Zhang et al. (RepBlend), https://arxiv.org/abs/2505.14705.
  """
  student, teacher = _scores("similarity_kl", student, teacher)
  checks.positive("similarity_kl", "sharpness", sharpness)
  over_rows, over_columns = (
    jnp.mean(kl(student, sharpness * teacher, axis=axis)) for axis in (1, 0)
  )
  return (over_rows + over_columns) / 2


def similarity_mse(student: Array, teacher: Array) -> Array:
  """Squared error of the pairs' probabilities.

    mean_ij (sigmoid(x_ij) - S_ij)^2

  Args:
    student: scores x, [N, M].
    teacher: similarities S, [N, M].

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the shapes differ.

  Needs: logits (scores of pairs); access white; batch level.
  Checked: zhangxin-xd/RepBlend@4724e63.
  Reference: Zhang et al. (RepBlend), https://arxiv.org/abs/2505.14705.
  """
  student, teacher = _scores("similarity_mse", student, teacher)
  return jnp.mean((jax.nn.sigmoid(student) - teacher) ** 2)
