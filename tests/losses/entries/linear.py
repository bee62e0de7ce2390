"""The divergences of hidden states and output heads."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _linear(student, teacher, where):
  """Hidden states that are the logits, in tiles that do not come out even."""
  ours, theirs = (
    jnp.eye(x.shape[-1], dtype=x.dtype) for x in (student, teacher)
  )
  return losses.linear_divergence(
    losses.kl,
    student,
    ours,
    teacher,
    theirs,
    temperature=2.0,
    where=where,
    token_chunk=4,
  )


ENTRIES = {
  "linear_divergence": Entry(
    call=_linear,
    batch_level=True,
    masks=True,
    absent=False,  # -inf is a hidden state here, not a logit
  ),
}
