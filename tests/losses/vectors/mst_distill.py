"""The distillation term of MST-Distill."""

from collections.abc import Iterator

import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check


def _last(array):
  return np.moveaxis(array, 1, -1)


def checks() -> Iterator[Check]:
  """KL of student and teacher, dense outputs among them, both gradients."""
  for case, arrays in golden_tools.cases("mst_distill__kd_loss").items():
    temperature = float(arrays["param_temperature"])
    yield Check(
      loss="kl",
      source="Gray-OREO/MST-Distill@093b2fe KD_methods/MST.py",
      name=f"mst_distill__kd_loss/{case}",
      call=lambda student, teacher, t=temperature: losses.kl(
        student, teacher, temperature=t
      ).mean(),
      inputs={
        "student": _last(arrays["in_student_logits"]),
        "teacher": _last(arrays["in_teacher_logits"]),
      },
      value=arrays["out_loss"],
      gradients={
        "student": _last(arrays["grad_student_logits"]),
        "teacher": _last(arrays["grad_teacher_logits_nondetached"]),
      },
      rtol=1e-4 if case == "case3" else 2e-5,
    )
