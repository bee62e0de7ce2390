"""Losses of how examples, tokens, channels, classes and modalities relate.

The arrays are features: a constant added to them is no symmetry and one
feature is no certain class (`logits`), and none is at -inf (`absent`).
"""

import functools

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.losses.modalities import class_prototypes
from tests.losses.entries import Entry

Features = functools.partial(Entry, logits=False, absent=False)
Batch = functools.partial(Features, batch_level=True, masks=True)


def _simple(loss, **options):
  return lambda s, t, w: loss(s, t, where=w, **options)


def _margin(student, teacher, where):
  return losses.margin_aware(student, teacher, teacher, where=where)


def _modality(student, teacher, where):
  drawn = jnp.ones((len(student), 2))
  labels = teacher.argmax(-1)
  return losses.modality_aware(student, labels, drawn, drawn[:1], where=where)


def _certain(teacher):
  return 1e4 * (teacher == teacher.max(-1, keepdims=True))


def _semantic(student, teacher, where):
  labels = (teacher[:, 0] < teacher[:, 1]).astype(jnp.int32)
  return losses.semantic_correlation(
    student, teacher, labels, student, teacher, where=where
  )


def _scene(student, teacher, where):
  return losses.inter_modal_correlation(
    student, teacher, teacher.astype(jnp.float32).mean(1), where=where
  )


def _prototypes(student, teacher, where):
  labels = jnp.broadcast_to(jnp.arange(4)[None] % 3, student.shape[:2])
  keep = jnp.ones(len(student)) if where is None else where
  embeddings, _ = class_prototypes(teacher, labels, 3, keep)
  return losses.prototype_correlation(student, embeddings, labels, where=where)


ENTRIES = {
  "contextual_relations": Features(
    call=_simple(losses.contextual_relations), shape=(6, 4, 3), masks=True
  ),
  "correlated_differences": Batch(call=_simple(losses.correlated_differences)),
  "correlation_congruence": Batch(
    call=_simple(losses.correlation_congruence),
    best=None,  # a norm has a kink there: rounding decides its direction
  ),
  "gram_congruence": Batch(call=_simple(losses.gram_congruence)),
  "inter_modal_correlation": Features(call=_scene, shape=(6, 3, 4), masks=True),
  "margin_aware": Batch(call=_margin),
  "modality_aware": Features(call=_modality, masks=True, best=_certain),
  "pkt": Batch(call=_simple(losses.pkt)),
  "prototype_correlation": Batch(call=_prototypes, shape=(6, 4, 5)),
  "rkd": Batch(call=_simple(losses.rkd)),
  "rkd_angle": Batch(call=_simple(losses.rkd_angle)),
  "rkd_distance": Batch(call=_simple(losses.rkd_distance)),
  "semantic_correlation": Batch(call=_semantic),
  "token_graph": Batch(
    call=_simple(losses.token_graph, neighbours=2, variance=4.0)
  ),
}
