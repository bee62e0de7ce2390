"""DCKD and ADPA."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _both_answers(student, teacher, where):
  """The rejected answer is the chosen one, at half the weight."""
  if where is not None:
    where = jnp.repeat(where[:, None], student.shape[1], axis=1)
  return losses.dckd(
    student,
    student,
    teacher,
    teacher,
    rejected_weight=0.5,
    temperature=2.0,
    where_chosen=where,
    where_rejected=where,
  )


def _guided(student, teacher, where):
  """Before it was aligned the teacher was half as sure."""
  advantage = losses.log_ratio_advantage(teacher, 0.5 * teacher)
  return losses.advantage_guided(student, advantage, where=where)


ENTRIES = {
  "advantage_guided": Entry(
    call=_guided,
    best=None,  # it falls up to a point mass
    masks=True,
  ),
  "dckd": Entry(call=_both_answers, shape=(6, 4, 5), masks=True),
}
