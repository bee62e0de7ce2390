"""How closely a student follows its teacher."""

import math

import numpy as np
import pytest

from jaxkd import evaluation
from jaxkd.errors import RefusedInput

P = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
Q = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])


def test_agreement_counts_equal_predictions():
  assert evaluation.agreement(np.log(Q), np.log(P)) == 0.5


def test_kl_is_by_hand_with_the_teacher_first():
  first = 0.5 * math.log(2) + 0.25 * math.log(0.5)
  second = 0.2 * math.log(0.5) + 0.8 * math.log(4 / 3)
  kl = evaluation.mean_kl(np.log(Q), np.log(P))
  assert kl == pytest.approx((first + second) / 2)


def test_a_student_equal_to_its_teacher_agrees_wholly():
  logits = np.log(P)
  assert evaluation.agreement(logits + 3.0, logits) == 1.0
  assert evaluation.mean_kl(logits + 3.0, logits) == pytest.approx(0, abs=1e-12)


def test_a_class_that_neither_allows_costs_nothing():
  p = np.log([[0.5, 0.5, 1.0]])
  p[0, 2] = -np.inf
  assert evaluation.mean_kl(p, p) == 0.0


def test_a_class_that_only_the_teacher_rules_out_is_finite():
  teacher = np.array([[0.0, -np.inf]])
  kl = evaluation.mean_kl(np.zeros((1, 2)), teacher)
  assert kl == pytest.approx(math.log(2))


def test_a_class_that_only_the_student_rules_out_is_infinite():
  student = np.array([[0.0, -np.inf]])
  assert evaluation.mean_kl(student, np.zeros((1, 2))) == math.inf


def test_extreme_logits_stay_exact():
  student, teacher = np.array([[-1e4, 1e4]]), np.array([[1e4, -1e4]])
  assert evaluation.mean_kl(student, teacher) == 2e4


def test_one_class_is_followed_wholly():
  assert evaluation.agreement([[1.0]], [[5.0]]) == 1.0
  assert evaluation.mean_kl([[1.0]], [[5.0]]) == 0.0


@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_disagreement_on_either_side(side):
  pair = [np.zeros((1, 2)), np.zeros((1, 2))]
  pair[side] = np.full((1, 2), np.nan)
  assert evaluation.agreement(*pair) == 0.0
  assert math.isnan(evaluation.mean_kl(*pair))


def test_masked_examples_are_left_out():
  student = np.concatenate([np.log(Q), [[np.nan] * 3]])
  teacher = np.concatenate([np.log(P), [[np.inf] * 3]])
  mask = [1, 1, 0]
  assert evaluation.agreement(student, teacher, mask) == 0.5
  assert evaluation.mean_kl(student, teacher, mask) == pytest.approx(
    evaluation.mean_kl(np.log(Q), np.log(P))
  )


def test_no_example_has_no_mean():
  student, mask = np.log(Q), [0, 0]
  assert math.isnan(evaluation.agreement(student, student, mask))
  assert math.isnan(evaluation.mean_kl(student, student, mask))


def test_unequal_class_counts_are_refused():
  with pytest.raises(RefusedInput, match="expected equal shapes"):
    evaluation.mean_kl(np.zeros((1, 2)), np.zeros((1, 3)))
