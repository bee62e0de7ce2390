"""Removing a fraction of the energy of images by PCA, as AV-MNIST does.

Images are whole numbers, and mean and components are rounded to fixed grids,
so that all sums are exact in float64: the same images come out on every
machine and with any number of threads, and a run can resume elsewhere.

Reference: Vielzeuf et al., CentralNet, arXiv 1808.07275, Sec. 4.
"""

import dataclasses

import numpy as np

_MEAN_GRID = 2.0**4
_COMPONENT_GRID = 2.0**15


@dataclasses.dataclass(frozen=True)
class LowEnergy:
  """A projection on the leading principal components.

  Attributes:
    mean: float64 [D], the mean image in units of 1 / 16 ink level.
    components: float64 [D, K], orthonormal columns in units of 2**-15.
  """

  mean: np.ndarray
  components: np.ndarray

  @classmethod
  def fit(cls, images: np.ndarray, energy_removed: float) -> "LowEnergy":
    """Keeps the fewest components that hold `1 - energy_removed` of energy.

    Args:
      images: uint8 [N, D], the training images alone.
      energy_removed: Fraction of the total variance to remove, in [0, 1).
    """
    images = images.astype(np.float64)
    mean = images.mean(0)
    covariance = images.T @ images / len(images) - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    held = np.cumsum(values[::-1]) / values.sum()
    count = np.searchsorted(held, 1.0 - energy_removed - 1e-9) + 1
    return cls(
      np.round(mean * _MEAN_GRID),
      np.round(vectors[:, ::-1][:, :count] * _COMPONENT_GRID),
    )

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns float32 [N, D]: uint8 images [N, D], their energy removed."""
    centred = images * _MEAN_GRID - self.mean
    kept = centred @ self.components @ self.components.T / _COMPONENT_GRID**2
    return ((kept + self.mean) / _MEAN_GRID).astype(np.float32)
