"""Losses of the order of the classes."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _ranking(teacher):
  return losses.label_first_ranking(teacher, jnp.argmax(teacher, -1))


def _sure(teacher):
  """Logits so far apart that the teacher's order is certain."""
  places = jnp.argsort(_ranking(teacher), axis=-1)
  return -1e3 * places.astype(teacher.dtype)


ENTRIES = {
  "kendall_tau": Entry(
    call=lambda s, t, w: losses.kendall_tau(s, t, where=w),
    differentiable=False,  # it counts pairs
    masks=True,
  ),
  "list_mle": Entry(
    call=lambda s, t, w: losses.list_mle(s, _ranking(t), where=w),
    best=_sure,
    masks=True,
  ),
  "plackett_luce": Entry(
    call=lambda s, t, w: losses.plackett_luce(s, t, jnp.argmax(t, -1), where=w),
    best=_sure,
    masks=True,
  ),
}
