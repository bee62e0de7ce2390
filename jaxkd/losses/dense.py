"""Losses of dense outputs: channels as maps, and matching of image patches.

Notation: z are maps [B, H, W, C] with N = H W places, p the teacher's
distribution, q the student's. For patches, f_i is the unit feature of patch i
of a source image, g_j that of patch j of a target image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import Precision

from jaxkd.losses import checks
from jaxkd.losses.logits import kept
from jaxkd.losses.maps import keep_examples, prepared
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.rows import unit
from jaxkd.losses.softmax import log_probabilities

Array = jax.Array


def cwd(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 4.0,
  where: Array | None = None,
) -> Array:
  """Channel-wise distillation: every channel is a distribution over places.

    (T^2 / C) sum_c KL(p_c || q_c), p_c = softmax over the places of z_c / T

  Features or logits of dense outputs; channels of the two networks have to
  agree, sizes are brought together as in `maps`.

  Args:
    student: maps, [B, *spatial, C].
    teacher: maps, [B, *spatial', C].
    temperature: T, above 0.
    where: [B].

  Returns:
    [B], nats times T^2.

  Raises:
    ValueError: if axes, examples or channels differ, or the temperature is not
      above 0.

  Needs: maps; access white; per example.
  Checked: skyshoumeng/Label_Assisted_Distillation@cd08406.
  Reference: Shu et al., https://arxiv.org/abs/2011.13256, Eq. 4.
  """
  checks.temperature("cwd", temperature)
  student, teacher = (
    x.reshape(len(x), -1, x.shape[-1])
    for x in prepared("cwd", student, teacher, where)
  )
  return jnp.mean(kl(student, teacher, temperature=temperature, axis=1), -1)


def _check_pairs(loss: str, where: Array | None, **maps: Array) -> None:
  shapes = {name: x.shape for name, x in maps.items()}
  batch = next(iter(shapes.values()))[:1]
  if any(len(s) != 5 or s[:2] != (*batch, 2) for s in shapes.values()):
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(
      f"{loss}: {given}; expected [B, 2, H, W, C], source and target image of "
      "as many examples"
    )
  if where is not None and where.shape != batch:
    raise ValueError(
      f"{loss}: where {where.shape}; expected {batch}, one entry per example"
    )


def patch_similarities(features: Array, source: Array | None = None) -> Array:
  """Cosine similarities of the patches of two images.

    S_ij = f_i . g_j

  Args:
    features: of pairs of images, source first, [B, 2, H, W, C].
    source: numbers of the source's patches, row by row, [B, N]; all if not
      given.

  Returns:
    [B, N, H W].

  Raises:
    ValueError: if the features are not those of pairs.
  """
  _check_pairs("patch_similarities", None, features=features)
  rows = unit(features.reshape(len(features), 2, -1, features.shape[-1]))
  first, second = rows[:, 0], rows[:, 1]
  if source is not None:
    first = jnp.take_along_axis(first, source[..., None], axis=1)
  return jnp.einsum("bic,bjc->bij", first, second, precision=Precision.HIGHEST)


def patch_correspondence(
  student: Array,
  teacher: Array,
  *,
  source: Array | None = None,
  temperature: float = 0.01,
  over_sources: bool = False,
  where: Array | None = None,
) -> Array:
  """Cross entropy of where a source patch is found in the target image.

    -mean_i sum_j P_ij log Q_ij, Q_i = softmax_j(S_ij / T), P the teacher's

  No factor T^2. The teacher's maps are resized (bilinearly) to the student's
  and may have other channels. With `over_sources` it is the loss of the
  released code, which puts a second softmax on top, over the source patches:
  -mean_j sum_i P_ij log softmax_i(Q_ij).

  Args:
    student: features of pairs of images, source first, [B, 2, H, W, C].
    teacher: [B, 2, H', W', C'].
    source: numbers of the source's patches that count, [B, N]; all if not
      given.
    temperature: T, above 0.
    over_sources: whether the released code's second softmax is taken.
    where: [B].

  Returns:
    [B], nats.

  Raises:
    ValueError: if shapes do not fit, or the temperature is not above 0.

  Needs: maps of two images; access white; per example.
  Checked: CompVis/distilldift@e21076e; formula.
  Reference: Fundel et al. (DistillDIFT), https://arxiv.org/abs/2412.03512.
  """
  name = "patch_correspondence"
  checks.temperature(name, temperature)
  _check_pairs(name, where, student=student, teacher=teacher)
  student, teacher = (keep_examples(x, where) for x in (student, teacher))
  teacher = jax.image.resize(
    teacher,
    (*teacher.shape[:2], *student.shape[2:4], teacher.shape[-1]),
    "bilinear",
    antialias=False,
  )
  log_q, log_p = (
    log_probabilities(patch_similarities(x, source), temperature)
    for x in (student, teacher)
  )
  axis = -1
  if over_sources:
    log_q, axis = jax.nn.log_softmax(jnp.exp(log_q), axis=1), 1
  values = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_q, axis), -1)
  return kept(values, where)


def soft_argmax(scores: Array, sharpness: float = 1000.0) -> Array:
  """Mean place (row, column) under a softmax over all places.

    sum_j j softmax_j(sharpness s_j)

  Args:
    scores: [..., H, W].
    sharpness: above 0; the larger, the nearer to the argmax and the smaller
      the gradient.

  Returns:
    [..., 2].
  """
  *batch, height, width = scores.shape
  flat = scores.reshape(*batch, height * width)
  weights = jax.nn.softmax(sharpness * flat, -1).reshape(scores.shape)
  row, column = (
    jnp.matmul(
      weights.sum(axis),
      jnp.arange(count, dtype=weights.dtype),
      precision=Precision.HIGHEST,
    )
    for axis, count in ((-1, height), (-2, width))
  )
  return jnp.stack([row, column], -1)


def point_regression(
  student: Array,
  source: Array,
  target: Array,
  *,
  sharpness: float = 1000.0,
  where: Array | None = None,
) -> Array:
  """Squared error of the place at which source patches are found.

    mean_i |soft_argmax_j(S_ij) - t_i|^2 / 2

  At the default sharpness nearly all gradients vanish; 50 to 100 train better
  on small grids. The authors jitter the targets with normal noise.

  Args:
    student: features of pairs of images, source first, [B, 2, H, W, C].
    source: numbers of the source's patches, row by row, [B, N].
    target: t, true places (row, column) on the target's grid, [B, N, 2].
    sharpness: of the soft argmax, above 0.
    where: [B].

  Returns:
    [B], squared patches.

  Raises:
    ValueError: if shapes do not fit, or the sharpness is not above 0.

  Needs: maps of two images, points; access text; per example.
  Checked: CompVis/distilldift@e21076e.
  Reference: Fundel et al. (DistillDIFT), https://arxiv.org/abs/2412.03512.
  """
  name = "point_regression"
  checks.positive(name, "sharpness", sharpness)
  _check_pairs(name, where, student=student)
  expected = (len(student), *source.shape[1:], 2)
  if target.shape != expected or source.ndim != 2:
    raise ValueError(
      f"{name}: student {student.shape}, source {source.shape}, target "
      f"{target.shape}; expected source [B, N] and target [B, N, 2]"
    )
  similar = patch_similarities(keep_examples(student, where), source)
  similar = similar.reshape(*source.shape, *student.shape[2:4])
  gap = soft_argmax(similar, sharpness) - keep_examples(target, where)
  return kept(jnp.mean(gap**2, (1, 2)), where)
