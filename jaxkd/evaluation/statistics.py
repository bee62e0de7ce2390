"""Means over seeds with their intervals, and differences paired by seed.

A result is a list of values, one a seed. Two results with the same seeds are
compared seed by seed, since a seed fixes the split and the order of the data.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from jaxkd.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference:
  """The mean of `values - baseline` over seeds, in the unit of the values.

  Attributes:
    mean: the mean difference.
    low: the lower end of its interval; nan with fewer than two pairs.
    high: the upper end of its interval; nan with fewer than two pairs.
    p_value: two-sided p-value of the paired t-test; nan with fewer than two.
    clear: whether the interval lies wholly on one side of zero.
  """

  mean: float
  low: float
  high: float
  p_value: float
  clear: bool


def mean(values: ArrayLike, where: ArrayLike | None = None) -> float:
  """The mean over examples, of those that count.

  Args:
    values: [N].
    where: which count, [N]; all by default.

  Returns:
    The mean; nan if none counts.
  """
  values = np.asarray(values, np.float64)
  weights = None if where is None else np.asarray(where, np.float64)
  if weights is not None and not weights.any():
    return math.nan
  return float(np.average(values, weights=weights))


def mean_interval(
  values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
  """Returns the mean over seeds and its Student t interval.

  Args:
    values: [n] one value a seed.
    confidence: the coverage of the interval, between 0 and 1.

  Returns:
    `(mean, low, high)`. With one value `low` and `high` are nan: one seed says
    nothing of the spread. A value that is not finite makes all three nan.

  Raises:
    ConfigError: there is no value, or the confidence is not in (0, 1).
  """
  x = np.asarray(values, np.float64).ravel()
  if x.size == 0:
    raise ConfigError("mean_interval got no values, expected one a seed")
  if not 0.0 < confidence < 1.0:
    raise ConfigError(f"confidence is {confidence}, expected in (0, 1)")
  if not np.isfinite(x).all():
    return math.nan, math.nan, math.nan
  mean = float(x.mean())
  if x.size == 1:
    return mean, math.nan, math.nan
  quantile = special.stdtrit(x.size - 1, 0.5 + confidence / 2.0)
  half = float(quantile) * _standard_error(x)
  return mean, mean - half, mean + half


def paired_difference(
  values: Sequence[float],
  baseline: Sequence[float],
  confidence: float = 0.95,
) -> PairedDifference:
  """Compares two results over the same seeds, seed by seed.

  Args:
    values: [n] one value a seed.
    baseline: [n] the values of the baseline, for the same seeds in order.
    confidence: the coverage of the interval, between 0 and 1.

  Returns:
    The mean difference with its interval and the p-value of the paired t-test.

  Raises:
    ConfigError: the lengths differ, there is no value, or the confidence is
      not in (0, 1).
  """
  if len(values) != len(baseline):
    raise ConfigError(
      f"a paired difference needs the same seeds on both sides, got"
      f" {len(values)} values and {len(baseline)} of the baseline"
    )
  x = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
  mean, low, high = mean_interval(x, confidence)
  return PairedDifference(
    mean=mean,
    low=low,
    high=high,
    p_value=_p_value(x),
    clear=low > 0.0 or high < 0.0,
  )


def _standard_error(x: np.ndarray) -> float:
  return float(x.std(ddof=1)) / math.sqrt(x.size)


def _p_value(x: np.ndarray) -> float:
  if x.size < 2 or not np.isfinite(x).all():
    return math.nan
  mean, error = float(x.mean()), _standard_error(x)
  if error == 0.0:
    return 1.0 if mean == 0.0 else 0.0
  return float(2.0 * special.stdtr(x.size - 1, -abs(mean / error)))
