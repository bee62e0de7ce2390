"""Losses that weigh a teacher against labels."""

from jaxkd import losses
from tests.losses.entries import Entry


def _trilateral(student, teacher, where):
  labels = teacher.argmax(-1)
  share = (labels + 1) / 10.0
  return losses.trilateral_kd(student, teacher, labels, share, where=where)


ENTRIES = {
  "module_pair": Entry(
    call=lambda s, t, w: losses.module_pair(
      s, t, t.argmax(-1), temperature=2.0, where=w
    ),
    best=None,  # between teacher and labels
    masks=True,
  ),
  "trilateral_kd": Entry(
    call=_trilateral,
    best=None,  # between teacher and labels
    masks=True,
  ),
}
