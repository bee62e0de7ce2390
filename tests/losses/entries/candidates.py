"""Losses of an example's candidates."""

from jaxkd import losses
from tests.losses.entries import Entry


def _loss(loss, **changed):
  return Entry(
    call=lambda s, t, w: loss(s, t, where=w),
    best=None,  # self-training pulls the right candidate ever further
    batch_level=True,
    masks=True,
    logits=False,  # scores are regressed, so that a constant matters
    absent=False,
    **changed,
  )


ENTRIES = {
  "dynamic_contrastive": _loss(losses.dynamic_contrastive),
  "focal_scores": _loss(losses.focal_scores, stops=True),
}
