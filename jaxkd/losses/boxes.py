"""Losses at the objects of a bird's-eye view: key points and Gaussian masks.

Maps are [B, H, W, C]. A place is (column, row) in cells; cell (c, r) covers c
to c + 1 and r to r + 1, and a map is 0 outside. Nine points of a box stand for
it: four corners, the middle, and the middles of the edges.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxkd.losses import checks
from jaxkd.losses.rows import root
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array
EPS = 1e-4  # of the authors' means and norms
_CORNERS = ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))
_EDGES = ((0, 1), (1, 2), (2, 3), (0, 3))


def box_points(centres: Array, sizes: Array, yaw: Array) -> Array:
  """The nine points of rotated rectangles.

  Args:
    centres: (x, y), [..., 2].
    sizes: along the box and across, [..., 2].
    yaw: counter-clockwise, radians, [...].

  Returns:
    Corners, middle, and middles of the edges 01, 12, 23, 03, [..., 9, 2].
  """
  sizes = jnp.broadcast_to(sizes[..., None, :], (*sizes.shape[:-1], 4, 2))
  corners = jnp.broadcast_to(jnp.array(_CORNERS), sizes.shape) * sizes
  cos, sin = jnp.cos(yaw)[..., None], jnp.sin(yaw)[..., None]
  x, y = corners[..., 0], corners[..., 1]
  turned = jnp.stack([x * cos - y * sin, x * sin + y * cos], -1)
  corners = turned + centres[..., None, :]
  middle = jnp.mean(corners, -2, keepdims=True)
  edges = [(corners[..., i, :] + corners[..., j, :]) / 2 for i, j in _EDGES]
  return jnp.concatenate([corners, middle, jnp.stack(edges, -2)], -2)


def sample_points(maps: Array, places: Array) -> Array:
  """Values of maps at places, bilinear between the middles of cells.

  Args:
    maps: [B, H, W, C].
    places: (column, row), [B, ..., 2].

  Returns:
    [B, ..., C]; 0 where a place has no cell.
  """
  height, width = maps.shape[1:3]
  places = places - 0.5
  low = jnp.floor(places)
  share = places - low
  flat = maps.reshape(len(maps), height * width, -1)
  total = 0.0
  for across in (0, 1):
    for down in (0, 1):
      column, row = low[..., 0] + across, low[..., 1] + down
      inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
      number = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
      weight = jnp.abs(1 - across - share[..., 0])
      weight = weight * jnp.abs(1 - down - share[..., 1])
      values = jax.vmap(lambda one, index: one[index])(flat, number)
      total += jnp.where(inside, weight, 0.0)[..., None] * values
  return total


def _sampled(
  loss: str,
  student: Array,
  teacher: Array,
  places: Array,
  where: Array | None,
) -> tuple[Array, Array, Array]:
  """Checked maps at the places, [B, M, P, C], and which boxes count [B, M]."""
  checks.rank(loss, "student", student, "B H W C")
  checks.same(loss, student=student, teacher=teacher)
  batch = student.shape[:1]
  if places.ndim != 4 or (places.shape[0], places.shape[-1]) != (*batch, 2):
    raise ValueError(
      f"{loss}: places {places.shape} with maps {student.shape}; expected "
      "[B, boxes, points, 2]"
    )
  keep = jnp.ones(places.shape[:2]) if where is None else where
  if keep.shape not in (batch, places.shape[:2]):
    raise ValueError(
      f"{loss}: where {keep.shape}; expected {places.shape[:2]}, one entry per "
      f"box, or {batch}, one per example"
    )
  keep = keep.astype(bool).reshape(*keep.shape, *(1,) * (2 - keep.ndim))
  keep = jnp.broadcast_to(keep, places.shape[:2])
  used = keep.any(1)[:, None, None, None]
  places = jnp.where(keep[..., None, None], places, 0.0)
  student, teacher = (
    sample_points(jnp.where(used, at_least_float32(x), 0.0), places)
    for x in (student, teacher)
  )
  return student, teacher, keep


def _gap(a: Array, b: Array) -> Array:
  """|a - b|, with gradient 0 where they are equal."""
  return (a - b) * jax.lax.stop_gradient(jnp.sign(a - b))


def _mean_of_boxes(values: Array, keep: Array) -> Array:
  total = jnp.sum(jnp.where(keep, values, 0.0))
  return total / (jnp.sum(keep) + EPS)


def point_features(
  student: Array,
  teacher: Array,
  places: Array,
  *,
  where: Array | None = None,
) -> Array:
  """Absolute difference of features at the key points of objects.

    sum_b mean_p mean_c |S_c(x_bp) - T_c(x_bp)| / (N + 1e-4), N boxes

  Args:
    student: S, [B, H, W, C].
    teacher: T, [B, H, W, C].
    places: key points of every box, (column, row) in cells, [B, M, P, 2].
    where: boxes that count, [B, M], or examples, [B].

  Returns:
    Scalar.

  Raises:
    ValueError: if the shapes do not fit.

  Needs: maps, boxes; access white; batch level.
  Checked: megvii-research/CVPR2023-UniDistill@32f02b4.
  Reference: Zhou et al. (UniDistill), https://arxiv.org/abs/2303.15083.
  """
  student, teacher, keep = _sampled(
    "point_features", student, teacher, places, where
  )
  return _mean_of_boxes(jnp.mean(_gap(student, teacher), (2, 3)), keep)


def point_relations(
  student: Array,
  teacher: Array,
  places: Array,
  *,
  where: Array | None = None,
) -> Array:
  """Absolute difference of how the key points of an object are related.

    sum_b mean_pq |s_bp . s_bq - t_bp . t_bq| / (N + 1e-4),
    s = S(x) / (|S(x)| + 1e-4)

  Args:
    student: S, [B, H, W, C].
    teacher: T, [B, H, W, C].
    places: key points of every box, (column, row) in cells, [B, M, P, 2].
    where: boxes that count, [B, M], or examples, [B].

  Returns:
    Scalar.

  Raises:
    ValueError: if the shapes do not fit.

  Needs: maps, boxes; access white; batch level.
  Checked: megvii-research/CVPR2023-UniDistill@32f02b4.
  Reference: Zhou et al. (UniDistill), https://arxiv.org/abs/2303.15083.
  """
  *features, keep = _sampled("point_relations", student, teacher, places, where)
  ours, theirs = (
    jnp.einsum("bmpc,bmqc->bmpq", x, x, precision=Precision.HIGHEST)
    for x in (
      x / (root(jnp.sum(x * x, -1, keepdims=True)) + EPS) for x in features
    )
  )
  return _mean_of_boxes(jnp.mean(_gap(ours, theirs), (2, 3)), keep)


def foreground_l1(
  student: Array,
  teacher: Array,
  mask: Array,
  *,
  where: Array | None = None,
) -> Array:
  """Absolute difference of a head's maps where objects are.

    sum_x m(x) mean_c |S_c(x) - T_c(x)| / (sum_x m(x) + 1e-4)

  Over all places of the batch. The authors use it of the largest class
  probability (C = 1) and of all regression channels.

  Args:
    student: S, [B, H, W, C].
    teacher: T, [B, H, W, C].
    mask: m, at least 0, such as `gaussian_mask`, [B, H, W].
    where: [B], examples that are not true are left out.

  Returns:
    Scalar.

  Raises:
    ValueError: if the shapes do not fit.

  Needs: maps, boxes; access white; batch level.
  Checked: megvii-research/CVPR2023-UniDistill@32f02b4.
  Reference: Zhou et al. (UniDistill), https://arxiv.org/abs/2303.15083.
  """
  name = "foreground_l1"
  checks.rank(name, "student", student, "B H W C")
  checks.same(name, student=student, teacher=teacher)
  checks.same(name, mask=mask, places=student[..., 0])
  if where is not None:
    checks.same(name, where=where, examples=student[:, 0, 0, 0])
    keep = where.astype(bool)[:, None, None]
    mask = jnp.where(keep, mask, 0.0)
    student, teacher = (
      jnp.where(keep[..., None], x, 0.0) for x in (student, teacher)
    )
  gap = _gap(at_least_float32(student), at_least_float32(teacher))
  return jnp.sum(mask * jnp.mean(gap, -1)) / (jnp.sum(mask) + EPS)


def gaussian_radius(sizes: Array, overlap: float = 0.7) -> Array:
  """How far a box may move with the overlap kept, in CornerNet's form.

  The least of three roots; their denominators are those of CenterNet's code.

  Args:
    sizes: of the boxes, [..., 2].
    overlap: intersection over union that is kept, between 0 and 1.

  Returns:
    [...].
  """
  area, total = sizes[..., 0] * sizes[..., 1], sizes.sum(-1)
  o = overlap
  return (
    jnp.minimum(
      jnp.minimum(
        total + root(total**2 - 4 * area * (1 - o) / (1 + o)),
        2 * total + root(4 * total**2 - 16 * (1 - o) * area),
      ),
      -2 * o * total + root(4 * (o * total) ** 2 + 16 * o * (1 - o) * area),
    )
    / 2
  )


def gaussian_mask(
  centres: Array,
  radii: Array,
  shape: tuple[int, int],
  *,
  where: Array | None = None,
) -> Array:
  """Gaussian blobs at the objects; the larger one where two meet.

    max_b exp(-|x - x_b|^2 / (2 s_b^2)), s = (2 r + 1) / 6, |x - x_b|_inf <= r

  Args:
    centres: (column, row), cut to whole cells, [B, M, 2].
    radii: cut to whole cells, [B, M].
    shape: of the map, (H, W).
    where: boxes that are drawn, [B, M].

  Returns:
    [B, H, W].
  """
  column, row = (jnp.trunc(centres[..., i])[..., None, None] for i in (0, 1))
  r = jnp.maximum(jnp.trunc(radii), 0)[..., None, None]
  across = jnp.arange(shape[1]).reshape(1, 1, 1, -1) - column
  down = jnp.arange(shape[0]).reshape(1, 1, -1, 1) - row
  s = (2 * r + 1) / 6
  blobs = jnp.exp(-(across**2 + down**2) / (2 * s**2))
  drawn = (jnp.abs(across) <= r) & (jnp.abs(down) <= r)
  if where is not None:
    drawn &= where.astype(bool)[..., None, None]
  return jnp.max(jnp.where(drawn, blobs, 0.0), 1, initial=0.0)
