"""Losses of pairs and of ranked candidates; arrays are log-probabilities."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry

PAIRS = (6, 2)  # B, the chosen and the rejected answer


def _pair(loss):
  """The student is the policy, the teacher the reference."""

  def call(student, teacher, where):
    answers = [x[:, side] for x in (student, teacher) for side in (0, 1)]
    return loss(*answers, where=where)

  return call


def _kto_of_the_batch(student, teacher, where):
  values = _pair(losses.kto_pair)(student, teacher, where)
  count = len(values) if where is None else where.sum()
  return values.sum() / (2 * count)


def _ahead(margin):
  """A student whose chosen answers are that far ahead of the teacher's."""
  return lambda teacher: teacher.at[:, 0].add(margin)


def _rrhf(student, teacher, where):
  """The teacher's values are the rewards of the candidates."""
  if where is not None:
    where = jnp.repeat(where[:, None], student.shape[1], axis=1)
  lengths = jnp.full(student.shape, 3.0)
  return losses.rrhf(student, lengths, teacher, where=where)


ENTRIES = {
  "dpo": Entry(
    call=_pair(losses.dpo),
    shape=PAIRS,
    best=None,  # it falls for ever
    logits=False,
    absent=False,  # an answer that neither can give has no ratio
    masks=True,
  ),
  "hinge_preference": Entry(
    call=_pair(losses.hinge_preference),
    shape=PAIRS,
    best=_ahead(20.0),
    logits=False,
    absent=False,  # as for dpo
    masks=True,
  ),
  "ipo": Entry(
    call=_pair(losses.ipo),
    shape=PAIRS,
    best=_ahead(5.0),
    logits=False,
    absent=False,  # as for dpo
    masks=True,
  ),
  "kto_pair": Entry(
    call=_kto_of_the_batch,
    shape=PAIRS,
    best=None,  # it falls for ever
    batch_level=True,
    logits=False,
    absent=False,  # as for dpo
    masks=True,
  ),
  "rrhf": Entry(
    call=_rrhf,
    shape=(6, 4),
    best=None,  # the best answer's log-probability has no limit here
    logits=False,
    absent=False,  # an answer that the student cannot give costs infinity
    masks=True,
  ),
}
