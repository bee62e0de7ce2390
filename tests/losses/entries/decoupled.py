"""Losses that treat the label's class and the other classes apart."""

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _labels(teacher):
  return jnp.argmax(teacher, -1)


def _is_label(teacher):
  return jax.nn.one_hot(_labels(teacher), teacher.shape[-1])


def _loss(loss, **changed):
  def call(student, teacher, where):
    return loss(
      student, teacher, _labels(teacher), temperature=2.0, where=where
    )

  return Entry(call=call, masks=True, **changed)


def _best_of_ofa(teacher):
  """Logits of the distribution that the weights are in proportion to."""
  p = jax.nn.softmax(teacher / 2.0)
  one = _is_label(teacher)
  return 2.0 * jnp.log((p + one) ** 1.1 - one)


ENTRIES = {
  "dkd": _loss(losses.dkd),
  "nkd": _loss(
    losses.nkd,
    # Certain of the label, and the teacher among the other classes.
    best=lambda teacher: teacher + 1e4 * _is_label(teacher),
    least=None,  # the teacher's entropy among them
  ),
  "non_target_class_kl": _loss(losses.non_target_class_kl),
  "ofa": _loss(losses.ofa, best=_best_of_ofa, least=None),  # an entropy
  "target_class_kl": _loss(losses.target_class_kl),
  "zeroed_target_kl": _loss(
    losses.zeroed_target_kl,
    logits=False,  # the 0 of the label does not move with a constant
  ),
}
