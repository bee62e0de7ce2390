"""Token-level divergences as the libraries of language models have them.

What differs from ours is written in each call: the teacher's entropy that a
library leaves in, the T^2 that it leaves out, which side its weight belongs
to, and KL in place of JSD at the ends.
"""

import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.method import Loss
from tests import golden_tools
from tests.losses.vectors import Check

DISTILLM = "jongwooko/distillm@d47e77f losses.py"
TRL = "huggingface/trl@f2cd577 gkd_trainer.py:generalized_jsd_loss"
AKL = "wutaiqiang/LLM_KD_AKL@ff278be AKL.py:get_kl"
FDISTILL = "MANGA-UOFA/fdistill@8e2ff7c kd.py:ChatDistiller"


def token_mean(values, where):
  """The mean over the tokens of a batch, as training has it."""
  loss = Loss.mean(values, where=where)
  return loss.total / loss.weight


def entropy(logits):
  """-sum p log p of the last axis."""
  log_p = jax.nn.log_softmax(logits, axis=-1)
  inside = log_p > -jnp.inf
  return -jnp.sum(
    jnp.where(inside, jnp.exp(log_p) * jnp.where(inside, log_p, 0.0), 0.0), -1
  )


def cross_entropy(divergence, student, teacher, where):
  """KL(p || .) with the teacher's entropy left in."""
  values = divergence(student, teacher, where=where)
  return values + jnp.where(where, entropy(teacher), 0.0)


def gjsd(beta: float) -> losses.Divergence:
  """TRL's and OPSD's: beta D above, KLs at full scale at the ends."""
  ends = {0.0: losses.KL(), 1.0: losses.ReverseKL()}
  return ends.get(beta) or losses.JSD(beta)


def number(text: str) -> float:
  """`0p1` -> 0.1."""
  return float(text.replace("p", "."))


def logits_check(
  loss: str,
  source: str,
  name: str,
  arrays: golden_tools.Arrays,
  call: Callable[[jax.Array, jax.Array], jax.Array],
  output: str,
  gradient: str,
  **options,
) -> Check:
  """A check of `call(student, teacher)` with the student's gradient.

  The tolerances are those of most notes: 1e-5 relative, gradients 1e-6.
  """
  found = arrays.get(gradient)
  tolerances = {"atol": 1e-7, "gradient_rtol": 0.0, "gradient_atol": 1e-6}
  return Check(
    loss=loss,
    source=source,
    name=name,
    call=lambda student, teacher: call(student, teacher),
    inputs={
      "student": arrays["in_student_logits"],
      "teacher": arrays["in_teacher_logits"],
    },
    value=arrays[output],
    gradients={} if found is None else {"student": found},
    **tolerances | options,
  )


def _distillm(name, where):
  """The public loss and the call of a loss of distillm."""
  kind, _, weight = name.partition("_lam")
  lam = number(weight) if weight else None
  if kind == "fkl":
    return "KL", lambda s, t: cross_entropy(losses.KL(), s, t, where)
  if kind == "symmetric":  # (1 - lam) times the cross-entropy form + lam RKL
    divergence = losses.SymmetricKL(lam)
    return (
      "SymmetricKL",
      lambda s, t: (
        divergence(s, t, where=where)
        + jnp.where(where, (1 - lam) * entropy(t), 0.0)
      ),
    )
  if kind == "sfkl":
    skew = losses.SkewKL(lam)
    return "SkewKL", lambda s, t: cross_entropy(skew, s, t, where)
  divergence = {
    "rkl": lambda: losses.ReverseKL(),
    "js": lambda: losses.JSD(1 - lam),  # lam is the student's share
    "tv": lambda: losses.TotalVariation(),
    "srkl": lambda: losses.SkewReverseKL(lam),
  }[kind]()
  return divergence.name, lambda s, t: divergence(s, t, where=where)


def _trl(name, where):
  """TRL's: no T^2; the divisor is what the caller says."""
  match = re.fullmatch(
    r"gjsd_beta([0-9p]+?)(?:_T(\d+))?(?:_num_items(\d+))?(_nolabels)?", name
  )
  beta, temperature, items, unlabelled = match.groups()
  divergence, t2 = gjsd(number(beta)), float(temperature or 1)

  def call(s, t):
    mask = None if unlabelled else where
    values = divergence(s, t, temperature=t2, where=mask) / t2**2
    if unlabelled:  # summed over positions, divided by the batch size
      return losses.sequence_sum(values).mean()
    return values.sum() / int(items) if items else token_mean(values, where)

  return divergence.name, call


def _fdistill(name, where):
  """With T^2, but for the ones without a temperature."""
  kind, _, temperature = name.partition("_T")
  t2 = float(temperature or 1)
  if kind == "engine":  # -sum q log p: reverse KL with the student's entropy
    return (
      "ReverseKL",
      lambda s, t: (
        losses.ReverseKL()(s, t, where=where)
        + jnp.where(where, entropy(s), 0.0)
      ),
    )
  divergence = {
    "kl": losses.KL(),
    "js_studentside": losses.SkewReverseKL(0.5),  # KL(q || (p + q) / 2)
    "tvd": losses.TotalVariation(),
  }[kind]
  return divergence.name, lambda s, t: divergence(
    s, t, temperature=t2, where=where
  )


def _adaptive(name, where):
  divergence = losses.AdaptiveKL(number(name.partition("_mu")[2]))
  return "AdaptiveKL", lambda s, t: divergence(s, t, where=where)


LIBRARIES = {
  "distillm": (DISTILLM, _distillm),
  "trl": (TRL, _trl),
  "akl": (AKL, _adaptive),
  "fdistill": (FDISTILL, _fdistill),
}


def _divergences() -> Iterator[Check]:
  """Of four libraries; -inf padding in the last case (values alone)."""
  file = "llm_baselines__divergences"
  for case, arrays in golden_tools.cases(file).items():
    where = jnp.asarray(arrays["in_labels"] != -100)
    for output in golden_tools.section(arrays, "out_"):
      library, _, name = output.partition("_")
      source, convert = LIBRARIES[library]
      loss, call = convert(name, where)

      def mean(student, teacher, call=call, library=library, where=where):
        values = call(student, teacher)
        return values if library == "trl" else token_mean(values, where)

      yield logits_check(
        loss,
        source,
        f"{file}/{case}/{output}",
        arrays,
        mean,
        f"out_{output}",
        f"grad_student_logits__{output}",
      )


def _head_weights() -> Iterator[Check]:
  """The weight of the head of adaptive KL, read from its two directions."""
  file = "llm_baselines__divergences"
  for case, arrays in golden_tools.cases(file).items():
    if "aux_akl_head_weight_mu0p5" not in arrays:
      continue

    def weight(student, teacher):
      forward = losses.KL()(student, teacher)
      reverse = losses.ReverseKL()(student, teacher)
      adaptive = losses.AdaptiveKL(0.5)(student, teacher)
      return (adaptive - reverse) / (forward - reverse)

    yield logits_check(
      "AdaptiveKL",
      AKL,
      f"{file}/{case}/head_weight",
      arrays,
      weight,
      "aux_akl_head_weight_mu0p5",
      "",
    )


def checks() -> Iterator[Check]:
  """Divergences of distillm, TRL, AKL and fdistill."""
  yield from _divergences()
  yield from _head_weights()
