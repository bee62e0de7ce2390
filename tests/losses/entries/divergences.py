"""All forms of the divergences, and what they are made of."""

import jax

from jaxkd import losses
from tests.losses.entries import Entry


def _divergence(divergence, **changed):
  def call(student, teacher, where):
    return divergence(student, teacher, temperature=2.0, where=where)

  return Entry(call=call, masks=True, **changed)


def _topk(student, teacher, where):
  teacher = losses.TopK.of(teacher, min(3, teacher.shape[-1]))
  return losses.topk_divergence(
    losses.kl, student, teacher, temperature=2.0, where=where
  )


def _sharded(student, teacher, where):
  mesh = jax.make_mesh((2,), ("tensor",), devices=jax.devices()[:2])
  return losses.sharded_divergence(
    losses.kl, student, teacher, mesh=mesh, temperature=2.0, where=where
  )


ENTRIES = {
  name: _divergence(getattr(losses, name)())
  for name in (
    "JSD",
    "KL",
    "AdaptiveKL",
    "AlphaDivergence",
    "RenyiDivergence",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "SymmetricKL",
    "TotalVariation",
  )
} | {
  "kl": _divergence(losses.kl),
  "reverse_kl": _divergence(losses.reverse_kl),
  "sharded_divergence": Entry(call=_sharded, masks=True),
  "topk_divergence": Entry(call=_topk, masks=True),
}
