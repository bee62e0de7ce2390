"""Losses of several stages, and the salience of a teacher's features."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.maps import (
  MDISTILLER,
  REP_DISTILLER,
  TORCHDISTILL,
  last,
)

STAGES = "logit_feature_baselines__stages"
MGDFR = "mst_distill_baselines__mgdfr"
MST_DISTILL = "Gray-OREO/MST-Distill@093b2fe KD_methods/MGDFR.py"

# What the reference calls it: our loss, whose code, how ours is called.
OUTPUTS = {
  "fsp_repdistiller": (
    "fsp",
    f"{REP_DISTILLER} FSP.py:FSP",
    lambda s, t: losses.fsp(s, t).mean(),
  ),
  "fsp_torchdistill": (
    "fsp",
    f"{TORCHDISTILL} mid_level.py:FSPLoss",
    lambda s, t: losses.fsp(s, t, convention="columns").mean(),
  ),
  "ab_repdistiller": (
    "activation_boundary",
    f"{REP_DISTILLER} AB.py:ABLoss",
    lambda s, t: losses.activation_boundary(s, t).mean() * 3 / 1000,
  ),
  "kdsvd_repdistiller_k1": (
    "kdsvd",
    f"{REP_DISTILLER} KDSVD.py:KDSVD",
    lambda s, t: losses.kdsvd(s, t).mean(),
  ),
  "kdsvd_mdistiller_k1": (
    "kdsvd",
    f"{MDISTILLER} KDSVD.py:kdsvd_loss",
    lambda s, t: losses.kdsvd(s, t, over="columns").mean(),
  ),
  "hcl_single": (
    "review_kd",
    f"{MDISTILLER} ReviewKD.py:hcl_loss",
    lambda s, t: losses.review_kd(s, t).mean(),
  ),
}


def _stage_checks() -> Iterator[Check]:
  for case, arrays in golden_tools.cases(STAGES).items():
    count = sum(name.startswith("in_student") for name in arrays)
    inputs = {
      f"{who}{i}": last(arrays[f"in_{who}_stage{i}_nchw"])
      for who in ("student", "teacher")
      for i in range(count)
    }
    for output, (loss, source, call) in OUTPUTS.items():

      def staged(call=call, count=count, **maps):
        sides = (
          [maps[f"{who}{i}"] for i in range(count)]
          for who in ("student", "teacher")
        )
        return call(*sides)

      svd = loss == "kdsvd"
      yield Check(
        loss=loss,
        source=source,
        name=f"{STAGES}/{case}/{output}",
        call=staged,
        inputs=inputs,
        value=arrays[f"out_{output}"],
        gradients={}
        if svd
        else {
          f"student{i}": last(arrays[f"grad_student_stage{i}_nchw__{output}"])
          for i in range(count)
        },
        rtol=1e-3 if svd else 2e-5,
        atol=1e-5,
        gradient_rtol=2e-5,
        gradient_atol=1e-5,
      )


def _mgdfr(case: str, what: str, loss: str, call, inputs, value, **more):
  return Check(
    loss=loss,
    source=MST_DISTILL,
    name=f"{MGDFR}/{case}/{what}",
    call=call,
    inputs=inputs,
    value=value,
    rtol=2e-5,
    **more,
  )


def _mgdfr_checks() -> Iterator[Check]:
  cases = golden_tools.cases(MGDFR)
  for case in ("case0", "case1"):
    arrays = cases[case]
    index = arrays["param_index"]
    features = {"features": last(arrays["in_features"])}
    if case == "case0":
      permutation = arrays["in_permutation"]
      yield _mgdfr(
        case,
        "permuted",
        "permute_features",
        lambda features, i=index, p=permutation: losses.permute_features(
          features, i, p
        ),
        features,
        arrays["out_permuted"],
      )
    yield _mgdfr(
      case,
      "frozen",
      "freeze_features",
      lambda features, i=index: losses.freeze_features(features, i),
      features,
      last(arrays["out_frozen"]),
    )
  arrays = cases["case2"]
  yield _mgdfr(
    "case2",
    "loss",
    "fitnet",
    lambda student, teacher: losses.fitnet(student, teacher).mean(),
    {
      "student": arrays["in_student_logits"],
      "teacher": arrays["in_teacher_logits"],
    },
    arrays["out_loss"],
    gradients={
      "student": arrays["grad_student_logits"],
      "teacher": arrays["grad_teacher_logits"],
    },
  )
  # The official second phase freezes nothing.
  none = np.zeros(0, np.int32)
  yield _mgdfr(
    "case3",
    "freeze_hook_is_identity",
    "freeze_features",
    lambda features: jnp.all(
      losses.freeze_features(features, none) == features
    ).astype(int),
    {"features": cases["case0"]["in_features"]},
    cases["case3"]["out_freeze_hook_is_identity"],
  )
  yield from _salience(cases["case4"])


def _salience(arrays: dict[str, np.ndarray]) -> Iterator[Check]:
  """A teacher Linear-ReLU-Linear, its first layer's output permuted."""
  permutations = arrays["in_permutations"]

  def salience(inputs, student, **options):
    features = inputs @ arrays["w_fc.weight"].T + arrays["w_fc.bias"][None]

    def head(x):
      x = jnp.maximum(x, 0) @ arrays["w_out.weight"].T
      return x + arrays["w_out.bias"][None]

    return losses.feature_salience(
      head, features, student, permutations, **options
    )

  inputs = {
    "inputs": arrays["in_inputs"],
    "student": arrays["in_student_logits"],
  }
  yield _mgdfr(
    "case4",
    "salience_normalised",
    "feature_salience",
    salience,
    inputs,
    arrays["out_salience_normalised"],
  )
  repeats, _, examples = permutations.shape
  yield _mgdfr(  # theirs divides the mean by both numbers once more
    "case4",
    "salience_raw",
    "feature_salience",
    lambda **given: salience(**given, normalized=False) / repeats / examples,
    inputs,
    arrays["out_salience_raw"],
  )
  yield _mgdfr(
    "case4",
    "removed_index",
    "least_salient",
    lambda **given: jnp.sort(
      losses.least_salient(salience(**given), float(arrays["param_ratio"]))
    ),
    inputs,
    np.sort(arrays["out_removed_index"]),
  )


def checks() -> Iterator[Check]:
  """Every output of every case; of KD-SVD and the salience, values."""
  yield from _stage_checks()
  yield from _mgdfr_checks()
