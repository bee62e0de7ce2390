"""Losses of the maps of several stages, shallow first.

Notation as in `maps`; a stage's map is [B, H, W, C]. The first two losses look
at how one stage leads to the next.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.activations import Stages, as_stages
from jaxkd.losses.maps import (
  adaptive_pool,
  keep_examples,
  mean_of_example,
  norm,
  prepared,
)
from jaxkd.losses.rows import unit

Array = jax.Array


def _flow(bottom: Array, top: Array, how: Literal["mean", "max"]) -> Array:
  """Mean over the places of bottom times top channels, [B, C, D]."""
  sizes = tuple(map(min, bottom.shape[1:-1], top.shape[1:-1]))
  bottom, top = (
    adaptive_pool(x, sizes, how).reshape(len(x), -1, x.shape[-1])
    for x in (bottom, top)
  )
  return jnp.einsum("bnc,bnd->bcd", bottom, top) / bottom.shape[1]


def _consecutive(
  loss: str,
  student: Sequence[Array],
  teacher: Sequence[Array],
  where: Array | None,
  **options: bool,
) -> tuple[list[Array], list[Array]]:
  """Checked stages of both, at least two, left-out examples at 0."""
  lists = as_stages(loss, student=student, teacher=teacher)
  if len(lists[0]) < 2:
    raise ValueError(f"{loss}: 1 stage; expected two or more")
  for s, t in zip(*lists, strict=True):
    checks.rank(loss, "student map", s, "B H W C")
    checks.features(loss, s, t, where, **options)
  return tuple([keep_examples(x, where) for x in maps] for maps in lists)


def fsp(
  student: Sequence[Array],
  teacher: Sequence[Array],
  *,
  convention: Literal["squares", "columns"] = "squares",
  where: Array | None = None,
) -> Array:
  """Flow of solution procedure (FSP): how channels lead to the next stage's.

    sum_i mean_cd (G^S_cd - G^T_cd)^2,  G_cd = (1/n) sum_x f_cx g_dx

  over consecutive stages with channels f_c of the one and g_d of the next; the
  larger map of the two is average-pooled. The convention `columns`
  (torchdistill) sums the norms ||G^S_d - G^T_d||_2 of the columns of a stage's
  channels to the next one's, and pools by the maximum.

  Args:
    student: maps of two or more stages, [B, H, W, C] each.
    teacher: as many, with as many channels.
    convention: see above.
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if numbers of stages, axes, examples or channels differ, or
      there is no such convention.

  Needs: taps of stages; access white; per example.
  Checked: HobbitLong/RepDistiller@b84f547;
    yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Yim et al., A gift from knowledge distillation, CVPR 2017, Eq. 2.
  """
  checks.one_of("fsp", "convention", convention, ("squares", "columns"))
  columns = convention == "columns"
  pairs = _consecutive("fsp", student, teacher, where)
  total = 0.0
  for i in range(len(pairs[0]) - 1):
    ours, theirs = (
      _flow(maps[i], maps[i + 1], "max" if columns else "mean")
      for maps in pairs
    )
    gap = ours - theirs
    if columns:
      total += norm(jnp.swapaxes(gap, 1, 2)).sum(1)
    else:
      total += mean_of_example(gap**2)
  return total


def review_kd(
  student: Stages,
  teacher: Stages,
  *,
  levels: Sequence[int] = (4, 2, 1),
  where: Array | None = None,
) -> Array:
  """Hierarchical context loss (ReviewKD): a map at several resolutions.

    sum_l 2^-l mean (pool_l(f^S) - pool_l(f^T))^2 / sum_l 2^-l

  over l = 0, the whole map, and the levels below its height, each the number
  of places along a side; summed over the stages. The student's maps come
  through `nets.ReviewFusion`, which has read its deeper stages too.

  Args:
    student: [B, H, W, C], or the maps of several stages; [B, C] is one place.
    teacher: the same shapes.
    levels: sizes to which maps are pooled, after the whole map.
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if shapes or numbers of stages differ.

  Needs: maps, taps of stages; access white; per example.
  Checked: megvii-research/mdistiller@a08d46f.
  Reference: Chen et al., https://arxiv.org/abs/2104.09044, Sec. 3.4.
  """
  total = 0.0
  for s, t in zip(
    *as_stages("review_kd", student=student, teacher=teacher), strict=True
  ):
    s, t = (x[:, None, None] if x.ndim == 2 else x for x in (s, t))
    checks.same("review_kd", student=s, teacher=t)
    checks.rank("review_kd", "student map", s, "B H W C")
    s, t = prepared("review_kd", s, t, where)
    gap, height = s - t, s.shape[1]
    value, weight, weights = mean_of_example(gap**2), 1.0, 1.0
    for level in levels:
      if level < height:
        weight /= 2
        weights += weight
        pooled = adaptive_pool(gap, (level, level))
        value += weight * mean_of_example(pooled**2)
    total += value / weights
  return total


@jax.custom_jvp
def _right_singular(matrix: Array) -> tuple[Array, Array]:
  """Singular values [B, r] and right vectors [B, d, r] of [B, n, d]."""
  _, values, vectors = jnp.linalg.svd(matrix, full_matrices=False)
  return values, jnp.swapaxes(vectors, 1, 2)


@_right_singular.defjvp
def _right_singular_jvp(primals, tangents):
  """Their derivative, in which equal singular values turn no vector."""
  (x,), (dx,) = primals, tangents
  s, v = _right_singular(x)
  transposed = jnp.swapaxes(x, 1, 2), jnp.swapaxes(dx, 1, 2)
  change = transposed[1] @ (x @ v) + transposed[0] @ (dx @ v)  # d(x^T x) v
  inside = jnp.swapaxes(v, 1, 2) @ change  # in the basis of v
  square = s[:, None] ** 2
  gap = square - jnp.swapaxes(square, 1, 2)
  least = 1e-5 * square[..., :1]
  ds = jnp.diagonal(inside, axis1=1, axis2=2) * _over(2 * s, 1e-5 * s[:, :1])
  turn = v @ (inside * _over(gap, least))
  return (s, v), (ds, turn + (change - v @ inside) * _over(square, least))


def _over(x: Array, least: Array) -> Array:
  """1 / x, and 0 where |x| is not above `least`."""
  some = jnp.abs(x) > least
  return jnp.where(some, 1 / jnp.where(some, x, 1.0), 0.0)


def _aligned(ours: Array, theirs: Array) -> Array:
  """For each of `theirs`, that of `ours` most parallel to it, same sign."""
  cosine = stop_gradient(jnp.einsum("bdk,bdl->bkl", ours, theirs))
  best = jnp.argmax(jnp.abs(cosine), 1)
  chosen = jax.nn.one_hot(best, ours.shape[-1], axis=1) * jnp.sign(cosine)
  return ours @ chosen


def kdsvd(
  student: Sequence[Array],
  teacher: Sequence[Array],
  *,
  rank: int = 1,
  over: Literal["channels", "columns"] = "channels",
  where: Array | None = None,
) -> Array:
  """Self-supervised distillation by singular vectors (KD-SVD).

    sum_i sum_jkr (R^S_jkr - R^T_jkr)^2,  R_jkr = exp(-(v_jr - w_kr)^2 / 8)

  over consecutive stages, whose right singular vectors v_r and w_r, times the
  teacher's singular values (a unit vector), say what a map does. The student's
  vectors are those of its first rank + 3 most parallel to the teacher's, sign
  included. `over` says which vectors: of the matrix of places by channels
  (RepDistiller), or of channels and rows by columns (mdistiller). The value
  depends on the sign that the decomposition gives the teacher's vectors, as in
  the code, so that it is not the same on every machine. Vectors of equal
  singular values are any basis: the gradient does not turn them.

  Args:
    student: maps of two or more stages, [B, H, W, C] each.
    teacher: as many, with as many channels, or as wide.
    rank: k, how many singular vectors.
    over: see above.
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if numbers of stages, axes, examples, or the vectors' sizes
      differ, or an option has no such value.

  Needs: taps of stages; access white; per example.
  Checked: HobbitLong/RepDistiller@b84f547; megvii-research/mdistiller@a08d46f.
  Reference: Lee, Kim and Song, https://arxiv.org/abs/1807.06819.
  """
  checks.positive("kdsvd", "rank", rank)
  checks.one_of("kdsvd", "over", over, ("channels", "columns"))
  channels = over == "channels"
  maps = _consecutive("kdsvd", student, teacher, where, channels=channels)
  total, before = 0.0, None
  for s, t in zip(*maps, strict=True):
    if not channels:
      s, t = (jnp.moveaxis(x, -1, 1) for x in (s, t))
    if s.shape[-1] != t.shape[-1]:
      raise ValueError(
        f"kdsvd: {s.shape[-1]} and {t.shape[-1]} columns of a student's and a "
        "teacher's map; expected as many"
      )
    s, t = (x.reshape(len(x), -1, x.shape[-1]) for x in (s, t))
    values, theirs = (x[..., :rank] for x in _right_singular(t))
    ours = _aligned(_right_singular(s)[1][..., : rank + 3], theirs)
    now = [v * unit(values)[:, None] for v in (ours, theirs)]
    if before is not None:
      ours, theirs = (
        jnp.exp(-((v[:, :, None] - w[:, None]) ** 2) / 8)
        for v, w in zip(now, before, strict=True)
      )
      total += jnp.sum((ours - theirs) ** 2, (1, 2, 3))
    before = now
  return keep_examples(total, where)
