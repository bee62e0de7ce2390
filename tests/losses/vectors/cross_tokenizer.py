"""Universal logit distillation, original and TRL's."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from tests import golden_tools
from tests.losses.vectors import Check

ORIGINAL = "Nicolas-BZRD/llm-recipes@ab6e7980 distillation_model.py"
TRL = "huggingface/trl@f2cd5771 gold_trainer.py:ULDLoss"
TOLERANCES = {"rtol": 1e-5, "gradient_rtol": 1e-4, "gradient_atol": 1e-6}


def checks() -> Iterator[Check]:
  """All outputs of the file."""
  for case, arrays in golden_tools.cases("llm_baselines__uld").items():
    name = f"llm_baselines__uld/{case}"
    yield from _originals(name, arrays)
    yield from _positional(name, arrays)
    yield from _extended(name, arrays)
    yield from _places(name, arrays)


def _check(arrays, output, name, call, **options):
  """A check of which only the logits are arguments, the rest is constant."""
  return Check(
    name=f"{name}/{output}",
    call=call,
    inputs={
      "student": arrays["in_student_logits"],
      "teacher": arrays["in_teacher_logits"],
    },
    value=arrays[f"out_{output}"],
    gradients={"student": arrays[f"grad_student_logits__{output}"]},
    **options,
    **TOLERANCES,
  )


def _answer(arrays, side, *, predicting, last):
  """Positions [B, L] at an answer's tokens, or one earlier: at what predicts
  them; with or without the last token, the end of the sequence."""
  where = arrays[f"in_{side}_labels"] != -100
  if not last:
    for row in where:
      row[np.flatnonzero(row)[-1]] = False
  return np.roll(where, -1, axis=1) if predicting else where


def _mean(values, where):
  """Mean over the positions of a sequence, then over sequences."""
  return losses.sequence_mean(values, where=where).mean()


def _by_order(student, teacher, places, **temperatures):
  student, teacher, where = losses.align_answers(
    student, teacher, *(jnp.asarray(place) for place in places)
  )
  return _mean(losses.uld(student, teacher, where=where, **temperatures), where)


def _originals(name, arrays):
  """Theirs always keeps the teacher's last token, and has a weight of 1.5."""
  for student_t, skip in ((1, 1), (2, 0)):
    places = (
      _answer(arrays, "student", predicting=True, last=not skip),
      _answer(arrays, "teacher", predicting=True, last=True),
    )
    yield _check(
      arrays,
      f"uld_original_Ts{student_t}_Tt1_skipeos{skip}_w1p5",
      name,
      lambda student, teacher, p=places, t=student_t: (
        1.5
        * _by_order(
          student, teacher, p, temperature=float(t), teacher_temperature=1.0
        )
      ),
      loss="uld",
      source=ORIGINAL,
    )


def _positional(name, arrays):
  """Their observed form reads the logits one position late."""
  for strategy in ("observed", "bayesian"):
    places = [
      _answer(arrays, side, predicting=strategy == "bayesian", last=False)
      for side in ("student", "teacher")
    ]
    yield _check(
      arrays,
      f"trl_uld_positional_{strategy}",
      name,
      lambda student, teacher, p=places: _by_order(student, teacher, p),
      loss="uld",
      source=TRL,
    )


def _extended(name, arrays):
  """Observed: the first token's row, ids and logits of the same position.

  Bayesian: the last token's row, and the logits that predict each token.
  """
  for strategy, keep in (("observed", "first"), ("bayesian", "last")):
    ends = [
      arrays[f"in_{side}_byte_offsets__{strategy}"][..., 1]
      for side in ("student", "teacher")
    ]
    places = [
      _answer(arrays, side, predicting=False, last=False)
      for side in ("student", "teacher")
    ]
    groups = losses.byte_groups(*ends, *places)
    ids = [arrays[f"in_{side}_ids"] for side in ("student", "teacher")]
    if strategy == "bayesian":
      groups, ids = (
        [np.roll(x, -1, axis=1) for x in pair] for pair in (groups, ids)
      )

    def call(student, teacher, groups=groups, ids=ids, keep=keep):
      count = min(student.shape[-2], teacher.shape[-2])
      (q, of_q), (p, of_p) = (
        losses.merge_tokens(jax.nn.softmax(z), i, g, count, keep=keep)
        for z, i, g in zip((student, teacher), ids, groups, strict=True)
      )
      where = of_q & of_p
      return _mean(losses.sorted_distance(q, p, where=where), where)

    yield _check(
      arrays,
      f"trl_uld_extended_{strategy}",
      name,
      call,
      loss="sorted_distance",
      source=TRL,
    )


def _places(name, arrays):
  """Where the answers begin and how many positions they have."""
  for side, predicting in (("original", True), ("trl", False)):
    where = _answer(arrays, "student", predicting=predicting, last=True)
    positions = np.tile(np.arange(where.shape[1]), (len(where), 1))

    def aligned(positions, where=where):
      moved = positions[..., None]
      return losses.align_answers(moved, moved, where, where)

    for what, call in (
      ("start_index", lambda positions, a=aligned: a(positions)[0][:, 0, 0]),
      ("size", lambda positions, a=aligned: a(positions)[2].sum(1)),
    ):
      yield Check(
        loss="align_answers",
        source=ORIGINAL if predicting else TRL,
        name=f"{name}/{side}_{what}",
        call=call,
        inputs={"positions": positions.astype(np.float32)},
        value=arrays[f"aux_{side}_{what}"],
        rtol=0,
        atol=0,
      )
