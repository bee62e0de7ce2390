"""Digits: small handwritten digits, no download.

Images are the 1,797 of "Optical Recognition of Handwritten Digits" (E.
Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998, doi
10.24432/C50P49; CC BY 4.0), as scikit-learn carries them.
"""

import dataclasses
import numbers
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxkd.data import checks, partition, randomness
from jaxkd.data.source import ArraySource, Splits

_HALF_INK = 8
_FILE = pathlib.Path(__file__).with_name("digits.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
  """Handwritten digits: `image` float32 [8, 8, 1] in -1 (paper) to 1 (ink).

  The three parts are cut by the seed. So is every draw below, by the seed and
  the image, whatever the sizes of the parts.

  Attributes:
    train_size: Training examples.
    validation_size: Validation examples.
    test_size: Test examples.
    batch_size: Examples in a training batch.
    flat: Whether `image` is [64].
    noise: Whether there is an entry `noise`, standard normal of the image's
      shape: what a generator starts from.
    wrong_labels: For imperfect teachers: class -> (wrong class, probability).
      An entry `noisy_label` int32 has the wrong class with this probability in
      the training part; in the others, and for other classes, it is `label`,
      which stays right.
    outliers: Share of training images in whose place there is standard normal
      noise, 0 to below 1; the label stays. Above 0 there is an entry `outlier`
      int32, 1 for them.
    shots: Labelled training examples of every class; None for all. The others
      are then the split `unlabelled`, with which a teacher may do more.
  """

  name: ClassVar[str] = "digits"
  num_classes: ClassVar[int] = 10

  train_size: int = 1000
  validation_size: int = 200
  test_size: int = 597
  batch_size: int = 64
  flat: bool = False
  noise: bool = False
  wrong_labels: Mapping[int, tuple[int, float]] | None = None
  outliers: float = 0.0
  shots: int | None = None

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    for name in ("train_size", "validation_size", "test_size", "batch_size"):
      checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)
    if self.shots is not None:
      checks.require_integer(f"{owner}.shots", self.shots, 1)
    checks.require_number(f"{owner}.outliers", self.outliers, 0, 1)
    for label, change in (self.wrong_labels or {}).items():
      checks.require(
        _is_change(label, change),
        f"{owner}.wrong_labels",
        {label: change},
        "a class: (another class, a probability), classes 0 to 9",
      )

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: The sizes exceed the number of images.
    """
    with np.load(_FILE) as file:
      images = file["image"].astype(np.float32) / _HALF_INK - 1
      labels = file["label"].astype(np.int32)
    parts = self._parts(len(labels), seed)
    shape = (64,) if self.flat else (8, 8, 1)
    entries = {"image": images.reshape(-1, *shape), "label": labels}
    if self.noise:
      entries["noise"] = _normal(entries["image"].shape, seed, "noise")
    if self.wrong_labels:
      entries["noisy_label"] = self._noisy(labels, parts[0], seed)
    if self.outliers:
      outlier = self._outliers(len(labels), parts[0], seed)
      other = _normal(entries["image"].shape, seed, "outliers")
      entries["image"][outlier] = other[outlier]
      entries["outlier"] = outlier.astype(np.int32)
    train, validation, test = (
      ArraySource({name: array[part] for name, array in entries.items()})
      for part in parts
    )
    others = {}
    if self.shots is not None:
      rows = partition.few(train.arrays["label"], self.shots, "Digits.shots")
      others["unlabelled"] = _rows(train, ~rows)
      train = _rows(train, rows)
    return Splits(train=train, validation=validation, test=test, others=others)

  def _parts(self, count: int, seed: int) -> list[np.ndarray]:
    """Returns the images of train, validation and test.

    The test part comes first in the order, then validation: neither depends
    on the size of the training part.
    """
    sizes = (self.test_size, self.validation_size, self.train_size)
    checks.require(
      sum(sizes) <= count,
      "Digits.train_size + validation_size + test_size",
      sum(sizes),
      f"at most {count}",
    )
    order = randomness.permutation(count, seed=seed, purpose="split images")
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])[::-1]

  def _noisy(
    self, labels: np.ndarray, train: np.ndarray, seed: int
  ) -> np.ndarray:
    """Returns labels int32 [N], some wrong in the training part."""
    draws = randomness.generator(seed=seed, purpose="wrong labels").random(
      len(labels)
    )
    trained = np.isin(np.arange(len(labels)), train)
    noisy = labels.copy()
    for label, (wrong, probability) in self.wrong_labels.items():
      noisy[trained & (labels == label) & (draws < probability)] = wrong
    return noisy

  def _outliers(self, count: int, train: np.ndarray, seed: int) -> np.ndarray:
    """Returns booleans [N]: the training images that are replaced."""
    order = randomness.permutation(count, seed=seed, purpose="outliers")
    ranked = order[np.isin(order, train)]
    outlier = np.zeros(count, bool)
    outlier[ranked[: round(self.outliers * len(train))]] = True
    return outlier


def _rows(source: ArraySource, rows: np.ndarray) -> ArraySource:
  """Returns a source of its own, numbered from 0, of some examples."""
  arrays = source.arrays.items()
  return ArraySource({n: array[rows] for n, array in arrays if n != "index"})


def _is_change(label: Any, change: Any) -> bool:
  """Whether it says with what probability a class is called another one."""
  if not isinstance(change, tuple | list) or len(change) != 2:
    return False
  wrong, probability = change
  classes = range(Digits.num_classes)
  return (
    label in classes
    and wrong in classes
    and wrong != label
    and isinstance(probability, numbers.Real)
    and 0 <= probability <= 1
  )


def _normal(shape: tuple[int, ...], seed: int, purpose: str) -> np.ndarray:
  """Returns float32 standard normal numbers of one purpose."""
  generator = randomness.generator(seed=seed, purpose=purpose)
  return generator.standard_normal(shape).astype(np.float32)
