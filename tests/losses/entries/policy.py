"""Policy gradients; arrays are log-probabilities of tokens [B, L]."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _of_sequence(loss):
  """The mean over the tokens of every sequence."""

  def call(student, teacher, where):
    if where is not None:
      where = jnp.repeat(where[:, None], student.shape[1], axis=1)
    return losses.sequence_mean(loss(student, teacher, where), where=where)

  return call


def _clipped(student, teacher, where):
  """The teacher's values are those of the student that sampled."""
  advantages = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, 4), student.shape)
  return losses.clipped_policy(student, teacher, advantages, where=where)


ENTRIES = {
  "clipped_policy": Entry(
    call=_of_sequence(_clipped),
    shape=(6, 4),
    best=None,  # it is flat where the ratio was clipped
    logits=False,
    absent=False,  # a token that cannot be sampled was not
    masks=True,
    finite=False,  # a ratio of exp(10000)
  ),
  "reverse_kl_estimate": Entry(
    call=_of_sequence(
      lambda s, t, w: losses.reverse_kl_estimate(s, t, where=w)
    ),
    shape=(6, 4),
    logits=False,
    absent=False,  # a token that cannot be sampled was not
    masks=True,
    finite=False,  # a ratio of exp(10000)
  ),
}
