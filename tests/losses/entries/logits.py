"""Losses of logits against labels, probabilities, or class by class."""

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _certain(teacher):
  return 1e4 * jax.nn.one_hot(teacher.argmax(-1), teacher.shape[-1])


def _virtual(teacher):
  """Logits of the distribution that the virtual teacher has."""
  return losses.virtual_teacher(teacher.argmax(-1), teacher.shape[-1]) / 20.0


ENTRIES = {
  "binary_cross_entropy": Entry(
    call=lambda s, t, w: losses.binary_cross_entropy(
      s, jax.nn.sigmoid(t.astype(jnp.float32)), where=w
    ),
    least=None,  # the entropy of the answers
    logits=False,  # sigmoids see a constant
    absent=False,  # no question can be left out
    masks=True,
  ),
  "binary_kl": Entry(
    call=lambda s, t, w: losses.binary_kl(s, t, temperature=2.0, where=w),
    logits=False,  # sigmoids see a constant
    masks=True,
  ),
  "cross_entropy": Entry(
    call=lambda s, t, w: losses.cross_entropy(s, t.argmax(-1), where=w),
    best=_certain,
    masks=True,
  ),
  "normalized_binary_kl": Entry(
    call=lambda s, t, w: losses.normalized_binary_kl(s, t, where=w),
    logits=False,  # sigmoids see a constant
    masks=True,
  ),
  "soft_cross_entropy": Entry(
    call=lambda s, t, w: losses.soft_cross_entropy(
      s, jax.nn.softmax(t.astype(jnp.float32)), where=w
    ),
    least=None,  # the teacher's entropy
    masks=True,
  ),
  "teacher_free_kl": Entry(
    call=lambda s, t, w: losses.teacher_free_kl(s, jnp.argmax(t, -1), where=w),
    best=_virtual,
    absent=False,  # the virtual teacher has mass in every class
    masks=True,
  ),
}
