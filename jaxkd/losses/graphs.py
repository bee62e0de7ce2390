"""Graphs of tokens, of channels and of classes.

Notation: s_i, t_i the student's and the teacher's vector of node i, of n nodes
that count. A graph is a matrix [n, n]; each network builds its own.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxkd.losses import checks, rows
from jaxkd.losses.divergence import Divergence
from jaxkd.losses.relative_entropy import reverse_kl
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def nearest_neighbours(
  nodes: Array, neighbours: int, keep: Array | None = None
) -> Array:
  """Which nodes are among the nearest of which: bool [n, n], a constant.

    M_ij = i is one of the nearest neighbours of j, other than j

  Args:
    nodes: [n, D].
    neighbours: how many a node has; fewer where there are fewer other nodes.
    keep: [n], 1 for nodes that take part.

  Returns:
    [n, n], not symmetric.
  """
  count = len(nodes)
  keep = jnp.ones(count) if keep is None else keep
  square = jax.lax.stop_gradient(rows.squared_distances(nodes))
  far = jnp.where(rows.pairs(keep) > 0, square, jnp.inf)
  _, nearest = jax.lax.top_k(-far, min(neighbours, count))
  chosen = jax.nn.one_hot(nearest, count, axis=0).sum(-1) > 0  # [i, j]
  return chosen & jnp.isfinite(far)


def token_graph(
  student: Array,
  teacher: Array,
  *,
  neighbours: int = 8,
  variance: float = 1.0,
  divergence: Divergence = reverse_kl,
  student_edges: Literal["own", "teacher"] = "own",
  where: Array | None = None,
) -> Array:
  """Graph of tokens of the whole batch: the edges of every node (TRG, local).

    mean_i D(softmax_j A^T_ij, softmax_j A^S_ij),
    A_ij = exp(-|x_i - x_j|^2 / (2 variance)) if x_i is among the nearest
    neighbours of x_j, else 0

  Nodes are tokens of all images of the batch, the same places in both
  networks. The softmax is over all n nodes, so that absent edges count as
  exp(0). Which edges there are is a constant of the gradient: a student with
  edges of its own cannot be moved to make one that it lacks. The paper sums
  over the nodes. With A in [0, 1] the loss is small: weigh it by its gradient.

  Args:
    student: tokens, [n, D].
    teacher: tokens, [n, D'].
    neighbours: k, at least 1.
    variance: sigma, above 0, in squared distance; the median squared distance
      of the teacher's tokens is a start.
    divergence: D of teacher and student; KL(student || teacher) as printed.
    student_edges: whose neighbours the student's graph has.
    where: [n], tokens that count.

  Returns:
    Scalar, nats.

  Raises:
    ValueError: if the numbers of tokens differ or a number is out of range.

  Needs: tokens; access white; batch level.
  Checked: formula.
  Reference: Zhang et al. (TRG), https://arxiv.org/abs/2306.12442; formulas as
    told by others, there is no released code.
  """
  name = "token_graph"
  *both, keep = rows.both(name, student, teacher, where)
  checks.positive(name, "neighbours", neighbours)
  checks.positive(name, "variance", variance)
  checks.one_of(name, "student_edges", student_edges, ("own", "teacher"))
  edges = [nearest_neighbours(x, neighbours, keep) for x in both]
  if student_edges == "teacher":
    edges[0] = edges[1]
  ours, theirs = (
    jnp.where(
      keep[None] > 0,
      jnp.where(edge, jnp.exp(-rows.squared_distances(x) / 2 / variance), 0),
      -jnp.inf,
    )
    for x, edge in zip(both, edges, strict=True)
  )
  return rows.mean(divergence(ours, theirs, where=keep), keep)


def contextual_relations(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """Similarities of the tokens inside each image (TRG, inner).

    mean_ij (C^S_ij - C^T_ij)^2, C = softmax_j(<x_i, x_j> / sqrt(D))

  Args:
    student: tokens, [B, N, D].
    teacher: tokens, [B, N, D'].
    where: [B], examples that count.

  Returns:
    [B], without unit.

  Raises:
    ValueError: if the batches or the numbers of tokens differ.

  Needs: tokens; access white; per example.
  Checked: formula.
  Reference: Zhang et al. (TRG), https://arxiv.org/abs/2306.12442.
  """
  name = "contextual_relations"
  checks.rank(name, "student", student, "B N D")
  checks.rank(name, "teacher", teacher, "B N D")
  checks.same(name, student=student[..., 0], teacher=teacher[..., 0])
  keep = rows.counted(name, where, len(student))

  def context(x: Array) -> Array:
    x = jnp.where(keep[:, None, None] > 0, at_least_float32(x), 0.0)
    products = jnp.einsum("bnd,bmd->bnm", x, x)
    return jax.nn.softmax(products / x.shape[-1] ** 0.5, axis=-1)

  return jnp.mean((context(student) - context(teacher)) ** 2, axis=(1, 2))


def channel_correlation(student: Array, teacher: Array) -> Array:
  """Correlation of channels over places, which may differ in number.

    sum_cd (E^S_cd - E^T_cd)^2 / C, E_c = row c of f f^T, divided by its length

  Args:
    student: [..., P, C].
    teacher: [..., P', C].

  Returns:
    [...].
  """

  def relation(x: Array) -> Array:
    return rows.unit(jnp.swapaxes(x, -1, -2) @ x)

  gap = relation(student) - relation(teacher)
  return jnp.sum(gap**2, axis=(-1, -2)) / student.shape[-1]


def classifier_gradient(
  features: Array, logits: Array, labels: Array, keep: Array | None = None
) -> Array:
  """Gradient of the mean cross entropy in a linear classifier's kernel.

    G = (softmax(z) - onehot(y))^T f / n

  Args:
    features: f, what the classifier reads, [B, D].
    logits: z, [B, C].
    labels: y, integers, [B].
    keep: [B], 1 for examples that count.

  Returns:
    [C, D].
  """
  keep = jnp.ones(len(labels)) if keep is None else keep
  wrong = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
  return rows.over((keep[:, None] * wrong).T @ features, jnp.sum(keep))


def semantic_correlation(
  student: Array,
  teacher: Array,
  labels: Array,
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
) -> Array:
  """Channel correlations of the classifiers' gradients (DisWOT, semantic).

    mean_k sum_cd (E^S_kcd - E^T_kcd)^2 / D,
    E_k = g_k g_k^T with rows of length 1, g_k = row k of
    G = (softmax(z) - onehot(y))^T f / n

  G is the gradient of the mean cross entropy in the kernel of a linear
  classifier on the features f. Row c of E_k is plus or minus g_k / |g_k|, so
  that the value jumps where an entry of g_k changes its sign. DisWOT ranks
  untrained students by minus this loss minus `similarity_preserving` of the
  last maps.

  Args:
    student: logits z, [B, C].
    teacher: logits, [B, C].
    labels: y, integers in 0..C-1, [B].
    student_features: f, [B, D].
    teacher_features: [B, D].
    where: [B], examples that count.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if shapes differ or labels are no integers.

  Needs: logits, labels, features; access white; batch level.
  Checked: lilujunai/DisWOT-CVPR2023@dffe4e6.
  Reference: Dong et al. (DisWOT), https://arxiv.org/abs/2303.15678.
  """
  name = "semantic_correlation"
  checks.logits(name, student, teacher)
  checks.labels(name, labels, student.shape[:-1])
  *features, keep = rows.pair(name, student_features, teacher_features, where)
  logits = (rows.flat(z, keep) for z in (student, teacher))
  labels = jnp.where(keep > 0, labels, 0)
  ours, theirs = (
    classifier_gradient(f, z, labels, keep)[:, None]
    for f, z in zip(features, logits, strict=True)
  )
  return jnp.mean(channel_correlation(ours, theirs))
