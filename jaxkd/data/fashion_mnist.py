"""Fashion-MNIST: grey images of ten kinds of clothing, from a local folder.

Reference: Xiao, Rasul and Vollgraf, https://arxiv.org/abs/1708.07747.
"""

import dataclasses
import os
from typing import ClassVar

import numpy as np

from jaxkd.data import checks, mnist, randomness, tfds
from jaxkd.data.partition import cut
from jaxkd.data.source import ArraySource, Splits
from jaxkd.errors import RefusedInput

_TEST = 10_000
_MEAN, _DEVIATION = 0.2860, 0.3530  # of the 60,000 training images


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionMNIST:
  """Clothing: `image` float32 [28, 28, 1], mean 0 and deviation 1.

  The test part is the published one, the same for every seed; training and
  validation are cut from the other images by the seed.

  Attributes:
    folder: Local folder with the idx files; None for TensorFlow Datasets.
    train_size: Training examples.
    validation_size: Validation examples.
    test_size: Test examples, the first ones; None for all.
    batch_size: Examples in a training batch.
  """

  name: ClassVar[str] = "fashion_mnist"
  num_classes: ClassVar[int] = 10

  folder: str | os.PathLike[str] | None = None
  train_size: int = 50_000
  validation_size: int = 10_000
  test_size: int | None = None
  batch_size: int = 64

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    for name in ("train_size", "validation_size", "batch_size"):
      checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)
    if self.test_size is not None:
      checks.require_integer(f"{owner}.test_size", self.test_size, 1)

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: A size exceeds its part.
      RefusedInput: A file or dataset is absent or damaged; says the remedy.
    """
    images, labels = self._load()
    published = min(_TEST, len(images) // 5)  # of smaller files: a fifth
    rest = len(images) - published
    checks.require(
      self.train_size + self.validation_size <= rest,
      "FashionMNIST.train_size + validation_size",
      self.train_size + self.validation_size,
      f"at most {rest}",
    )
    order = randomness.permutation(rest, seed=seed, purpose="split images")
    train, others = np.split(order, [self.train_size])
    test = np.arange(rest, len(images))
    parts = (
      train,
      others[: self.validation_size],
      cut(test, self.test_size, "FashionMNIST.test_size"),
    )
    sources = [
      ArraySource(
        {"image": images[part], "label": labels[part]},
        decode={"image": _standardised},
      )
      for part in parts
    ]
    return Splits(train=sources[0], validation=sources[1], test=sources[2])

  def _load(self) -> tuple[np.ndarray, np.ndarray]:
    if self.folder is not None:
      return mnist.load(self.folder, mnist.FASHION)
    try:
      arrays = tfds.load("fashion_mnist", "train+test").arrays
    except RefusedInput as error:
      raise RefusedInput(
        f"{error}\nFashionMNIST.folder = None reads TensorFlow Datasets. "
        f"Without it, give a folder: {mnist.FASHION.how_to_fill}"
      ) from error
    return arrays["image"].reshape(-1, 28, 28), arrays["label"]


def _standardised(stored: np.ndarray) -> np.ndarray:
  """Returns float32 [B, 28, 28, 1] from uint8 [B, 28, 28]."""
  pictures = stored[..., None].astype(np.float32) / 255
  return (pictures - np.float32(_MEAN)) / np.float32(_DEVIATION)
