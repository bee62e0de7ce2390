"""Relations between the examples of a batch: RKD, CC, PKT.

Notation: s_i, t_i the student's and the teacher's features of example i, of n
examples that count. All losses of this file are scalars of the whole batch:
sharded over devices, they need the features of all of them, which XLA gathers.
Unless said otherwise the features have any shape [B, ...], flattened to rows,
and student and teacher need not be as wide as each other.
"""

import jax
import jax.numpy as jnp

from jaxkd.losses import checks, rows

Array = jax.Array


def _smooth_l1(x: Array) -> Array:
  size = jnp.abs(x)
  return jnp.where(size < 1, 0.5 * x**2, size - 0.5)


def pairwise_distances(x: Array, *, squared: bool = False) -> Array:
  """Euclidean distances |x_i - x_j| of rows, exactly 0 for equal ones.

  Args:
    x: [B, D].
    squared: whether to leave out the square root.

  Returns:
    [B, B].
  """
  square = rows.squared_distances(x)
  return square if squared else rows.root(square)


def rkd_distance(
  student: Array,
  teacher: Array,
  *,
  squared: bool = False,
  where: Array | None = None,
) -> Array:
  """Relational distillation of distances.

    mean_ij h(|s_i - s_j| / m_S - |t_i - t_j| / m_T),
    m = mean distance of two different examples,
    h(x) = x^2 / 2 for |x| < 1, |x| - 1/2 beyond

  The outer mean is over all n^2 pairs, i = j included. Two examples or fewer
  give 0.

  Args:
    student: features, [B, ...].
    teacher: features, [B, ...].
    squared: whether squares of distances take their place.
    where: [B], examples that count.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the batches differ.

  Needs: features; access white; batch level.
  Checked: Gray-OREO/MST-Distill@093b2fe; megvii-research/mdistiller@a08d46f.
  Reference: Park et al., https://arxiv.org/abs/1904.05068.
  """
  *both, keep = rows.both("rkd_distance", student, teacher, where)
  other = rows.pairs(keep)
  ours, theirs = (
    rows.over(distance, rows.mean(distance, other))
    for distance in (pairwise_distances(x, squared=squared) for x in both)
  )
  return rows.mean(_smooth_l1(ours - theirs), keep[:, None] * keep[None])


def _cosines_at(i: Array, x: Array) -> Array:
  """Cosine of the angle x_j - x_i - x_k of all j and k, [B, B]."""
  # A compiled x_i - x_i may be rounding noise, which `unit` would blow up.
  itself = (jnp.arange(len(x)) == i)[:, None]
  towards = rows.unit(jnp.where(itself, 0.0, x - x[i][None]))
  return towards @ towards.T


def rkd_angle(
  student: Array,
  teacher: Array,
  *,
  chunk: int = 64,
  where: Array | None = None,
) -> Array:
  """Relational distillation of angles.

    mean_ijk h(cos(s_j - s_i, s_k - s_i) - cos(t_j - t_i, t_k - t_i)),
    h(x) = x^2 / 2 for |x| < 1, |x| - 1/2 beyond

  The mean is over all n^3 triples; the cosine with a vector of length 0 is 0.
  The work is O(B^3 + B^2 D). Memory is that of `chunk` corners i at a time,
  chunk (B^2 + B D) numbers, in the gradient as well: their cosines are
  computed again there when the batch is larger than the chunk.

  Args:
    student: features, [B, ...].
    teacher: features, [B, ...].
    chunk: corners of angles at a time, at least 1.
    where: [B], examples that count.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the batches differ, or the chunk is below 1.

  Needs: features; access white; batch level.
  Checked: Gray-OREO/MST-Distill@093b2fe; megvii-research/mdistiller@a08d46f.
  Reference: Park et al., https://arxiv.org/abs/1904.05068.
  """
  ours, theirs, keep = rows.both("rkd_angle", student, teacher, where)
  checks.positive("rkd_angle", "chunk", chunk)
  together = keep[:, None] * keep[None]

  def corner(i: Array) -> Array:
    gap = _smooth_l1(_cosines_at(i, ours) - _cosines_at(i, theirs))
    return jnp.sum(together * gap)

  corners = jnp.arange(len(keep))
  if len(keep) <= chunk:
    sums = jax.vmap(corner)(corners)
  else:
    sums = jax.lax.map(jax.checkpoint(corner), corners, batch_size=chunk)
  return rows.over(jnp.sum(keep * sums), jnp.sum(keep) ** 3)


def rkd(
  student: Array,
  teacher: Array,
  *,
  distance_weight: float = 1.0,
  angle_weight: float = 2.0,
  chunk: int = 64,
  where: Array | None = None,
) -> Array:
  """Relational knowledge distillation: distances and angles.

    distance_weight rkd_distance + angle_weight rkd_angle

  The defaults are the paper's; mdistiller and RepDistiller use 25 and 50.

  Args:
    student: features, [B, ...].
    teacher: features, [B, ...].
    distance_weight: factor of `rkd_distance`.
    angle_weight: factor of `rkd_angle`.
    chunk: of `rkd_angle`.
    where: [B], examples that count.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the batches differ, or the chunk is below 1.

  Needs: features; access white; batch level.
  Checked: Gray-OREO/MST-Distill@093b2fe; megvii-research/mdistiller@a08d46f;
    yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Park et al., https://arxiv.org/abs/1904.05068.
  """
  distance = rkd_distance(student, teacher, where=where)
  angle = rkd_angle(student, teacher, chunk=chunk, where=where)
  return distance_weight * distance + angle_weight * angle


