"""Divergences by top classes, and BitDistiller's."""

from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.language import logits_check, token_mean

BITDISTILLER = "DD-DuDa/BitDistiller@9faaab8 mytrainer.py:KDTrainer"


def _bitdistiller() -> Iterator[Check]:
  """Summed over the tokens of a sequence, then the mean over the batch."""
  divergences = {
    "forward": ("KL", losses.KL()),
    "reverse": ("ReverseKL", losses.ReverseKL()),
    "cakld_b0p3": ("SymmetricKL", losses.SymmetricKL(0.3)),
    "jsd_b0p5": ("JSD", losses.JSD(0.5)),
  }
  for case, arrays in golden_tools.cases("topkld__kl_losses").items():
    where = jnp.asarray(arrays["in_labels"] != -100)
    for name, (loss, divergence) in divergences.items():

      def mean(student, teacher, divergence=divergence, where=where):
        values = divergence(student, teacher, where=where)
        return losses.sequence_sum(values, where=where).mean()

      yield logits_check(
        loss,
        BITDISTILLER,
        f"topkld__kl_losses/{case}/{name}",
        arrays,
        mean,
        f"out_loss_{name}",
        f"grad_student_{name}",
      )


def _variants(k):
  """Public name and loss by the name of a reading."""
  return {
    "generalized_top_reverse_tail_forward": ("TopKLD", losses.TopKLD(k)),
    "generalized_top_forward_tail_reverse": (
      "TopKLD",
      losses.TopKLD(k, head="forward", tail="reverse"),
    ),
    "plain_top_reverse_tail_forward": (
      "TopKLD",
      losses.TopKLD(k, linear_terms=False),
    ),
    "renormalized_top_reverse_tail_forward": (
      "renormalized_topkld",
      lambda s, t, **options: losses.renormalized_topkld(s, t, k=k, **options),
    ),
    "all_forward": ("KL", losses.KL()),
    "all_reverse": ("ReverseKL", losses.ReverseKL()),
  }


def _readings() -> Iterator[Check]:
  """Mean over tokens, and every token where none is masked."""
  file = "topkld__loss.derived"
  for case, arrays in golden_tools.cases(file).items():
    where = jnp.asarray(arrays["in_mask"])
    temperature = float(arrays["param_temperature"])
    variants = _variants(int(arrays["param_k"]))
    for name in golden_tools.section(arrays, "out_loss_"):
      loss, call = variants[name]

      def per_token(student, teacher, call=call, t=temperature):
        return call(student, teacher, temperature=t)

      def mean(student, teacher, call=call, t=temperature, where=where):
        values = call(student, teacher, temperature=t, where=where)
        return token_mean(values, where)

      for output, reduced, gradient in (
        (f"out_loss_{name}", mean, f"grad_student_{name}"),
        (f"out_per_token_{name}", per_token, ""),
      ):
        yield logits_check(
          loss,
          "formula",
          f"{file}/{case}/{output}",
          arrays,
          reduced,
          output,
          gradient,
        )


def checks() -> Iterator[Check]:
  """BitDistiller's divergences and three readings of TopKLD."""
  yield from _bitdistiller()
  yield from _readings()
