"""LLaVA-KD and LLaVA-MoD: divergences, visual tokens and relations."""

from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.language import (
  cross_entropy,
  logits_check,
  token_mean,
)

KD = "Fantasyele/LLaVA-KD@aad2802 distill_loss_utils.py"
TRAINER = "Jingchensun/llava-kd@3fe6cc5 tinyllava_distill_trainer.py"
MOD = "shufangxun/LLaVA-MoD@481ca57 align_trainer.py:AlignTrainer"
GRADIENTS = {"gradient_rtol": 1e-4, "gradient_atol": 1e-6}


def _divergences() -> Iterator[Check]:
  """lambda is the student's share of JS; `womask` counts every position."""
  kinds = {
    "reverse_kl": losses.ReverseKL(),
    "js": losses.JSD(0.1),  # lambda 0.9
    "js_lam0p5": losses.JSD(0.5),
    "tv": losses.TotalVariation(),
    "skewed_reverse_kl": losses.SkewReverseKL(0.1),
    "skewed_reverse_kl_lam0p5": losses.SkewReverseKL(0.5),
  }
  with_entropy = {
    "forward_kl": losses.KL(),
    "skewed_forward_kl": losses.SkewKL(0.1),
  }
  file = "llava_kd__divergences"
  for case, arrays in golden_tools.cases(file).items():
    counted = jnp.asarray(arrays["in_labels"] != -100)
    for output in golden_tools.section(arrays, "out_"):
      kind = output.removesuffix("_womask")
      where = counted if kind == output else jnp.ones_like(counted)
      divergence = kinds.get(kind) or with_entropy[kind]

      def mean(student, teacher, kind=kind, d=divergence, where=where):
        if kind in with_entropy:
          values = cross_entropy(d, student, teacher, where)
        else:
          values = d(student, teacher, where=where)
        return token_mean(values, where)

      yield logits_check(
        divergence.name,
        KD,
        f"{file}/{case}/{output}",
        arrays,
        mean,
        f"out_{output}",
        f"grad_{output}_student_logits",
        **GRADIENTS,
      )


def next_token_loss(logits, labels):
  """Mean cross entropy of the next tokens that have a label."""
  logits, ids = losses.next_token(logits, labels)
  where = ids != -100
  return token_mean(-losses.token_log_probs(logits, ids, where=where), where)


def _terms(arrays):
  """The terms of LLaVA-KD by their names; student, teacher -> scalar."""
  labels = jnp.asarray(arrays["in_labels"])
  start, count = (
    int(arrays[f"param_{name}"])
    for name in ("visual_start", "num_visual_tokens")
  )
  visual = slice(start, start + count)
  where = labels[:, 1:] != -100
  theirs = arrays["in_teacher_labels"][:, 1:] != -100
  # The trainer leaves the term out where the two masks disagree in number.
  agree = float(where.sum() == theirs.sum())

  def response(student, teacher):
    values = losses.kl(student[:, :-1], teacher[:, :-1], where=where)
    return agree * token_mean(values, where)

  terms = {
    "next_token_loss": lambda s, t: next_token_loss(s, labels),
    "response_kl": response,
    "visual_kl": lambda s, t: losses.kl(s[:, visual], t[:, visual]).mean(),
    "relation": lambda s, t: losses.gram_cosine(
      s[:, visual], t[:, visual], joint=True
    ),
  }
  return {name: terms[name] for name in terms if f"out_{name}" in arrays}


def _relations() -> Iterator[Check]:
  """Every term, and their sum with every weight at 1."""
  file = "llava_kd__mdist_rdist"
  public = {
    "next_token_loss": "token_log_probs",
    "response_kl": "kl",
    "visual_kl": "kl",
    "relation": "gram_cosine",
  }
  for case, arrays in golden_tools.cases(file).items():
    terms = _terms(arrays)
    for name, term in terms.items():
      yield logits_check(
        public[name],
        TRAINER,
        f"{file}/{case}/{name}",
        arrays,
        term,
        f"out_{name}",
        "",
        atol=2e-6 if name == "relation" else 1e-7,
      )

    def total(student, teacher, terms=terms):
      return sum(term(student, teacher) for term in terms.values())

    yield logits_check(
      "gram_cosine" if "relation" in terms else "kl",
      TRAINER,
      f"{file}/{case}/total_loss",
      arrays,
      total,
      "out_total_loss",
      "grad_total_student_logits",
      **GRADIENTS,
    )


def _mimic() -> Iterator[Check]:
  """The mask is not shifted; the cross entropy has the teacher's entropy."""
  file = "llava_mod__mimic"
  for case, arrays in golden_tools.cases(file).items():
    labels = jnp.asarray(arrays["in_labels"])
    everywhere = bool(arrays["param_distill_all_tokens"])
    where = jnp.full(labels.shape, True) if everywhere else labels != -100
    router = _router_term(arrays)

    def align(student, teacher, where=where):
      values = cross_entropy(losses.KL(), student, teacher, where)
      return token_mean(values, where)

    def next_token(student, teacher, labels=labels):
      del teacher
      return next_token_loss(student, labels)

    def total(
      student, teacher, arrays=arrays, align=align, ce=next_token, router=router
    ):
      value = align(student, teacher) + router
      if arrays["param_add_lm_loss"]:  # the router's term is in both
        value += ce(student, teacher) + router
      return value

    for loss, name, call, gradient in (
      ("KL", "align_loss", align, "grad_align_student_logits"),
      ("token_log_probs", "next_token_loss", next_token, ""),
      ("KL", "total_loss", total, "grad_total_student_logits"),
    ):
      yield logits_check(
        loss,
        MOD,
        f"{file}/{case}/{name}",
        arrays,
        call,
        f"out_{name}",
        gradient,
        **GRADIENTS,
      )


def _router_term(arrays) -> float:
  """The sum over layers times its coefficient."""
  layers = arrays["in_router_aux_loss_per_layer"]
  return float(arrays["param_router_aux_coef"]) * float(layers.sum())


def checks() -> Iterator[Check]:
  """Both papers' losses of logits."""
  yield from _divergences()
  yield from _relations()
  yield from _mimic()
