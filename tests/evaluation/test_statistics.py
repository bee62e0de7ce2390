"""Intervals over seeds against values computed by hand."""

import math

import pytest
from scipy import stats

from jaxkd.errors import ConfigError
from jaxkd.evaluation import statistics


def test_interval_of_three_values_is_the_textbook_one():
  # mean 2, s = 1, t(0.975, 2) = 4.302653, half = 4.302653 / sqrt(3) = 2.484138
  mean, low, high = statistics.mean_interval([1.0, 2.0, 3.0])
  assert mean == 2.0
  assert low == pytest.approx(2 - 2.484138, abs=1e-6)
  assert high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_confidence_sets_the_width():
  # t(0.95, 2) = 2.919986, half = 1.685855
  _, low, high = statistics.mean_interval([1.0, 2.0, 3.0], confidence=0.9)
  assert (high - low) / 2 == pytest.approx(1.685855, abs=1e-6)


def test_one_value_has_a_mean_and_no_interval():
  mean, low, high = statistics.mean_interval([0.5])
  assert mean == 0.5
  assert math.isnan(low)
  assert math.isnan(high)


def test_equal_values_have_an_interval_of_no_width():
  assert statistics.mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_leaves_no_mean(bad):
  assert all(map(math.isnan, statistics.mean_interval([1.0, bad])))


def test_no_values_are_refused():
  with pytest.raises(ConfigError, match="no values"):
    statistics.mean_interval([])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_outside_its_range_is_refused(confidence):
  with pytest.raises(ConfigError, match="confidence is"):
    statistics.mean_interval([1.0, 2.0], confidence)


def test_paired_difference_is_by_hand():
  # differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.464102, p = 0.0741799
  d = statistics.paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
  assert d.mean == 2.0
  assert d.low == pytest.approx(-0.484138, abs=1e-6)
  assert d.high == pytest.approx(4.484138, abs=1e-6)
  assert d.p_value == pytest.approx(0.0741799, abs=1e-6)
  assert not d.clear


def test_p_value_equals_the_paired_t_test_of_scipy():
  x, y = [0.91, 0.93, 0.92, 0.95, 0.90], [0.89, 0.90, 0.91, 0.91, 0.90]
  d = statistics.paired_difference(x, y)
  assert d.p_value == pytest.approx(stats.ttest_rel(x, y).pvalue, rel=1e-9)


def test_pairing_makes_clear_what_the_spread_hides():
  base = [0.1, 0.5, 0.9]
  d = statistics.paired_difference([0.20, 0.61, 0.99], base)
  _, low, high = statistics.mean_interval(base)
  assert d.clear
  assert low < 0.6 < high


@pytest.mark.parametrize("sign", [1, -1])
def test_swapping_the_sides_flips_the_sign(sign):
  x, y = [1.0, 1.1, 1.3], [0.1, 0.2, 0.1]
  d = statistics.paired_difference(*((x, y) if sign == 1 else (y, x)))
  assert d.mean * sign == pytest.approx(1.0)
  assert d.clear
  assert d.low <= d.mean <= d.high


def test_a_constant_difference_is_certain():
  d = statistics.paired_difference([2.0, 3.0], [1.0, 2.0])
  assert (d.mean, d.p_value, d.clear) == (1.0, 0.0, True)


def test_no_difference_at_all_is_not_clear():
  d = statistics.paired_difference([2.0, 3.0], [2.0, 3.0])
  assert (d.mean, d.p_value, d.clear) == (0.0, 1.0, False)


def test_one_pair_says_nothing_of_chance():
  d = statistics.paired_difference([2.0], [1.0])
  assert d.mean == 1.0
  assert math.isnan(d.p_value)
  assert not d.clear


def test_unequal_seeds_are_refused():
  with pytest.raises(ConfigError, match="2 values and 1 of the baseline"):
    statistics.paired_difference([1.0, 2.0], [1.0])
