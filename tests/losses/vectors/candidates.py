"""Scores of candidates, with and without mining of hard ones (DCD)."""

import functools
from collections.abc import Iterator

import jax.numpy as jnp

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

DCD = "raojay7/DCD@fbb5ff0 meter/modules/"


def checks() -> Iterator[Check]:
  """All cases of both files."""
  yield from _dynamic()
  yield from _mined()


def _released(student, teacher, alpha):
  return losses.dynamic_contrastive(
    student, teacher, alpha=alpha, per_example=False
  )


def _distil(loss):
  """The part that alpha weights, of a loss that is linear in alpha."""
  return lambda student, teacher: (
    loss(student, teacher, alpha=1.0) - loss(student, teacher, alpha=0.0)
  )


def _dynamic() -> Iterator[Check]:
  for case, arrays in golden_tools.cases("dcd__dynamic_losses").items():
    alpha = float(arrays["param_alpha"])
    inputs = {
      "student": arrays["in_student_scores"],
      "teacher": arrays["in_teacher_scores"],
    }
    for output, name, call in (
      (
        "dynamic_total",
        "dynamic_contrastive",
        lambda student, teacher, a=alpha: _released(student, teacher, a),
      ),
      (
        "dynamic_distill",
        "dynamic_contrastive",
        lambda student, teacher: _released(student, teacher, 1.0),
      ),
      (
        "dynamic_bce",
        "dynamic_contrastive",
        lambda student, teacher: _released(student, teacher, 0.0),
      ),
      (
        "focal_total",
        "focal_scores",
        lambda student, teacher, a=alpha: losses.focal_scores(
          student, teacher, alpha=a
        ),
      ),
      ("focal_distill", "focal_scores", _distil(losses.focal_scores)),
      (
        "focal_ce",
        "focal_scores",
        lambda student, teacher: losses.focal_scores(
          student, teacher, alpha=0.0
        ),
      ),
    ):
      gradient = f"grad_{output.split('_')[0]}_student_scores"
      yield Check(
        loss=name,
        source=f"{DCD}KD_loss.py",
        name=f"dcd__dynamic_losses/{case}/{output}",
        call=call,
        inputs=inputs,
        value=arrays[f"out_{output}"],
        gradients={"student": arrays[gradient]} if "total" in output else {},
      )


def _candidates(teacher, count):
  """The right candidate and the teacher's best others, [B, K + 1]."""
  right = jnp.zeros(teacher.shape, bool).at[:, 0].set(True)
  others = losses.hard_negatives(teacher, right, count)
  first = jnp.zeros((len(teacher), 1), jnp.int32)
  return jnp.concatenate([first, others], axis=1)


def _mined() -> Iterator[Check]:
  for case, arrays in golden_tools.cases("dcd__hard_negative_step").items():
    count = int(arrays["param_num_hard_negatives"])
    alpha = float(arrays["param_alpha"])
    teacher = arrays["in_teacher_scores"]
    source = f"{DCD}objectives.py:compute_irtr"
    name = f"dcd__hard_negative_step/{case}"
    yield Check(
      loss="hard_negatives",
      source=source,
      name=f"{name}/student_candidate_index",
      call=lambda teacher, count=count: _candidates(teacher, count),
      inputs={"teacher": teacher},
      value=arrays["out_student_candidate_index"],
      rtol=0,
      atol=0,
    )

    def step(student, teacher, alpha, aligned, count=count):
      chosen = _candidates(teacher, count)
      # The released code pairs the student's list with the teacher's own.
      best = jnp.argsort(-teacher, axis=1)[:, : count + 1]
      theirs = jnp.take_along_axis(teacher, chosen if aligned else best, 1)
      return _released(jnp.take_along_axis(student, chosen, 1), theirs, alpha)

    for prefix in ("", "aligned_"):
      for output, share in (("total", alpha), ("distill", 1.0), ("bce", 0.0)):
        gradients = {}
        if output == "total":
          gradients["student"] = arrays[f"{prefix}grad_student_scores"]
        yield Check(
          loss="dynamic_contrastive",
          source=source,
          name=f"{name}/{prefix}{output}",
          call=functools.partial(step, alpha=share, aligned=bool(prefix)),
          inputs={"student": arrays["in_student_scores"], "teacher": teacher},
          value=arrays[f"{prefix}out_{output}"],
          gradients=gradients,
        )
