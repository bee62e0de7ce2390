"""Module-to-module distillation: the objective of one pair of modules."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

M2MKD = "kamanphoebe/m2mKD@067fa1f deep_incubation/losses.py:m2mKDLoss"


def _call(a, **options):
  labels = jnp.asarray(a["in_labels"])
  options = {"teacher_weight": float(a["param_alpha"])} | options
  return lambda student, teacher: losses.module_pair(
    student,
    teacher,
    labels,
    temperature=float(a["param_temperature"]),
    hard=bool(a["param_hard"]),
    **options,
  ).mean()


def checks() -> Iterator[Check]:
  """Soft and hard teachers, integer and mixed labels, both divisors."""
  golden = "m2mkd__pair_loss"
  for case, a in golden_tools.cases(golden).items():
    base, loss = a["out_base_loss"], a["out_loss"]
    make = functools.partial(
      Check,
      loss="module_pair",
      source=M2MKD,
      inputs={
        "student": a["in_student_logits"],
        "teacher": a["in_teacher_logits"],
      },
    )
    yield make(
      name=f"{golden}/{case}/base",
      call=_call(a, teacher_weight=0.0),
      value=base,
    )
    yield make(
      name=f"{golden}/{case}/numel",
      call=_call(a, kd_reduction="numel"),
      value=loss,
      gradients={"student": a["grad_student_logits"]},
    )
    if not a["param_hard"]:
      # The mean over the batch alone is the released KL times the classes.
      rest = (1 - a["param_alpha"]) * base
      classes = a["in_student_logits"].shape[-1]
      yield make(
        source="formula",
        name=f"{golden}/{case}/batchmean",
        call=_call(a),
        value=rest + classes * (loss - rest),
      )
