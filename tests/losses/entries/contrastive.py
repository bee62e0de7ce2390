"""Contrastive losses, rankings of candidates, soft similarities of pairs."""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import logit

from jaxkd import losses
from tests.losses.entries import Entry

# Embeddings and scores: no class that is certain, none at -inf.
Features = functools.partial(Entry, logits=False, absent=False)
# No place is the best: embeddings of the others could always be farther away.
Contrast = functools.partial(
  Features, batch_level=True, masks=True, best=None, least=None
)
# Student and teacher are scores [N, M] and similarities, whose rows and columns
# are both a batch: these losses take no mask.
Scores = functools.partial(Features, batch_level=True, least=None)


def _bank():
  bank = losses.MemoryBank.create(jax.random.key(0), 12, 5)
  ready = jnp.ones((), bool)
  return bank.replace(ready=ready, student_log_z=2.0, teacher_log_z=2.0)


def _crd(student, teacher, where):
  index = jnp.full(len(student), 3)
  negatives = jnp.stack([index + 1, index + 2, index + 2], axis=1)
  return losses.crd(student, teacher, _bank(), index, negatives, where=where)[0]


def _simple(loss, **options):
  return lambda s, t, w: loss(s, t, where=w, **options)


def _scores(loss):
  """With targets in (0, 1)."""
  return lambda s, t, w: loss(s, jax.nn.sigmoid(t.astype(jnp.float32)))


ENTRIES = {
  "balanced_similarity_bce": Scores(
    call=_scores(losses.balanced_similarity_bce), best=None
  ),
  "cosine_distance": Features(call=_simple(losses.cosine_distance), masks=True),
  "crd": Features(call=_crd, masks=True, best=None),
  "info_nce": Contrast(call=_simple(losses.info_nce, temperature=0.5)),
  "nt_xent": Contrast(call=_simple(losses.nt_xent)),
  "partial_ranking": Features(
    call=_simple(losses.partial_ranking, threshold=0.0, temperature=1.0),
    masks=True,
    best=None,  # scores in the teacher's order, ever farther apart
  ),
  "similarity_bce": Scores(
    call=_scores(losses.similarity_bce),
    best=lambda teacher: logit(jax.nn.sigmoid(teacher)),
  ),
  "similarity_kl": Scores(
    call=lambda s, t, w: losses.similarity_kl(s, t),
    best=lambda teacher: 10 * teacher,
    least=0.0,
  ),
  "similarity_mse": Scores(
    call=_scores(losses.similarity_mse),
    best=lambda teacher: teacher,
    least=0.0,
  ),
  "soft_info_nce": Scores(call=_scores(losses.soft_info_nce), best=None),
}
