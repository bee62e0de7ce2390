"""Losses of how channels, or examples, of a feature map relate.

Notation as in `maps`: n places, f_c in R^n is channel c of a map.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.maps import mean_of_example, prepared
from jaxkd.losses.rows import over, unit, unit_gram

Array = jax.Array


def _flat(feature: Array) -> Array:
  """[B, *spatial, C] -> [B, n, C]."""
  return feature.reshape(len(feature), -1, feature.shape[-1])


def _products(a: Array, b: Array) -> Array:
  """<a_c, b_d> over the places: [B, n, C] and [B, n, D] -> [B, C, D]."""
  return jnp.einsum("bnc,bnd->bcd", a, b)


def _square_distances(a: Array, b: Array) -> Array:
  """||a_c - b_d||^2 of unit channels, [B, C, D]."""
  aa, bb = (jnp.sum(x**2, 1) for x in (a, b))
  return jnp.maximum(aa[:, :, None] + bb[:, None] - 2 * _products(a, b), 0.0)


def _simplex(x: Array) -> Array:
  """Rows divided by the sum of their absolute values."""
  return over(x, jnp.sum(jnp.abs(x), -1, keepdims=True))


def nst(
  student: Array,
  teacher: Array,
  *,
  kernel: Literal["polynomial", "linear", "gaussian"] = "polynomial",
  where: Array | None = None,
) -> Array:
  """Neuron selectivity transfer (NST): discrepancy of two sets of channels.

    mean_cd k(t_c, t_d) + mean_cd k(s_c, s_d) - 2 mean_cd k(s_c, t_d)

  the squared maximum mean discrepancy of the channels s, t of both maps, each
  a unit vector over its places. Kernels: polynomial (x . y)^2, linear x . y,
  gaussian exp(-||x - y||^2 / (2 sigma^2)) with sigma^2 the mean squared
  distance of a student's and a teacher's channel, a constant of the gradient.
  Channels may differ in number. A channel that is 0 everywhere stays 0.

  Args:
    student: [B, *spatial, C].
    teacher: [B, *spatial', C'].
    kernel: see above.
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if axes or examples differ, or there is no such kernel.

  Needs: maps; access white; per example.
  Checked: HobbitLong/RepDistiller@b84f547.
  Reference: Huang and Wang, https://arxiv.org/abs/1707.01219.
  """
  checks.one_of("nst", "kernel", kernel, ("polynomial", "linear", "gaussian"))
  maps = prepared("nst", student, teacher, where, channels=False)
  s, t = (unit(_flat(x), axis=1) for x in maps)
  between = _square_distances(s, t) if kernel == "gaussian" else None

  def mean_kernel(a, b):
    if kernel != "gaussian":
      products = _products(a, b)
      return mean_of_example(products**2 if kernel != "linear" else products)
    variance = stop_gradient(between.mean((1, 2), keepdims=True))
    spread = jnp.where(variance > 0, 2 * variance, 1.0)
    return mean_of_example(jnp.exp(-_square_distances(a, b) / spread))

  return mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)


def ickd(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """Inter-channel correlation (ICKD): rows of the Gram matrix of channels.

    (1/C) sum_cd (G^S_cd - G^T_cd)^2,  G_c = g_c / ||g_c||_2,  g_cd = f_c . f_d

  The paper maps both to one number of channels first (`nets.Connector`) and
  divides by C^2; its code normalises the rows and divides by C, as here.

  Args:
    student: [B, *spatial, C].
    teacher: [B, *spatial', C].
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if axes, examples or channels differ.

  Needs: maps; access white; per example.
  Checked: property tests only.
  Reference: Liu et al., https://arxiv.org/abs/2202.03680.
  """
  maps = prepared("ickd", student, teacher, where)
  s, t = (unit(_products(x, x)) for x in map(_flat, maps))
  return mean_of_example((s - t) ** 2) * student.shape[-1]


def similarity_preserving(
  student: Array,
  teacher: Array,
  *,
  order: int = 2,
  where: Array | None = None,
) -> Array:
  """Similarity preserving (SP): which examples of a batch are alike.

    (1/B^2) ||G^S - G^T||_F^2,  G_i = g_i / ||g_i||,  g_ij = f_i . f_j

  with f_i all of example i's feature in a row. Needs the whole batch at one
  place. Spatial sizes and channels may differ.

  Args:
    student: [B, ...].
    teacher: [B, ...].
    order: of the rows' norm: 2; torchdistill has 1.
    where: [B]; the others are no part of the batch, B counts what is left.

  Returns:
    Scalar for the batch.

  Raises:
    ValueError: if the numbers of examples differ, or order is not 1 or 2.

  Needs: features; access white; batch level.
  Checked: lilujunai/DisWOT-CVPR2023@dffe4e6;
    megvii-research/mdistiller@a08d46f; shicaiwei123/MMANet@c330689;
    yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Tung and Mori, https://arxiv.org/abs/1907.09682, Eq. 4.
  """
  name = "similarity_preserving"
  checks.between(name, "order", order, 1, 2)
  flat = (x.reshape(len(x), -1) for x in (student, teacher))
  rows = prepared(name, *flat, where, channels=False)
  s, t = (unit_gram(x) if order == 2 else _simplex(x @ x.T) for x in rows)
  count = len(s) if where is None else jnp.sum(where.astype(bool))
  return jnp.sum((s - t) ** 2) / jnp.maximum(count, 1) ** 2
