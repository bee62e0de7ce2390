"""Accuracy by subsets of modalities, and the search for the weak one."""

import math

import numpy as np
import pytest

from jaxkd import evaluation
from jaxkd.errors import RefusedInput
from tests import golden_tools

GOLDEN = golden_tools.load("mmanet__mar")
RANK = golden_tools.section(GOLDEN, "rank_")
NAMES = ("a", "b", "c")
SUBSETS = ["a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]


def test_combinations_are_all_subsets_but_the_empty_one():
  rows = evaluation.modality_combinations(3)
  names = [evaluation.combination_name(NAMES, row) for row in rows]
  assert names == SUBSETS
  official = GOLDEN["drop_combination_order"]
  assert {tuple(r) for r in rows.tolist()} == {
    tuple(r) for r in official.tolist()
  }
  assert evaluation.modality_combinations(1).tolist() == [[1]]
  assert len(evaluation.modality_combinations(5)) == 31


def _right(count):
  """Logits [4, 3] that are right on the first examples."""
  labels = np.array([0, 1, 2, 1])
  said = np.where(np.arange(4) < count, labels, (labels + 1) % 3)
  return np.eye(3)[said]


LABELS = [0, 1, 2, 1]
LOGITS = dict(
  zip(SUBSETS, (_right(n) for n in (0, 1, 2, 2, 3, 3, 4)), strict=True)
)


def test_accuracy_of_every_combination_and_their_mean_by_hand():
  found = evaluation.subset_accuracies(LOGITS, LABELS, NAMES)
  assert list(found) == [*SUBSETS, "mean"]
  expected = [0, 0.25, 0.5, 0.5, 0.75, 0.75, 1]
  assert list(found.values()) == [*expected, pytest.approx(3.75 / 7)]


def test_masked_examples_are_left_out():
  labels = [0, 1, 99, 99]
  found = evaluation.subset_accuracies(LOGITS, labels, NAMES, [1, 1, 0, 0])
  assert [found[name] for name in ("a", "b", "c")] == [0, 0.5, 1]


def test_no_example_has_no_mean():
  found = evaluation.subset_accuracies(LOGITS, LABELS, NAMES, np.zeros(4))
  assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("change", [{"a+b": None}, {"b+a": _right(1)}])
def test_a_missing_or_unknown_combination_is_refused(change):
  logits = {k: v for k, v in {**LOGITS, **change}.items() if v is not None}
  with pytest.raises(RefusedInput, match=r"expected those of a, b, c, a\+b"):
    evaluation.subset_accuracies(logits, LABELS, NAMES)


def test_logits_of_other_examples_are_refused():
  logits = {**LOGITS, "a+c": np.zeros((5, 3))}
  with pytest.raises(RefusedInput, match=r"logits of a\+c have shape"):
    evaluation.subset_accuracies(logits, LABELS, NAMES)


def test_the_weak_set_equals_the_reference():
  divergence = RANK["out_accumulated_divergence"]
  weak = evaluation.weak_set(divergence, RANK["in_combinations"][:-1])
  expected = RANK["out_weak_combinations"]
  np.testing.assert_array_equal(weak[0], expected[0])
  assert sorted(weak.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("worst", [0, 1, 2])
def test_another_worst_pair_is_another_weak_set(worst):
  pairs = evaluation.modality_combinations(3)[3:6]
  weak = evaluation.weak_set(np.eye(3)[worst], pairs)
  np.testing.assert_array_equal(weak[0], pairs[worst])
  np.testing.assert_array_equal(weak[1:].sum(1), 1)
  np.testing.assert_array_equal(weak[1:].sum(0), pairs[worst])


def test_of_two_modalities_the_weak_one_is_alone():
  weak = evaluation.weak_set([0.1, 0.4], [[1, 0], [0, 1]])
  np.testing.assert_array_equal(weak, [[0, 1]])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: evaluation.modality_combinations(0), "0 modalities"),
    (lambda: evaluation.combination_name(NAMES, [1, 0]), r"expected \(3,\)"),
    (lambda: evaluation.weak_set([1.0], [[1, 0], [0, 1]]), "divergences have"),
    (lambda: evaluation.weak_set([math.nan], [[1, 0]]), "expected finite"),
  ],
)
def test_wrong_input_is_refused(call, message):
  with pytest.raises(RefusedInput, match=message):
    call()
