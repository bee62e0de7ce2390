"""DIST, and multi-level logit distillation in two libraries."""

import functools
from collections.abc import Iterator

import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check
from tests.losses.vectors.logits import LOGIT_STD, TORCHDISTILL, table_checks

DIST = "hunto/DIST_KD@2418f18 segmentation/losses/dist_kd.py:DIST"
MLKD = "Jin-Ying/Multi-Level-Logit-Distillation@5ee473f KD_ours.py"
MST = (
  "Gray-OREO/MST-Distill@093b2fe KD_methods/MLLD.py:MultiLevelLogitDistillation"
)
VIEWS = (
  "student_logits_weak",
  "teacher_logits_weak",
  "student_logits_strong",
  "teacher_logits_strong",
  "labels",
)


def _dist(scalars):
  t_ = scalars["temperature"]
  b, g = scalars["beta"], scalars["gamma"]

  def dist(inter, intra, temperature, eps):
    # The official code has no T^2.
    factor = temperature**2 if eps else 1
    return lambda s, t, y: (
      losses.dist(
        s,
        t,
        inter_weight=inter,
        intra_weight=intra,
        temperature=temperature,
        eps=eps,
      )
      / factor
    )

  return {
    "dist_torchdistill": (
      "dist",
      f"{TORCHDISTILL} mid_level.py:DISTLoss",
      dist(b, g, t_, 0.0),
    ),
    "dist_official_tau1": ("dist", DIST, dist(b, g, 1.0, 1e-8)),
    "inter_official": ("dist", DIST, dist(1.0, 0.0, t_, 1e-8)),
    "intra_official": ("dist", DIST, dist(0.0, 1.0, t_, 1e-8)),
  }


def _dense() -> Check:
  file = "logit_feature_baselines__dist"
  arrays = golden_tools.cases(file)["caseS"]
  gradient = arrays["grad_student_logits_nchw__dist_official_dense"]
  return Check(
    loss="dist",
    source=DIST,
    name=f"{file}/caseS/dist_official_dense",
    call=losses.dist,
    inputs={
      name: np.moveaxis(arrays[f"in_{name}_logits_nchw"], 1, -1)
      for name in ("student", "teacher")
    },
    value=arrays["out_dist_official_dense"],
    gradients={"student": np.moveaxis(gradient, 1, -1)},
    atol=1e-5,
    gradient_rtol=1e-5,
    gradient_atol=1e-5,
  )


def _mean_kl(student, teacher, t, standardize=False):
  return losses.kl(
    student, teacher, temperature=t, standardize=standardize
  ).mean()


def _mlkd(scalars):
  first, weight = scalars["temperature"], scalars["kd_weight"]
  standardize = bool(scalars["logit_stand"])
  temperatures = (first, 3.0, 5.0, 2.0, 6.0)
  kd = functools.partial(_mean_kl, standardize=standardize)

  def ce(sw, tw, ss, ts, y):
    both = losses.cross_entropy(sw, y) + losses.cross_entropy(ss, y)
    return scalars["ce_weight"] * both.mean()

  def strong(sw, tw, ss, ts):
    # The weak view again at 2 and at 6.
    views = {2.0: (sw, tw), 6.0: (sw, tw)}
    return sum(kd(*views.get(t, (ss, ts)), t) for t in temperatures[1:]) + kd(
      ss, ts, first
    )

  def instances(sw, tw, ss, ts, y):
    rows, _ = losses.confidence_masks(tw)
    weak = sum(kd(sw, tw, t) for t in temperatures)
    return weight * (rows.mean() * weak + strong(sw, tw, ss, ts))

  def masked(loss, which):
    def call(sw, tw, *rest):
      mask = losses.confidence_masks(tw)[which]
      values = [loss(sw, tw, temperature=t) for t in temperatures]
      return weight * mask.mean() * sum(values)

    return call

  def total(sw, tw, ss, ts, y):
    weak = losses.mlkd(
      sw,
      tw,
      temperatures=temperatures,
      masks="code",
      standardize=standardize,
    )
    return ce(sw, tw, ss, ts, y) + weight * (weak + strong(sw, tw, ss, ts))

  train = f"{LOGIT_STD} MLKD.py:MLKD.forward_train"
  return _mlkd_parts(first, train) | {
    "code_loss_ce": ("cross_entropy", train, ce),
    "code_loss_kd": ("kl", train, instances),
    "code_loss_cc": (
      "class_correlation",
      train,
      masked(losses.class_correlation, 1),
    ),
    "code_loss_bc": (
      "batch_correlation",
      train,
      masked(losses.batch_correlation, 0),
    ),
    "code_total": ("mlkd", train, total),
  }


def _mlkd_parts(temperature, train):
  def single(loss):
    return lambda sw, tw, *rest: loss(sw, tw, temperature=temperature)

  def mask(which):
    return lambda sw, tw, *rest: losses.confidence_masks(tw)[which]

  return {
    "cc_loss": (
      "class_correlation",
      f"{MLKD}:cc_loss",
      single(losses.class_correlation),
    ),
    "bc_loss": (
      "batch_correlation",
      f"{MLKD}:bc_loss",
      single(losses.batch_correlation),
    ),
    "sample_mask": ("confidence_masks", train, mask(0)),
    "class_mask": ("confidence_masks", train, mask(1)),
  }


def _class_mean(student, teacher, t):
  """The mean over C x C entries."""
  value = losses.class_correlation(student, teacher, temperature=t)
  return value / student.shape[1]


def _batch_mean(student, teacher, t):
  """The mean over B x B entries."""
  value = losses.batch_correlation(student, teacher, temperature=t)
  return value / student.shape[0]


MLLD = {
  "kd": ("kl", _mean_kl),
  "class": ("class_correlation", _class_mean),
  "batch": ("batch_correlation", _batch_mean),
}


def _mlld() -> Iterator[Check]:
  file = "mst_distill_baselines__mlld"
  for case, arrays in golden_tools.cases(file).items():
    temperatures = [float(t) for t in arrays["param_temperatures"]]

    def total(student, teacher, temperatures=temperatures):
      terms = [
        f(student, teacher, t) for _, f in MLLD.values() for t in temperatures
      ]
      return sum(terms) / 3 / len(temperatures)

    common = {
      "source": MST,
      "rtol": 5e-5,
      "inputs": {
        name: arrays[f"in_{name}_logits"] for name in ("student", "teacher")
      },
    }
    for name, (loss, f) in MLLD.items():
      for i, t in enumerate(temperatures):
        yield Check(
          loss=loss,
          name=f"{file}/{case}/{name}_at_{t:g}",
          call=lambda student, teacher, f=f, t=t: f(student, teacher, t),
          value=arrays[f"out_{name}_by_temperature"][i],
          **common,
        )
    yield Check(
      loss="class_correlation",
      name=f"{file}/{case}/loss",
      call=total,
      value=arrays["out_loss"],
      gradients={"student": arrays["grad_student_logits"]},
      gradient_rtol=5e-5,
      **common,
    )


def checks() -> Iterator[Check]:
  """DIST on vectors and maps; the terms and the objectives of MLKD."""
  yield from table_checks(
    "logit_feature_baselines__dist",
    _dist,
    cases=("case0", "case1", "case2"),
    atol=1e-5,
  )
  yield _dense()
  yield from table_checks(
    "logit_feature_baselines__mlkd", _mlkd, VIEWS, atol=1e-5
  )
  yield from _mlld()
