"""Losses of one feature of the student and one of the teacher.

A feature is a map [B, H, W, C] of channels, or has any other number of spatial
axes between the first and the last; n counts its places, f_c in R^n is channel
c. Features of unequal spatial sizes are compared at the smaller size of every
axis: the larger one is average-pooled adaptively. Numbers of channels may
differ only where a loss says so.

Every loss is computed in float32 at least and stops no gradient; examples that
`where` leaves out give 0 and pass nothing on, whatever is in them.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.losses import checks
from jaxkd.losses.rows import root, unit
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def adaptive_pool(
  x: Array, sizes: tuple[int, ...], how: Literal["mean", "max"] = "mean"
) -> Array:
  """Pools every spatial axis to a given size.

    out_i = mean or max of x_j, floor(i n / m) <= j < ceil((i + 1) n / m)

  for an axis of n places and m places afterwards: bins overlap where m does
  not divide n, and places repeat where m > n.

  Args:
    x: [B, *spatial, C].
    sizes: m of every spatial axis.
    how: what becomes of a bin.

  Returns:
    [B, *sizes, C].
  """
  for axis, size in enumerate(sizes, start=1):
    n = x.shape[axis]
    if n == size:
      continue
    start = np.arange(size) * n // size
    stop = -(-(np.arange(size) + 1) * n // size)
    place = start[:, None] + np.arange((stop - start).max())
    inside = jnp.asarray(place < stop[:, None])
    inside = inside.reshape(*place.shape, *(1,) * (x.ndim - axis - 1))
    bins = jnp.take(x, np.minimum(place, n - 1), axis=axis)
    if how == "max":
      x = jnp.max(bins, axis + 1, where=inside, initial=-jnp.inf)
    else:
      x = jnp.mean(bins, axis + 1, where=inside)
  return x


def shrink(x: Array, other: Array) -> Array:
  """Average-pools a feature where it is larger than another one.

    m = min(n, n_other) along every spatial axis

  Args:
    x: [B, *spatial, C].
    other: [B, *spatial', C'], as many axes; only its shape is read.

  Returns:
    [B, *m, C].
  """
  return adaptive_pool(x, tuple(map(min, x.shape[1:-1], other.shape[1:-1])))


def match_sizes(student: Array, teacher: Array) -> tuple[Array, Array]:
  """Brings two features to one spatial size, the smaller of every axis.

  Args:
    student: [B, *spatial, C].
    teacher: [B, *spatial', C'], as many axes.

  Returns:
    Both, average-pooled adaptively where they were larger.
  """
  return shrink(student, teacher), shrink(teacher, student)


def keep_examples(x: Array, where: Array | None) -> Array:
  """[B, ...] in float32 at least, 0 in the examples that are left out."""
  x = at_least_float32(x)
  if where is None:
    return x
  keep = where.astype(bool).reshape(len(x), *(1,) * (x.ndim - 1))
  return jnp.where(keep, x, 0.0)


def prepared(
  loss: str,
  student: Array,
  teacher: Array,
  where: Array | None,
  *,
  channels: bool = True,
) -> tuple[Array, Array]:
  """Two checked features of one spatial size, 0 in examples left out."""
  checks.features(loss, student, teacher, where, channels=channels)
  return match_sizes(
    keep_examples(student, where), keep_examples(teacher, where)
  )


def mean_of_example(x: Array) -> Array:
  """Mean over all but the first axis, [B, ...] -> [B]."""
  return x.reshape(len(x), -1).mean(1)


def norm(x: Array) -> Array:
  """Euclidean norm of the last axis, [..., D] -> [...]; no gradient at 0."""
  return root(jnp.sum(x**2, -1))


def fitnet(
  student: Array, teacher: Array, *, where: Array | None = None
) -> Array:
  """Mean squared error of a feature: FitNets' hint, SimKD.

    mean_i (r(f^S)_i - f^T_i)^2

  r is a trained map of the student's feature to the teacher's, applied by the
  caller: `nets.FitNetRegressor`, `nets.HintRegressor`, `nets.SimKDTransfer`.
  Logits are features too: [B, C] here is the distance of co-trained networks in
  MST-Distill's MGDFR.

  Args:
    student: r(f^S), [B, *spatial, C].
    teacher: f^T, [B, *spatial', C].
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if axes, examples or channels differ.

  Needs: features; access white; per example.
  Checked: 2018cx/SinKD@1ffac901; DefangChen/SimKD@2b389c3;
    Gray-OREO/MST-Distill@093b2fe; HobbitLong/RepDistiller@b84f547.
  Reference: Romero et al., https://arxiv.org/abs/1412.6550, Eq. 3.
  """
  student, teacher = prepared("fitnet", student, teacher, where)
  return mean_of_example((student - teacher) ** 2)


def mgd(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
  """Masked generative distillation: squared error of a generated feature.

    sum_i (G(f^S M)_i - f^T_i)^2

  G(f^S M) is the teacher's map as generated from the student's map behind a
  random mask M: `nets.MGDGenerator`.

  Args:
    student: G(f^S M), [B, *spatial, C].
    teacher: f^T, [B, *spatial', C].
    where: [B].

  Returns:
    [B], a sum over places and channels.

  Raises:
    ValueError: if axes, examples or channels differ.

  Needs: features; access white; per example.
  Checked: property tests only.
  Reference: Yang et al., https://arxiv.org/abs/2205.01529.
  """
  student, teacher = prepared("mgd", student, teacher, where)
  return jnp.sum((student - teacher) ** 2, tuple(range(1, student.ndim)))


def attention_map(feature: Array, power: int, *, absolute: bool) -> Array:
  """mean_c f_c^power as a unit vector, [B, *spatial, C] -> [B, n]."""
  energy = (jnp.abs(feature) if absolute else feature) ** power
  return unit(energy.mean(-1).reshape(len(feature), -1))


def attention_transfer(
  student: Array,
  teacher: Array,
  *,
  power: int = 2,
  convention: Literal["code", "paper"] = "code",
  where: Array | None = None,
) -> Array:
  """Attention transfer (AT): where a map has its energy.

    (1/n) sum_i (a^S_i - a^T_i)^2,  a = q / ||q||_2,  q_i = mean_c |f_ci|^power

  The convention `paper` is ||a^S - a^T||_2, as its Eq. 2 and torchdistill have
  it; `code` is the authors' and everybody else's, which takes no absolute
  value: that matters for odd powers alone. Channels may differ in number.

  Args:
    student: [B, *spatial, C].
    teacher: [B, *spatial', C'].
    power: p, at least 1.
    convention: see above.
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if axes or examples differ, or an option has no such value.

  Needs: maps; access white; per example.
  Checked: megvii-research/mdistiller@a08d46f;
    yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Zagoruyko and Komodakis, https://arxiv.org/abs/1612.03928, Eq. 2.
  """
  name = "attention_transfer"
  checks.positive(name, "power", power)
  checks.one_of(name, "convention", convention, ("code", "paper"))
  maps = prepared(name, student, teacher, where, channels=False)
  paper = convention == "paper"
  ours, theirs = (attention_map(x, power, absolute=paper) for x in maps)
  gap = ours - theirs
  return norm(gap) if paper else mean_of_example(gap**2)


def factor_transfer(
  student: Array,
  teacher: Array,
  *,
  order: int = 1,
  factor: Literal["whole", "attention"] = "whole",
  where: Array | None = None,
) -> Array:
  """Factor transfer (FT): distance of normalised factors.

    order 1: (1/d) ||u^S - u^T||_1, order 2: ||u^S - u^T||_2,  u = F / ||F||_2

  F is all of a factor in a row (the paper, torchdistill), or its attention map
  mean_c F_c^2 (RepDistiller, whose order 2 is `attention_transfer`). Factors
  are maps that `nets.Translator` makes of the student's map and
  `nets.Paraphraser` of the teacher's.

  Args:
    student: [B, *spatial, C].
    teacher: [B, *spatial', C]; C' with attention factors.
    order: 1 or 2.
    factor: see above.
    where: [B].

  Returns:
    [B].

  Raises:
    ValueError: if axes, examples or channels differ, or an option has no such
      value.

  Needs: maps; access white; per example.
  Checked: HobbitLong/RepDistiller@b84f547;
    yoshitomo-matsubara/torchdistill@3e4373c.
  Reference: Kim et al., https://arxiv.org/abs/1802.04977.
  """
  name = "factor_transfer"
  checks.between(name, "order", order, 1, 2)
  checks.one_of(name, "factor", factor, ("whole", "attention"))
  whole = factor == "whole"
  maps = prepared(name, student, teacher, where, channels=whole)
  ours, theirs = (
    unit(x.reshape(len(x), -1)) if whole else attention_map(x, 2, absolute=True)
    for x in maps
  )
  gap = ours - theirs
  return norm(gap) if order == 2 else mean_of_example(jnp.abs(gap))
