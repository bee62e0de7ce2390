"""Sinkhorn distances."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _between_classes(student, teacher, where):
  """Neighbouring classes are close."""
  numbers = jnp.arange(student.shape[-1], dtype=jnp.float32)
  cost = jnp.abs(numbers[:, None] - numbers[None])
  return losses.class_transport(student, teacher, cost, eps=0.5, where=where)


def _plan_as_loss(student, teacher, where):
  """What it costs to move points [B, 5] to points, with equal masses."""
  del where
  student, teacher = (x.astype(jnp.float32) for x in (student, teacher))
  cost = jnp.abs(student[:, None] - teacher[None]).sum(-1)
  return jnp.sum(losses.sinkhorn(cost, eps=1.0) * cost)


ENTRIES = {
  "batch_transport": Entry(
    call=lambda s, t, w: losses.batch_transport(s, t, where=w),
    best=None,  # the plan also moves mass to other examples
    batch_level=True,
    masks=True,
  ),
  "class_transport": Entry(
    call=_between_classes,
    best=None,  # the plan also moves mass to other classes
    masks=True,
  ),
  "sinkhorn": Entry(
    call=_plan_as_loss,
    best=None,  # the plan also moves mass to other points
    batch_level=True,
    logits=False,
    absent=False,  # the distance of two points at infinity
  ),
}
