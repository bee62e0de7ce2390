"""Numbers about a classifier, by hand and in the limits."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from jaxkd import evaluation
from jaxkd.errors import RefusedInput

LOGITS = np.log([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1]])
LABELS = np.array([0, 1, 1])


def test_accuracy_and_cross_entropy_are_per_example():
  np.testing.assert_array_equal(evaluation.accuracy(LOGITS, LABELS), [1, 0, 0])
  np.testing.assert_allclose(
    evaluation.cross_entropy(LOGITS, LABELS), -np.log([0.7, 0.3, 0.4])
  )


def test_leading_axes_are_kept():
  logits, labels = np.zeros((2, 3, 4)), np.zeros((2, 3), int)
  assert evaluation.accuracy(logits, labels).shape == (2, 3)
  assert evaluation.cross_entropy(logits, labels).shape == (2, 3)


def test_cross_entropy_does_not_change_with_a_shift_of_the_logits():
  np.testing.assert_allclose(
    evaluation.cross_entropy(LOGITS + 1e4, LABELS),
    evaluation.cross_entropy(LOGITS, LABELS),
    rtol=1e-9,
  )


def test_extreme_logits_stay_exact():
  logits = [[1e4, -1e4], [-1e4, 1e4]]
  np.testing.assert_array_equal(
    evaluation.cross_entropy(logits, [0, 0]), [0.0, 2e4]
  )


def test_a_class_that_cannot_be_costs_infinity_only_as_the_label():
  logits = [[0.0, 0.0, -np.inf]] * 2
  np.testing.assert_allclose(
    evaluation.cross_entropy(logits, [0, 2]), [np.log(2), np.inf]
  )


@pytest.mark.parametrize("row", [[-np.inf] * 2, [np.nan, 0.0], [np.inf, 0.0]])
def test_a_row_that_is_no_distribution_has_no_cross_entropy(row):
  assert np.isnan(evaluation.cross_entropy([row], [0])).all()


def test_a_row_with_nan_is_wrong_whatever_its_label():
  logits = [[np.nan, 0.0]] * 2
  np.testing.assert_array_equal(evaluation.accuracy(logits, [0, 1]), [0, 0])


def test_one_class_is_always_right():
  out = evaluation.summarise([[3.0], [-5.0]], [0, 0], None, 1)
  assert out == {
    "accuracy": 1.0,
    "cross_entropy": 0.0,
    "ece": 0.0,
    "confusion": [[2]],
  }


def test_bfloat16_logits_are_read():
  logits = jnp.asarray([[2.0, 0.0]], jnp.bfloat16)
  np.testing.assert_allclose(
    evaluation.cross_entropy(logits, jnp.asarray([0])), np.log1p(np.exp(-2.0))
  )


def test_calibration_error_is_by_hand():
  # Confidences 0.7 (right), 0.6 and 0.5 (wrong), each alone in its bin.
  ece = evaluation.expected_calibration_error(LOGITS, LABELS)
  assert ece == pytest.approx((0.3 + 0.6 + 0.5) / 3)


def test_examples_of_a_bin_are_averaged_before_the_gap_is_taken():
  # 0.7 right and 0.6, 0.5 wrong in one bin: |1/3 - 0.6|.
  ece = evaluation.expected_calibration_error(LOGITS, LABELS, bins=1)
  assert ece == pytest.approx(0.6 - 1 / 3)


def test_a_calibrated_classifier_has_no_error():
  logits = np.tile(np.log([0.75, 0.25]), (400, 1))
  labels = np.arange(400) % 4 == 0
  ece = evaluation.expected_calibration_error(logits, labels)
  assert ece == pytest.approx(0.0, abs=1e-12)


def test_confusion_has_labels_down_and_predictions_across():
  matrix = evaluation.confusion_matrix([1, 1, 0, 2], [0, 1, 0, 1], 3)
  np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 1], [0, 0, 0]])


def test_summary_agrees_with_scikit_learn():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(50, 4)), rng.integers(4, size=50)
  out = evaluation.summarise(logits, labels, None, 4)
  p = np.exp(evaluation.log_softmax(logits))
  predicted = logits.argmax(-1)
  loss = metrics.log_loss(labels, p, labels=range(4))
  confusion = metrics.confusion_matrix(labels, predicted, labels=range(4))
  assert out["accuracy"] == metrics.accuracy_score(labels, predicted)
  assert out["cross_entropy"] == pytest.approx(loss)
  assert out["confusion"] == confusion.tolist()


def test_masked_examples_change_nothing_whatever_they_hold():
  logits = np.concatenate([LOGITS, [[np.nan] * 3, [np.inf] * 3]])
  labels, mask = [*LABELS, -1, 99], [1.0, 1.0, 1.0, 0.0, 0.0]
  assert evaluation.summarise(logits, labels, mask, 3) == (
    evaluation.summarise(LOGITS, LABELS, None, 3)
  )


@pytest.mark.parametrize("n", [0, 3])
def test_no_example_has_no_mean(n):
  logits, labels, mask = np.zeros((n, 2)), np.zeros(n, int), np.zeros(n)
  out = evaluation.summarise(logits, labels, mask, 2)
  means = out["accuracy"], out["cross_entropy"], out["ece"]
  assert all(map(math.isnan, means))
  assert out["confusion"] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label):
  with pytest.raises(RefusedInput, match=f"label {label} is not a class"):
    evaluation.cross_entropy(LOGITS[:1], [label])


def test_shapes_that_do_not_belong_together_are_refused():
  with pytest.raises(RefusedInput, match=r"shape \(3, 3\) and labels \(2,\)"):
    evaluation.accuracy(LOGITS, LABELS[:2])
  with pytest.raises(RefusedInput, match=r"mask has shape \(2,\)"):
    evaluation.summarise(LOGITS, LABELS, [1, 1], 3)
  with pytest.raises(RefusedInput, match="have 3 classes, expected 4"):
    evaluation.summarise(LOGITS, LABELS, None, 4)
