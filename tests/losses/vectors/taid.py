"""TAID and the re-implementations of its repository."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.language import (
  cross_entropy,
  entropy,
  logits_check,
  number,
  token_mean,
)

TAID = "SakanaAI/TAID@a062892"


def _taid() -> Iterator[Check]:
  """The loss is a cross entropy; the target is probabilities."""
  for case, arrays in golden_tools.cases("taid__loss").items():
    where, share = jnp.asarray(arrays["in_mask"]), float(arrays["param_t"])

    def mean(student, teacher, where=where, share=share):
      values = losses.taid(
        student,
        teacher,
        teacher_share=share,
        where=where,
        subtract_entropy=False,
      )
      return token_mean(values, where)

    def target(student, teacher, share=share):
      logits = losses.intermediate_logits(student, teacher, teacher_share=share)
      return jnp.exp(losses.log_probabilities(logits))

    yield logits_check(
      "taid",
      f"{TAID} taid.py:TAID.compute_loss",
      f"taid__loss/{case}/loss",
      arrays,
      mean,
      "out_loss",
      "grad_student_logits",
    )
    yield logits_check(
      "intermediate_logits",
      "formula",
      f"taid__loss/{case}/intermediate_probs",
      arrays,
      target,
      "aux_intermediate_probs",
      "",
    )


def _schedule() -> Iterator[Check]:
  """Steps finished are a number there; the state after every step."""
  outputs = ("out_t", "out_momentum")
  for case, arrays in golden_tools.cases("taid__schedule").items():
    total = int(arrays["param_num_train_steps"])
    options = {
      "start": float(arrays["param_t_start"]),
      "end": float(arrays["param_t_end"]),
      "rate": float(arrays["param_alpha"]),
      "decay": float(arrays["param_beta"]),
      "adaptive": not arrays["param_disable_adaptive"],
    }

    def replayed(values, steps, total=total, options=options):
      def step(state, given):
        loss, number = given
        state = losses.advance_share(
          state, loss, progress=number / total, **options
        )
        return state, (state.share, state.momentum)

      first = losses.TeacherShare.create(options["start"])
      return jax.lax.scan(step, first, (values, steps))[1]

    for place, output in enumerate(outputs):
      yield Check(
        loss="advance_share",
        source=f"{TAID} taid.py:TAID.update_t",
        name=f"taid__schedule/{case}/{output}",
        call=lambda values, steps, replayed=replayed, place=place: replayed(
          values, steps
        )[place],
        inputs={
          "values": arrays["in_losses"],
          "steps": arrays["in_global_step"],
        },
        value=arrays[output],
        rtol=0.0,
      )


def _misaligned(student, teacher, where, head_mass):
  """TAID's copy of adaptive KL, a slip kept here for parity alone.

  Whether the i-th least probable class is in the head decides for class i of
  the vocabulary; the weights pass gradients; and the forward term is a cross
  entropy. Both terms are the library's.
  """
  p, q = (jnp.exp(losses.log_probabilities(z)) for z in (teacher, student))
  head = jnp.cumsum(jnp.sort(p, axis=-1), axis=-1) >= head_mass
  gap = jnp.abs(p - q)
  weight = jnp.sum(jnp.where(head, gap, 0.0), -1) / jnp.sum(gap, -1)
  forward = cross_entropy(losses.KL(), student, teacher, where)
  reverse = losses.ReverseKL()(student, teacher, where=where)
  return weight * forward + (1 - weight) * reverse


def _loss(name, where):
  """The public loss and the call of a loss of the suite."""
  kind, _, weight = name.replace("js_w", "js_").rpartition("_")
  if name == "fkl":
    return "KL", lambda s, t: cross_entropy(losses.KL(), s, t, where)
  if kind == "skew_fkl":
    skew = losses.SkewKL(number(weight))
    return "SkewKL", lambda s, t: cross_entropy(skew, s, t, where)
  if kind == "akl_misaligned":
    mass = number(weight.removeprefix("mu"))
    return "KL", lambda s, t: _misaligned(s, t, where, mass)
  divergence = {
    "rkl": lambda: losses.ReverseKL(),
    "tvd": lambda: losses.TotalVariation(),
    "js": lambda: losses.JSD(number(weight)),  # the teacher's share
    "skew_rkl": lambda: losses.SkewReverseKL(number(weight)),
  }[kind or name]()
  return divergence.name, lambda s, t: divergence(s, t, where=where)


def _suite() -> Iterator[Check]:
  """All of them but DKD and CTKD."""
  file = "llm_baselines__taid_suite"
  for case, arrays in golden_tools.cases(file).items():
    where = jnp.asarray(arrays["in_mask"], bool)
    for name in golden_tools.section(arrays, "out_"):
      if name.startswith(("dkd", "ctkd")):
        continue
      loss, call = _loss(name, where)
      yield logits_check(
        loss,
        f"{TAID} distil_losses/",
        f"{file}/{case}/{name}",
        arrays,
        lambda student, teacher, call=call, where=where: token_mean(
          call(student, teacher), where
        ),
        f"out_{name}",
        f"grad_student_logits__{name}",
        gradient_atol=1e-5 if name.startswith("akl") else 1e-6,
      )


def _ctkd() -> Iterator[Check]:
  """T^2, the entropy left in; its gradient is scaled by what is left of 1.

  The suite does not reverse the gradient, and its strength falls where the
  paper's rises.
  """
  file = "llm_baselines__taid_suite"
  for case, arrays in golden_tools.cases(file).items():
    where = jnp.asarray(arrays["in_mask"], bool)
    for epoch in (0, 4):

      def mean(parameter, student, teacher, where=where, epoch=epoch):
        strength = 1 - losses.reversal_strength(epoch + 1, epochs=10)
        t = losses.adversarial_temperature(parameter, scale=-strength)
        values = losses.kl(student, teacher, temperature=t, where=where)
        return token_mean(values + t**2 * entropy(teacher / t), where)

      yield Check(
        loss="adversarial_temperature",
        source=f"{TAID} distil_losses/ctkd.py",
        name=f"{file}/{case}/ctkd_epoch{epoch}",
        call=mean,
        inputs={
          "parameter": np.ones([], np.float32),
          "student": arrays["in_student_logits"],
          "teacher": arrays["in_teacher_logits"],
        },
        value=arrays[f"out_ctkd_epoch{epoch}"],
        gradients={
          "parameter": arrays[f"grad_global_temperature__ctkd_epoch{epoch}"]
        },
        atol=1e-7,
        gradient_rtol=1e-5,  # it is of the order of 100
      )


def _dkd() -> Iterator[Check]:
  """Divided by all positions, those that are masked too."""
  file = "llm_baselines__taid_suite"
  settings = {"dkd_lm_a1_b0p5_T1": (0.5, 1.0), "dkd_lm_a1_b5_T2": (5.0, 2.0)}
  for case, arrays in golden_tools.cases(file).items():
    where = jnp.asarray(arrays["in_mask"], bool)
    labels = jnp.asarray(arrays["in_labels"])
    for name, (beta, temperature) in settings.items():

      def mean(student, teacher, b=beta, t=temperature, y=labels, where=where):
        return losses.dkd(
          student, teacher, y, beta=b, temperature=t, where=where
        ).mean()

      yield logits_check(
        "dkd",
        f"{TAID} distil_losses/dkd.py",
        f"{file}/{case}/{name}",
        arrays,
        mean,
        f"out_{name}",
        f"grad_student_logits__{name}",
      )


def checks() -> Iterator[Check]:
  """TAID's loss and schedule, and the suite it is compared with."""
  yield from _taid()
  yield from _schedule()
  yield from _suite()
  yield from _ctkd()
  yield from _dkd()
