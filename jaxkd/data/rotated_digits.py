"""Rotated digits: forty classes, few examples of most.

A class is a handwritten digit in one of four positions, by quarters of a turn.
In the training part the classes have a long tail: the frequency of the class of
rank r, an order drawn by the seed, is 85 0.93^r + 4 times a common factor.

Images are the 1,797 of "Optical Recognition of Handwritten Digits" (E.
Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998, doi
10.24432/C50P49; CC BY 4.0).
"""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np

from jaxkd.data import checks, randomness
from jaxkd.data.source import ArraySource, Splits

_HALF_INK = 8
_FILE = pathlib.Path(__file__).with_name("digits.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedDigits:
  """Digits in four positions: `image` float32 [64], -1 (paper) to 1 (ink).

  An image and its rotations are in one part only.

  Attributes:
    validation_size: Upright images of the validation part; four times as many
      examples.
    test_size: Likewise of the test part.
    head: Examples of the most frequent class in the training part, before the
      tail's constant is added.
    decay: Factor from one rank to the next.
    tail: Examples that every class has.
    teacher_noise: Deviation of the noise on the images of the split `teacher`:
      all positions of all training images, for a teacher that is imperfect.
    batch_size: Examples in a training batch.
  """

  name: ClassVar[str] = "rotated_digits"
  num_classes: ClassVar[int] = 40

  validation_size: int = 100
  test_size: int = 500
  head: int = 85
  decay: float = 0.93
  tail: int = 4
  teacher_noise: float = 0.35
  batch_size: int = 64

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    for name in ("validation_size", "test_size", "tail", "batch_size"):
      checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)
    checks.require_integer(f"{owner}.head", self.head, 0)
    checks.require_number(f"{owner}.decay", self.decay, 0, 1)
    checks.require_number(f"{owner}.teacher_noise", self.teacher_noise, 0)

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: The sizes leave too few images for the training part.
    """
    with np.load(_FILE) as file:
      images = file["image"].reshape(-1, 8, 8).astype(np.float32)
      labels = file["label"].astype(np.int32)
    order = randomness.permutation(
      len(labels), seed=seed, purpose="split images"
    )
    cuts = np.cumsum([self.test_size, self.validation_size])
    test, validation, train = np.split(order, cuts)
    examples = _turned(images / _HALF_INK - 1, labels)
    noise = randomness.generator(seed=seed, purpose="teacher noise")
    noisy = examples[0] + self.teacher_noise * noise.standard_normal(
      examples[0].shape
    )
    return Splits(
      train=_source(examples, train, self._frequent(labels[train], seed)),
      validation=_source(examples, validation),
      test=_source(examples, test),
      others={
        "teacher": _source((noisy.astype(np.float32), examples[1]), train)
      },
    )

  def _frequent(self, labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns booleans [N, 4]: which rotations of which images are kept."""
    ranks = randomness.permutation(40, seed=seed, purpose="class ranks")
    wanted = np.round(self.head * self.decay**ranks + self.tail).astype(int)
    kept = np.zeros((len(labels), 4), bool)
    for number, count in enumerate(wanted):
      rows = np.flatnonzero(labels == number // 4)
      checks.require(
        count <= len(rows),
        "RotatedDigits.head + tail",
        int(count),
        f"at most {len(rows)}, the images of digit {number // 4}",
      )
      first = number % 4 * len(rows) // 4  # other images for every position
      kept[np.roll(rows, -first)[:count], number % 4] = True
    return kept


def _turned(
  images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [N, 4, 64] and labels [N, 4], by quarters of a turn."""
  turns = [np.rot90(images, turn, axes=(1, 2)) for turn in range(4)]
  rotated = np.stack(turns, axis=1).reshape(len(images), 4, 64)
  return rotated, 4 * labels[:, None] + np.arange(4, dtype=np.int32)


def _source(
  examples: tuple[np.ndarray, np.ndarray],
  part: np.ndarray,
  kept: np.ndarray | None = None,
) -> ArraySource:
  """Returns the kept rotations of the images of a part."""
  image, label = (array[part] for array in examples)
  kept = np.ones(label.shape, bool) if kept is None else kept
  return ArraySource({"image": image[kept], "label": label[kept]})
