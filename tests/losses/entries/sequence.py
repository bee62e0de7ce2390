"""Losses of sequences and of their tokens."""

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry

SEQUENCES = (6, 4, 5)  # B, L, V


def _tokens(where):
  """A mask of the tokens of the examples that count."""
  return None if where is None else jnp.repeat(where[:, None], 4, axis=1)


def _ids(teacher):
  return teacher.argmax(-1)


def _privacy(teacher):
  teacher = teacher.astype(jnp.float32)
  return jax.nn.sigmoid(teacher[:, 0] - teacher[:, -1])


def _certain(teacher):
  return 1e4 * jax.nn.one_hot(teacher.argmax(-1), teacher.shape[-1])


ENTRIES = {
  "TopKLD": Entry(
    call=lambda s, t, w: losses.TopKLD(k=2)(s, t, temperature=2.0, where=w),
    masks=True,
  ),
  "gram_cosine": Entry(
    call=lambda s, t, w: losses.gram_cosine(s, t, where=_tokens(w)),
    shape=SEQUENCES,
    logits=False,
    masks=True,
  ),
  "renormalized_topkld": Entry(
    call=lambda s, t, w: losses.renormalized_topkld(
      s, t, k=2, temperature=2.0, where=w
    ),
    masks=True,
  ),
  "sampled_reverse_kl": Entry(
    call=lambda s, t, w: losses.sampled_reverse_kl(
      s, t, _ids(t), temperature=2.0, where=w
    ),
    masks=True,
    stops=True,
  ),
  "sequence_log_probs": Entry(
    call=lambda s, t, w: losses.sequence_log_probs(
      s, _ids(t), where=_tokens(w)
    ),
    shape=SEQUENCES,
    best=_certain,  # where it is largest
    absent=False,  # it would be a whole token, which then has no probability
    masks=True,
  ),
  "sequence_mean": Entry(
    call=lambda s, t, w: losses.sequence_mean(s, where=_tokens(w)),
    shape=SEQUENCES[:2],
    best=None,  # it is linear
    logits=False,
    absent=False,  # the mean of -inf is -inf
    masks=True,
  ),
  "sequence_sum": Entry(
    call=lambda s, t, w: losses.sequence_sum(s, where=_tokens(w)),
    shape=SEQUENCES[:2],
    best=None,  # it is linear
    logits=False,
    absent=False,  # the sum of -inf is -inf
    masks=True,
  ),
  "swing": Entry(
    call=lambda s, t, w: losses.swing(s, t, _privacy(t), highest=4.0, where=w),
    masks=True,
  ),
  "taid": Entry(
    call=lambda s, t, w: losses.taid(s, t, teacher_share=0.4, where=w),
    masks=True,
    stops=True,
  ),
  "token_log_probs": Entry(
    call=lambda s, t, w: losses.token_log_probs(s, _ids(t), where=w),
    best=_certain,  # where it is largest
    masks=True,
  ),
}
