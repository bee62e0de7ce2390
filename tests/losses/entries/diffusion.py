"""Losses of denoisers and of students that follow their trajectories."""

from jaxkd import losses
from tests.losses.entries import Entry


def _boot(student, target, where):
  return losses.boot(student, target, share=0.2, interval=0.04, where=where)


def _predictions(call):
  return Entry(
    call=call, shape=(6, 4, 4, 2), masks=True, logits=False, absent=False
  )


ENTRIES = {
  "boot": _predictions(_boot),
  "denoising": _predictions(lambda s, t, w: losses.denoising(s, t, where=w)),
}
