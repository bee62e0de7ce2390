"""Losses of feature maps, and of the maps of several stages."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry

MAP = (6, 4, 4, 3)


def _map(loss, **changes):
  call = lambda s, t, w: loss(s, t, where=w)
  options = {"shape": MAP, "masks": True, "logits": False, "absent": False}
  return Entry(call=call, **{**options, **changes})


def _stages(loss, **changes):
  """A map of six channels stands for two stages of three."""

  def call(student, teacher, where):
    stages = (jnp.split(x, 2, axis=-1) for x in (student, teacher))
    return loss(*stages, where=where)

  options = {"shape": (6, 4, 4, 6), "masks": True, "logits": False}
  return Entry(call=call, absent=False, **{**options, **changes})


def _ofd(student, teacher, where):
  margin = jnp.array([-0.5, -1.0, -0.1])
  return losses.ofd(student, teacher, margin, where=where)


def _ofd_least(teacher):
  return jnp.maximum(teacher, jnp.array([[[[-0.5, -1.0, -0.1]]]]))


def _vid(student, teacher, where):
  return losses.vid(student, teacher, jnp.ones(3), where=where)


def _weighted(student, teacher, where):
  logits = teacher[:, 0, 0]  # the weight is a constant of the gradient
  return losses.weighted_alignment(
    student, teacher, logits, 0.5 * logits, where=where
  )


ENTRIES = {
  # Least wherever the student lies beyond the margin on the teacher's side.
  "activation_boundary": _map(
    losses.activation_boundary,
    best=lambda teacher: teacher + jnp.where(teacher > 0, 1.0, -1.0),
  ),
  "attention_transfer": _map(losses.attention_transfer),
  # Absolute values have a kink where both are equal: no gradient to be 0.
  "factor_transfer": _map(losses.factor_transfer, best=None, step=1e-3),
  "fitnet": _map(losses.fitnet),
  "fsp": _stages(losses.fsp),
  "ickd": _map(losses.ickd),
  "kdsvd": _stages(losses.kdsvd, step=1e-3),
  "mgd": _map(losses.mgd),
  "nst": _map(losses.nst),
  "ofd": Entry(
    call=_ofd,
    shape=MAP,
    best=_ofd_least,
    masks=True,
    logits=False,
    absent=False,
    step=1e-3,
  ),
  "review_kd": _map(losses.review_kd),
  "similarity_preserving": _map(losses.similarity_preserving, batch_level=True),
  "vid": Entry(call=_vid, shape=MAP, masks=True, logits=False, absent=False),
  "weighted_alignment": Entry(
    call=_weighted, shape=MAP, masks=True, logits=False, absent=False
  ),
}
