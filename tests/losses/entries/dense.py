"""Losses of dense outputs, and of patches of two images."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry

SOURCE = jnp.array([[0, 4, 5]])


def _point_regression(student, teacher, where):
  del teacher
  source = jnp.broadcast_to(SOURCE, (len(student), 3))
  target = jnp.array([[0.0, 1.0], [1.0, 2.0], [0.5, 0.0]])
  target = jnp.broadcast_to(target, (len(student), 3, 2))
  return losses.point_regression(
    student, source, target, sharpness=5.0, where=where
  )


PAIRS = dict(shape=(6, 2, 2, 3, 4), masks=True, logits=False, absent=False)

ENTRIES = {
  "cwd": Entry(
    call=lambda s, t, w: losses.cwd(s, t, temperature=2.0, where=w),
    shape=(6, 2, 3, 4),
    masks=True,
    logits=False,
    absent=False,  # a channel at -inf everywhere is no distribution
  ),
  "patch_correspondence": Entry(
    call=lambda s, t, w: losses.patch_correspondence(
      s, t, temperature=0.5, where=w
    ),
    least=None,  # the teacher's entropy
    **PAIRS,
  ),
  "point_regression": Entry(call=_point_regression, best=None, **PAIRS),
}
