"""Losses that compare class columns and batch rows."""

from jaxkd import losses
from tests.losses.entries import Entry


def _loss(loss, **options):
  def call(student, teacher, where):
    return loss(student, teacher, where=where, **options)

  return Entry(call=call, batch_level=True, masks=True)


ENTRIES = {
  "batch_correlation": _loss(losses.batch_correlation, temperature=2.0),
  "class_correlation": _loss(losses.class_correlation, temperature=2.0),
  # eps costs digits at the least value.
  "dist": _loss(losses.dist, temperature=2.0, eps=0.0),
  "mlkd": _loss(losses.mlkd, temperatures=(2.0, 3.0)),
}
