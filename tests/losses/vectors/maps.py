"""Losses of feature maps against three collections of them."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

MDISTILLER = "megvii-research/mdistiller@a08d46f"
REP_DISTILLER = "HobbitLong/RepDistiller@b84f547"
TORCHDISTILL = "yoshitomo-matsubara/torchdistill@3e4373c"
MAPS = "logit_feature_baselines__maps"


def last(array: np.ndarray) -> np.ndarray:
  """Channels last."""
  return np.moveaxis(array, 1, -1)


def _ft_squared(student, teacher):
  """RepDistiller's order 2 is the mean of squares, not the norm."""
  value = losses.factor_transfer(student, teacher, order=2, factor="attention")
  places = min(student.shape[1], teacher.shape[1]) ** 2
  return jnp.mean(value**2) / places


# What the reference calls it: our loss, whose code, how ours is called.
OUTPUTS = {
  "at_p2": (
    "attention_transfer",
    f"{MDISTILLER} AT.py:single_stage_at_loss",
    lambda s, t: losses.attention_transfer(s, t).mean(),
  ),
  "at_p3_abs_free": (
    "attention_transfer",
    f"{MDISTILLER} AT.py:single_stage_at_loss",
    lambda s, t: losses.attention_transfer(s, t, power=3).mean(),
  ),
  "at_torchdistill_code": (
    "attention_transfer",
    f"{TORCHDISTILL} mid_level.py:ATLoss",
    lambda s, t: losses.attention_transfer(s, t).mean(),
  ),
  "at_torchdistill_paper": (
    "attention_transfer",
    f"{TORCHDISTILL} mid_level.py:ATLoss",
    lambda s, t: losses.attention_transfer(s, t, convention="paper").mean(),
  ),
  "nst": (
    "nst",
    f"{REP_DISTILLER} NST.py",
    lambda s, t: losses.nst(s, t).mean(),
  ),
  "sp": (
    "similarity_preserving",
    f"{MDISTILLER} SP.py:sp_loss",
    losses.similarity_preserving,
  ),
  "sp_torchdistill": (
    "similarity_preserving",
    f"{TORCHDISTILL} mid_level.py:SPKDLoss",
    lambda s, t: losses.similarity_preserving(s, t, order=1),
  ),
  "ft_repdistiller_p1_2_p2_1": (
    "factor_transfer",
    f"{REP_DISTILLER} FT.py:FactorTransfer",
    lambda s, t: losses.factor_transfer(s, t, factor="attention").mean(),
  ),
  "ft_repdistiller_p2_2": (
    "factor_transfer",
    f"{REP_DISTILLER} FT.py:FactorTransfer",
    _ft_squared,
  ),
  "ft_torchdistill_p1": (
    "factor_transfer",
    f"{TORCHDISTILL} mid_level.py:FTLoss",
    lambda s, t: losses.factor_transfer(s, t).mean(),
  ),
  "ft_torchdistill_p2": (
    "factor_transfer",
    f"{TORCHDISTILL} mid_level.py:FTLoss",
    lambda s, t: losses.factor_transfer(s, t, order=2).mean(),
  ),
  "ab_repdistiller_1stage_margin1": (
    "activation_boundary",
    f"{REP_DISTILLER} AB.py:ABLoss",
    lambda s, t: losses.activation_boundary(s, t).mean() * 3 / 1000,
  ),
  "ab_torchdistill_mean_margin1": (
    "activation_boundary",
    f"{TORCHDISTILL} mid_level.py:AltActTransferLoss",
    lambda s, t: losses.activation_boundary(s, t).mean(),
  ),
}


def _alignment() -> Iterator[Check]:
  """KD3's weighted alignment and its weights, of the files' two cases."""
  source = "tangjialiang97/KD3@91e2d4c KDDD: weight_mse_loss"
  for case in ("align0", "align1"):
    arrays = golden_tools.section(golden_tools.load("kd3__losses"), f"{case}_")
    logits = {
      "student_logits": arrays["in_student_logits"],
      "teacher_logits": arrays["in_teacher_logits"],
    }
    common = {"source": source, "rtol": 1e-5, "gradient_rtol": 1e-4}
    yield Check(
      loss="disagreement",
      name=f"kd3__losses/{case}/weights",
      call=lambda student_logits, teacher_logits: losses.disagreement(
        student_logits, teacher_logits
      ),
      inputs=logits,
      value=arrays["out_weights"],
      **common,
    )
    yield Check(
      loss="weighted_alignment",
      name=f"kd3__losses/{case}/loss",
      call=lambda **given: losses.weighted_alignment(**given).mean(),
      inputs={
        "student": last(arrays["in_student_feat"]),
        "teacher": last(arrays["in_teacher_feat"]),
        **logits,
      },
      value=arrays["out_loss"],
      gradients={"student": last(arrays["grad_student_feat"])},
      **common,
    )


def checks() -> Iterator[Check]:
  """Every output of every case, with the student's gradient."""
  for case, arrays in golden_tools.cases(MAPS).items():
    for output, (loss, source, call) in OUTPUTS.items():
      if f"out_{output}" in arrays:
        yield Check(
          loss=loss,
          source=source,
          name=f"{MAPS}/{case}/{output}",
          call=lambda student, teacher, call=call: call(student, teacher),
          inputs={
            "student": last(arrays["in_student_map_nchw"]),
            "teacher": last(arrays["in_teacher_map_nchw"]),
          },
          value=arrays[f"out_{output}"],
          gradients={
            "student": last(arrays[f"grad_student_map_nchw__{output}"])
          },
          rtol=2e-5,
        )
  yield from _alignment()
