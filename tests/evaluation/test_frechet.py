"""The Frechet distance against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from jaxkd import evaluation
from jaxkd.errors import RefusedInput


def _set(seed, count, mean, covariance_root):
  """Examples with exactly this mean and covariance root root^T."""
  raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
  raw -= raw.mean(0)
  inverse_root = np.linalg.inv(np.linalg.cholesky(raw.T @ raw / (count - 1)))
  return raw @ inverse_root.T @ covariance_root.T + mean


def _random(seed, count=40, dimensions=5):
  return np.random.default_rng(seed).normal(size=(count, dimensions))


def test_equal_covariances_leave_the_distance_of_the_means():
  root = _random(0, 3, 3)
  x = _set(1, 20, np.array([1.0, 2.0, 3.0]), root)
  y = _set(2, 30, np.array([1.5, 0.0, 3.0]), root)
  assert evaluation.frechet_distance(x, y) == pytest.approx(4.25, rel=1e-9)


def test_diagonal_gaussians_are_by_hand():
  # Means 0 and (1, 2); deviations (1, 3) and (2, 5): 5 + 1 + 4.
  x = _set(1, 20, np.zeros(2), np.diag([1.0, 3.0]))
  y = _set(2, 20, np.array([1.0, 2.0]), np.diag([2.0, 5.0]))
  assert evaluation.frechet_distance(x, y) == pytest.approx(10.0, rel=1e-9)


def test_full_covariances_agree_with_the_root_of_the_product():
  x, y = _random(0) @ _random(1, 5, 5), _random(2) @ _random(3, 5, 5) + 0.3
  a, b = (np.cov(z, rowvar=False) for z in (x, y))
  root = np.trace(linalg.sqrtm(a @ b).real)
  expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * root
  distance = evaluation.frechet_distance(x, y)
  assert distance == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 1000), st.integers(2, 12))
def test_a_set_is_at_distance_zero_from_itself(seed, count):
  x = 10 * _random(seed, count)
  distance = evaluation.frechet_distance(x, x[::-1])
  assert 0 <= distance < 1e-10


@given(st.integers(0, 1000))
def test_the_sides_may_be_swapped(seed):
  x, y = _random(seed), 2 * _random(seed + 1, 7) + 1
  there, back = (
    evaluation.frechet_distance(*pair) for pair in ((x, y), (y, x))
  )
  assert there == pytest.approx(back, rel=1e-9)


@given(st.integers(0, 1000))
def test_rotating_and_shifting_both_sets_changes_nothing(seed):
  x, y = _random(seed), 2 * _random(seed + 1, 30) + 1
  rotation, _ = np.linalg.qr(_random(seed + 2, 5, 5))
  moved = evaluation.frechet_distance(x @ rotation + 4, y @ rotation + 4)
  assert moved == pytest.approx(evaluation.frechet_distance(x, y), rel=1e-9)


def test_the_distance_is_squared_in_the_scale_of_the_features():
  x, y = _random(0), _random(1) + 1
  larger = evaluation.frechet_distance(3 * x, 3 * y)
  assert larger == pytest.approx(9 * evaluation.frechet_distance(x, y))


def test_fewer_examples_than_dimensions_are_exact():
  # Two examples each: covariances of rank 1 along orthogonal axes.
  x, y = np.zeros((2, 6)), np.zeros((2, 6))
  x[:, 0], y[:, 1] = (-1, 1), (-2, 2)
  assert evaluation.frechet_distance(x, y) == pytest.approx(2 + 8)
  y = 3 * x
  assert evaluation.frechet_distance(x, y) == pytest.approx(8.0, rel=1e-12)


def test_a_set_without_spread_is_its_mean():
  x, y = np.ones((4, 3)), np.zeros((5, 3))
  assert evaluation.frechet_distance(x, y) == pytest.approx(3.0)


def test_float32_features_are_computed_in_float64():
  x = (1e3 + _random(0)).astype(np.float32)
  y = (1e3 + _random(1)).astype(np.float32)
  exact = evaluation.frechet_distance(
    x.astype(np.float64) - 1e3, y.astype(np.float64) - 1e3
  )
  assert evaluation.frechet_distance(x, y) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_feature_that_is_not_finite_leaves_no_distance(bad):
  x = _random(0)
  y = x.copy()
  y[3, 2] = bad
  assert math.isnan(evaluation.frechet_distance(x, y))
  assert math.isnan(evaluation.frechet_distance(y, x))


@pytest.mark.parametrize(
  ("shape", "other", "message"),
  [
    ((4, 3), (4, 2), "3 dimensions and the reference 2, expected as many"),
    ((1, 3), (4, 3), r"features have shape \(1, 3\), .* at least 2 examples"),
    ((4, 3), (0, 3), r"reference have shape \(0, 3\)"),
    ((4,), (4, 3), r"features have shape \(4,\), expected \[examples"),
    ((4, 0), (4, 0), r"features have shape \(4, 0\)"),
  ],
)
def test_sets_that_have_no_distance_are_refused(shape, other, message):
  with pytest.raises(RefusedInput, match=message):
    evaluation.frechet_distance(np.ones(shape), np.ones(other))
