"""Distances of parameters: of trajectories, of prototypes."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _trajectory(student, teacher, where):
  start = jnp.zeros_like(teacher)
  return losses.trajectory_matching(student, teacher, start=start)


ENTRIES = {
  "prototype_constraint": Entry(
    call=lambda s, t, w: losses.prototype_constraint(s, t),
    batch_level=True,
    logits=False,
    absent=False,
  ),
  "trajectory_matching": Entry(
    call=_trajectory, batch_level=True, logits=False, absent=False
  ),
}
