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


def _mined(predicted, classes):
  """The summed divergence of labels [epochs, pairs and all, examples]."""
  total = 0
  for epoch in predicted:
    *pairs, full = (evaluation.label_frequencies(row, classes) for row in epoch)
    total = total + evaluation.frequency_divergence(pairs, full)
  return total


def test_divergence_and_weak_set_equal_the_reference():
  divergence = _mined(RANK["in_predicted_labels"], int(RANK["param_class_num"]))
  np.testing.assert_allclose(
    divergence, RANK["out_accumulated_divergence"], rtol=5e-5, atol=1e-6
  )
  weak = evaluation.weak_set(divergence, RANK["in_combinations"][:-1])
  expected = RANK["out_weak_combinations"]
  np.testing.assert_array_equal(weak[0], expected[0])
  assert sorted(weak.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("worst", [0, 1, 2])
def test_another_worst_pair_is_another_weak_set(worst):
  full = np.arange(40) % 4
  labels = [full] * 3
  labels[worst] = np.zeros(40, int)
  pairs = evaluation.modality_combinations(3)[3:6]
  divergence = _mined([[*labels, full]], 4)
  weak = evaluation.weak_set(divergence, pairs)
  np.testing.assert_array_equal(weak[0], pairs[worst])
  np.testing.assert_array_equal(weak[1:].sum(1), 1)
  np.testing.assert_array_equal(weak[1:].sum(0), pairs[worst])


def test_equal_frequencies_do_not_diverge():
  v = [0.5, 0.25, 0.25]
  assert evaluation.frequency_divergence([v], v) == pytest.approx(0)


def test_divergence_is_the_kl_of_softmaxes_by_hand():
  q, full = np.exp([1.0, 0.0]), np.exp([0.0, 1.0])
  q, full = q / q.sum(), full / full.sum()
  expected = (q * np.log(q / full)).sum()
  value = evaluation.frequency_divergence([1.0, 0.0], [0.0, 1.0])
  assert float(value) == pytest.approx(expected)


def test_of_two_modalities_the_weak_one_is_alone():
  weak = evaluation.weak_set([0.1, 0.4], [[1, 0], [0, 1]])
  np.testing.assert_array_equal(weak, [[0, 1]])


def test_frequencies_count_what_is_not_masked():
  found = evaluation.label_frequencies([0, 2, 2, 9], 3, [1, 1, 1, 0])
  np.testing.assert_allclose(found, [1 / 3, 0, 2 / 3])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: evaluation.modality_combinations(0), "0 modalities"),
    (lambda: evaluation.combination_name(NAMES, [1, 0]), r"expected \(3,\)"),
    (lambda: evaluation.label_frequencies([3], 3), "expected 0 to 2"),
    (lambda: evaluation.label_frequencies([1], 3, [0]), "no predictions"),
    (
      lambda: evaluation.frequency_divergence([0.5, 0.5], [1.0]),
      "expected .* classes",
    ),
    (lambda: evaluation.weak_set([1.0], [[1, 0], [0, 1]]), "divergences have"),
    (lambda: evaluation.weak_set([math.nan], [[1, 0]]), "expected finite"),
  ],
)
def test_wrong_input_is_refused(call, message):
  with pytest.raises(RefusedInput, match=message):
    call()
