"""Digit views: three synthetic modalities of one handwritten digit.

The left half of the image, the right half, and the sums of its rows and
columns, each with noise of its own strength. Images are the 1,797 of "Optical
Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning
Repository, 1998, doi 10.24432/C50P49; CC BY 4.0).
"""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np

from jaxkd.data import checks, partition, randomness
from jaxkd.data.source import ArraySource, Splits

_FULL_INK = 16
_FILE = pathlib.Path(__file__).with_name("digits.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitViews:
  """Digits by three modalities: `left`, `right` and `sums`.

  `left` and `right` are float32 [8, 4], 0-1 before the noise; `sums` is float32
  [16], the mean ink of the eight rows and of the eight columns. `available` is
  float32 [3] and 1: all modalities are there, and who drops some of them
  replaces it. The noise of an example depends on the seed and its image, not
  on the sizes of the parts.

  Attributes:
    train_size: Training examples left after the split.
    validation_fraction: Share of the images in the validation part.
    test_fraction: Share of the images in the test part.
    left_noise: Deviation of the Gaussian noise, 1 being full ink.
    right_noise: Likewise.
    sums_noise: Likewise; the weak modality.
    batch_size: Examples in a training batch.
  """

  name: ClassVar[str] = "digit_views"
  num_classes: ClassVar[int] = 10
  modalities: ClassVar[tuple[str, ...]] = ("left", "right", "sums")

  train_size: int = 500
  validation_fraction: float = 0.2
  test_fraction: float = 0.3
  left_noise: float = 0.25
  right_noise: float = 0.3
  sums_noise: float = 0.2
  batch_size: int = 32

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    partition.check_fractions(
      owner, self.validation_fraction, self.test_fraction
    )
    for name in ("left_noise", "right_noise", "sums_noise"):
      checks.require_number(f"{owner}.{name}", getattr(self, name), 0)
    for name in ("train_size", "batch_size"):
      checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: `train_size` exceeds the training part, or a part is empty.
    """
    with np.load(_FILE) as file:
      images = file["image"].reshape(-1, 8, 8).astype(np.float64) / _FULL_INK
      labels = file["label"].astype(np.int32)
    train, *others = partition.three_way(
      len(labels),
      validation=self.validation_fraction,
      test=self.test_fraction,
      seed=seed,
      purpose="images",
    )
    train = partition.cut(train, self.train_size, "DigitViews.train_size")
    entries = {
      **self._views(images, seed),
      "available": np.ones((len(labels), 3), np.float32),
      "label": labels,
    }
    sources = [
      ArraySource({name: array[part] for name, array in entries.items()})
      for part in (train, *others)
    ]
    return Splits(train=sources[0], validation=sources[1], test=sources[2])

  def _views(self, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Returns the noisy modalities of images [N, 8, 8], float32."""
    clean = {
      "left": images[:, :, :4],
      "right": images[:, :, 4:],
      "sums": np.concatenate([images.mean(2), images.mean(1)], axis=1),
    }
    views = {}
    for name in self.modalities:
      rng = randomness.generator(seed=seed, purpose=f"{name} noise")
      noise = rng.standard_normal(clean[name].shape)
      noisy = clean[name] + getattr(self, f"{name}_noise") * noise
      views[name] = noisy.astype(np.float32)
    return views