def _congruence(ours: Array, theirs: Array, keep: Array) -> Array:
  """|K_S - K_T|_F / n^2 of kernel matrices."""
  together = keep[:, None] * keep[None]
  gap = rows.root(jnp.sum(together * (ours - theirs) ** 2))
  return rows.over(gap, jnp.sum(keep) ** 2)


def correlation_congruence(
  student: Array,
  teacher: Array,
  *,
  gamma: float = 0.4,
  order: int = 2,
  where: Array | None = None,
) -> Array:
  """Correlation congruence with a Gaussian kernel on rows of length 1.

    |K_S - K_T|_F / n^2,
    K_ij = exp(-2 gamma) sum_{p=0..order} (2 gamma <x_i, x_j>)^p / p!

  K is the Taylor series of exp(-gamma |x_i - x_j|^2), and the norm is not
  squared (torchdistill). What RepDistiller calls CC is another loss,
  `correlated_differences`.

  Args:
    student: features, [B, ...].
    teacher: features, [B, ...].
    gamma: inverse width of the kernel, above 0.
    order: highest power of the series, at least 1.
    where: [B], examples that count.

  Returns:
    Scalar, without unit.

  Raises:
    ValueError: if the batches differ, or a number is out of range.

  Needs: features; access white; batch level.
  Checked: yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Peng et al., https://arxiv.org/abs/1904.01802.
  """
  *both, keep = rows.both("correlation_congruence", student, teacher, where)
  checks.positive("correlation_congruence", "gamma", gamma)
  checks.positive("correlation_congruence", "order", order)

  def kernel(x: Array) -> Array:
    x = rows.unit(x)
    cosines = x @ x.T
    term = total = jnp.ones_like(cosines)
    for p in range(1, order + 1):
      term = term * (2 * gamma / p) * cosines
      total = total + term
    return jnp.exp(-2 * gamma) * total

  return _congruence(*map(kernel, both), keep)


def gram_congruence(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """Correlation congruence with the bilinear kernel, on the rows as they are.

    |S S^T - T T^T|_F / n^2

  The norm is not squared (torchdistill).

  Args:
    student: features, [B, ...].
    teacher: features, [B, ...].
    where: [B], examples that count.

  Returns:
    Scalar, unit of the features squared.

  Raises:
    ValueError: if the batches differ.

  Needs: features; access white; batch level.
  Checked: yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Peng et al., https://arxiv.org/abs/1904.01802.
  """
  ours, theirs, keep = rows.both("gram_congruence", student, teacher, where)
  return _congruence(ours @ ours.T, theirs @ theirs.T, keep)


def correlated_differences(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """Products of the differences of neighbours in the batch.

    mean_{i < n} sum_d |s_i - t_i|_d |s_{i+1} - t_{i+1}|_d

  What RepDistiller runs for CC, on linear embeddings of student and teacher;
  it contains no correlation of examples. The order of the batch matters, and
  one example gives 0.

  Args:
    student: embeddings, [B, ...].
    teacher: embeddings, [B, ...], as wide.
    where: [B], examples that count; neighbours are those without the others.

  Returns:
    Scalar, unit of the embeddings squared.

  Raises:
    ValueError: if the shapes differ.

  Needs: features; access white; batch level.
  Checked: HobbitLong/RepDistiller@b84f547.
  Reference: Peng et al., https://arxiv.org/abs/1904.01802; RepDistiller's form.
  """
  ours, theirs, keep = rows.pair(
    "correlated_differences", student, teacher, where
  )
  order = rows.compacted(keep)
  gap, keep = (ours - theirs)[order], keep[order]
  gap = gap * jnp.sign(gap)  # gradient 0 at 0, where features of ReLUs meet
  return rows.mean(jnp.sum(gap[1:] * gap[:-1], axis=-1), keep[1:])


def pkt(
  student: Array,
  teacher: Array,
  *,
  eps: float = 1e-7,
  where: Array | None = None,
) -> Array:
  """Probabilistic knowledge transfer: neighbourhoods as distributions.

    mean_ij P_T ln((P_T + eps) / (P_S + eps)),
    P_ij = (cos(x_i, x_j) + 1) / sum_k (cos(x_i, x_k) + 1)

  The mean is over all n^2 pairs, i = j included, so that the divergence of a
  row is divided by n.

  Args:
    student: features, [B, ...].
    teacher: features, [B, ...].
    eps: keeps opposite examples, with P = 0, finite; as in the authors' code.
    where: [B], examples that count.

  Returns:
    Scalar, nats / n.

  Raises:
    ValueError: if the batches differ.

  Needs: features; access white; batch level.
  Checked: megvii-research/mdistiller@a08d46f.
  Reference: Passalis and Tefas, https://arxiv.org/abs/1803.10837.
  """
  *both, keep = rows.both("pkt", student, teacher, where)
  checks.positive("pkt", "eps", eps)
  together = keep[:, None] * keep[None]

  def neighbours(x: Array) -> Array:
    x = rows.unit(x)
    near = together * (jnp.maximum(x @ x.T, -1.0) + 1) / 2
    return rows.over(near, jnp.sum(near, axis=1, keepdims=True))

  q, p = map(neighbours, both)
  return rows.mean(p * (jnp.log(p + eps) - jnp.log(q + eps)), together)
