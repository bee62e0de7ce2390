"""How far what a generator makes is from data, in the features of a network.

NumPy in float64 on the host, as in `jaxkd.evaluation.classification`. Numbers
compare only where the network and the numbers of examples are the same: small
sets are farther from everything, even from their own kind.

Reference: Heusel et al. (FID), https://arxiv.org/abs/1706.08500, Eq. 6.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxkd.errors import ConfigError, RefusedInput


def frechet_distance(features: Any, reference: Any) -> float:
  """Returns the squared Frechet distance of two sets, taken as Gaussians.

  `|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^(1/2) S_2 S_1^(1/2))^(1/2))` with means
  m and unbiased covariances S. Sets of fewer examples than dimensions have a
  covariance without full rank, which does no harm.

  Args:
    features: [N, D], of at least two examples; of a generator's samples.
    reference: [M, D], of at least two examples; of data.

  Returns:
    A number of at least 0, in squared units of the features; nan where a
    feature is not finite.

  Raises:
    RefusedInput: a set is not [N, D] of at least two examples, or the
      dimensions differ.
  """
  x, y = _checked("features", features), _checked("reference", reference)
  if x.shape[1] != y.shape[1]:
    raise RefusedInput(
      f"features have {x.shape[1]} dimensions and the reference {y.shape[1]},"
      " expected as many"
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    return float("nan")
  first, second = _covariance(x), _covariance(y)
  # The trace of the root is the sum of the singular values of this product.
  product = _square_root(first) @ _square_root(second)
  overlap = np.linalg.svd(product, compute_uv=False).sum()
  gap = x.mean(axis=0) - y.mean(axis=0)
  spread = np.trace(first) + np.trace(second) - 2.0 * overlap
  return float(max(gap @ gap + spread, 0.0))


def _checked(what: str, features: Any) -> np.ndarray:
  x = np.asarray(features).astype(np.float64)
  if x.ndim != 2 or len(x) < 2 or x.shape[1] == 0:
    raise RefusedInput(
      f"{what} have shape {x.shape}, expected [examples, dimensions] of at"
      " least 2 examples"
    )
  return x


def _covariance(x: np.ndarray) -> np.ndarray:
  centred = x - x.mean(axis=0)
  return centred.T @ centred / (len(x) - 1)


def _square_root(covariance: np.ndarray) -> np.ndarray:
  """Returns the symmetric root; eigenvalues that are rounding count as 0."""
  values, vectors = np.linalg.eigh(covariance)
  rounding = values[-1] * len(values) * np.finfo(np.float64).eps
  roots = np.sqrt(np.where(values > rounding, values, 0.0))
  return (vectors * roots) @ vectors.T


@dataclasses.dataclass(frozen=True)
class Generation:
  """Frechet distance of samples to data, in a classifier's features.

  Predictors return a mapping with `features` [B, D].

  Attributes:
    reference: the predictor that shows data.
  """

  metric: ClassVar[str] = "frechet"
  higher: ClassVar[bool] = False

  reference: str = "data"

  def of(self, outputs: Any) -> Any:
    """The features."""
    return outputs.value["features"]

  def check(self, outputs: Mapping[str, Any], task: Any) -> None:
    """Raises `ConfigError` where there is no reference."""
    del task
    if self.reference not in outputs:
      raise ConfigError(
        f"Generation.reference={self.reference!r}: expected one of "
        + ", ".join(outputs)
      )

  def __call__(
    self, kept: Mapping[str, Any], rows: Mapping[str, np.ndarray], task: Any
  ) -> dict[str, dict[str, Any]]:
    """`frechet` by predictor, from features [N, D]; data against its halves."""
    del rows, task
    data = kept[self.reference]
    found = {
      name: {"frechet": frechet_distance(features, data)}
      for name, features in kept.items()
      if name != self.reference
    }
    half = frechet_distance(data[::2], data[1::2])
    return {**found, self.reference: {"frechet": half}}
