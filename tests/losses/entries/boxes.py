"""Losses at the objects of a bird's-eye view."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry

SHARED = dict(
  shape=(6, 4, 5, 3),
  batch_level=True,
  masks=True,
  logits=False,
  absent=False,
  step=1e-3,  # an absolute value has kinks
)


def _at_boxes(loss):
  def call(student, teacher, where):
    centres = jnp.array([[2.2, 1.3], [3.1, 2.4]])
    places = losses.box_points(
      centres, jnp.array([[1.5, 0.8], [2.0, 1.0]]), jnp.array([0.3, 1.0])
    )
    places = jnp.broadcast_to(places, (len(student), *places.shape))
    return loss(student, teacher, places, where=where)

  return Entry(call=call, **SHARED)


def _foreground(student, teacher, where):
  mask = jnp.linspace(0.0, 1.0, 20).reshape(4, 5)
  mask = jnp.broadcast_to(mask, student.shape[:3])
  return losses.foreground_l1(student, teacher, mask, where=where)


ENTRIES = {
  "foreground_l1": Entry(call=_foreground, **SHARED),
  "point_features": _at_boxes(losses.point_features),
  "point_relations": _at_boxes(losses.point_relations),
}
