"""Universal logit distillation."""

from jaxkd import losses
from tests.losses.entries import Entry

ENTRIES = {
  "sorted_distance": Entry(
    call=lambda s, t, w: losses.sorted_distance(s, t, where=w),
    logits=False,
    absent=False,  # masses are finite
    masks=True,
  ),
  "uld": Entry(
    call=lambda s, t, w: losses.uld(
      s, t, temperature=2.0, teacher_temperature=1.5, where=w
    ),
    best=None,  # a kink: rounding decides which side of it the minimum is
    masks=True,
  ),
}
