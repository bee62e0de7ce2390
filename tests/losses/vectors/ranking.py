"""Plackett-Luce distillation and its variants."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jaxkd import losses
from tests.losses.vectors import Check
from tests.losses.vectors.logits import table_checks

LISTING = "the listing in appendix C of arXiv 2506.12542v3"


def _pld(scalars):
  t_ = scalars["temperature"]

  def worst_first(s, t, y):
    return losses.label_first_ranking(t, y)[:, ::-1]

  return {
    "ranking_ascending_label_last": (
      "label_first_ranking",
      LISTING,
      worst_first,
    ),
    "loss": (
      "plackett_luce",
      LISTING,
      lambda s, t, y: losses.plackett_luce(s, t, y, temperature=t_).mean(),
    ),
  }


def _weights(scalars):
  """The weights of every variant, from the teacher's q in ranked order."""

  def powers(q):
    steps = jnp.arange(1, q.shape[-1] + 1)
    return jnp.broadcast_to(2.0 ** (q.shape[-1] - steps) - 1, q.shape)

  def suffix(q):
    return q / jnp.cumsum(q[:, ::-1], axis=-1)[:, ::-1]

  return {
    "listmle_uniform": lambda q: jnp.ones_like(q) / q.shape[-1],
    "listmle_sum": jnp.ones_like,
    "ce_onehot": lambda q: jnp.zeros_like(q).at[:, 0].set(1.0),
    "plistmle_pow2": powers,
    "plistmle_pow2_normalised": lambda q: (
      powers(q) / powers(q).sum(-1, keepdims=True)
    ),
    "suffix_renormalised": suffix,
  }


def _variants(scalars):
  t_ = scalars["temperature"]

  def weighted(weights):
    def call(s, t, y):
      ranking = losses.label_first_ranking(t, y)
      q = jax.nn.softmax(jnp.take_along_axis(t, ranking, -1) / t_)
      return losses.list_mle(s, ranking, weights=weights(q)).mean()

    return call

  def pld(s, t, y):
    return losses.plackett_luce(s, t, y, temperature=t_).mean()

  standardize = losses.standardize
  table = {
    name: ("list_mle", "formula", weighted(weights))
    for name, weights in _weights(scalars).items()
  }
  return table | {
    "cross_entropy": (
      "cross_entropy",
      "formula",
      lambda s, t, y: losses.cross_entropy(s, y).mean(),
    ),
    "std_both": (
      "plackett_luce",
      "formula",
      lambda s, t, y: pld(standardize(s), standardize(t), y),
    ),
    "std_teacher_only": (
      "plackett_luce",
      "formula",
      lambda s, t, y: pld(s, standardize(t), y),
    ),
  }


def checks() -> Iterator[Check]:
  """The loss, its ranking, and other weights of the same likelihood."""
  tolerances = {"rtol": 2e-6, "gradient_atol": 2e-6}
  yield from table_checks("pld__loss", _pld, **tolerances)
  yield from table_checks("pld__variants.derived", _variants, **tolerances)
