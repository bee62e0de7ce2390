"""AV-MNIST: handwritten digits without most of their energy, and spoken ones.

Images are MNIST (Y. LeCun, C. Cortes, C. Burges). With a folder the sounds are
the packaged speech of `jaxkd.data.speech`; without one, MNIST and the Free
Spoken Digit Dataset come from TensorFlow Datasets.

Reference: Vielzeuf et al., CentralNet, arXiv 1808.07275, Sec. 4.
"""

import dataclasses
import os
from typing import ClassVar

import numpy as np

from jaxkd.data import (
  checks,
  energy,
  mnist,
  partition,
  randomness,
  speech,
  tfds,
)
from jaxkd.data.source import ArraySource, Splits
from jaxkd.data.speech import Speech
from jaxkd.errors import RefusedInput

_SPOKEN_RATE = 8000  # Hz, of the Free Spoken Digit Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class AVMNIST:
  """Paired digits: `image` [28, 28, 1] and `audio` [112, 112, 1].

  The 70,000 images are merged and split by one permutation per seed; voices
  are split likewise, and every image is paired once with a digit of its class
  by a voice of its own split. Both entries are float32, scaled to 0-1 by the
  minimum and maximum of each sample; `audio` is the log-mel, time first.

  Attributes:
    folder: Local folder with MNIST's idx files; None for TensorFlow Datasets.
    train_size: Training examples left after the split; None for all.
    evaluation_size: Examples left in the validation and in the test part;
      None for all.
    validation_fraction: Share of images and voices in the validation part.
    test_fraction: Share of images and voices in the test part.
    energy_removed: Fraction of the training images' variance removed by PCA.
    batch_size: Examples in a training batch.
  """

  name: ClassVar[str] = "av_mnist"
  num_classes: ClassVar[int] = 10

  folder: str | os.PathLike[str] | None = None
  train_size: int | None = None
  evaluation_size: int | None = None
  validation_fraction: float = 0.2
  test_fraction: float = 0.2
  energy_removed: float = 0.75
  batch_size: int = 512

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    partition.check_fractions(
      owner, self.validation_fraction, self.test_fraction
    )
    checks.require_number(f"{owner}.energy_removed", self.energy_removed, 0, 1)
    checks.require_integer(f"{owner}.batch_size", self.batch_size, 1)
    for name in ("train_size", "evaluation_size"):
      if getattr(self, name) is not None:
        checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: A size exceeds its part, or a part is empty.
      RefusedInput: A file or dataset is absent or damaged; says the remedy.
    """
    images, labels, spoken = self._load()
    train, *others = self._three_way(len(images), seed, "images")
    train = partition.cut(train, self.train_size, "AVMNIST.train_size")
    others = [
      partition.cut(part, self.evaluation_size, "AVMNIST.evaluation_size")
      for part in others
    ]
    voices = self._three_way(len(np.unique(spoken.voice)), seed, "voices")
    degrade = energy.LowEnergy.fit(images[train], self.energy_removed)
    draws = randomness.generator(seed=seed, purpose="pairs").random(len(labels))
    sources = []
    for part, voice in zip((train, *others), voices, strict=True):
      pool = np.flatnonzero(np.isin(spoken.voice, voice))
      pool_label = spoken.label[pool]
      rows = partition.partners(
        labels[part], np.arange(len(pool)), pool_label, draws[part]
      )
      pictures = degrade(images[part]).reshape(-1, 28, 28)
      table = speech.enlarge(spoken.log_mel[pool])
      sources.append(
        ArraySource(
          {
            "image": _quantised(pictures),
            "audio": rows,
            "label": labels[part],
          },
          tables={"audio": _quantised(table)},
          decode={"image": _unit_interval, "audio": _unit_interval},
        )
      )
    return Splits(train=sources[0], validation=sources[1], test=sources[2])

  def _three_way(
    self, count: int, seed: int, purpose: str
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return partition.three_way(
      count,
      validation=self.validation_fraction,
      test=self.test_fraction,
      seed=seed,
      purpose=purpose,
    )

  def _load(self) -> tuple[np.ndarray, np.ndarray, Speech]:
    """Returns images [N, 784], labels int32 [N] and the speech."""
    if self.folder is not None:
      images, labels = mnist.load(self.folder)
      return images.reshape(-1, 784), labels, speech.load()
    try:
      spoken = _spoken_digit()
      digits = tfds.load("mnist", "train+test").arrays
    except RefusedInput as error:
      raise RefusedInput(
        f"{error}\nAVMNIST.folder = None reads MNIST and spoken digits from "
        "TensorFlow Datasets. Without TensorFlow, give a folder with MNIST's "
        "idx files, which are paired with the packaged speech: "
        f"{mnist.MNIST.how_to_fill}"
      ) from error
    return digits["image"].reshape(-1, 784), digits["label"], spoken


def _spoken_digit() -> Speech:
  """Returns the Free Spoken Digit Dataset; file names are 7_jackson_32.wav."""
  entries = tfds.read("spoken_digit", "train")
  speakers = [bytes(name).split(b"_")[1] for name in entries["audio/filename"]]
  return Speech(
    log_mel=np.stack(
      [speech.log_mel(a, _SPOKEN_RATE) for a in entries["audio"]]
    ),
    label=np.asarray(entries["label"], np.int32),
    voice=np.unique(speakers, return_inverse=True)[1].astype(np.int32),
  )


def _quantised(pictures: np.ndarray) -> np.ndarray:
  """Returns uint8 [N, H, W]: each picture's minimum 0, its maximum 255."""
  low = pictures.min((1, 2), keepdims=True)
  high = pictures.max((1, 2), keepdims=True)
  scale = np.where(high > low, 255 / np.maximum(high - low, 1e-12), 0)
  return np.round((pictures - low) * scale).astype(np.uint8)


def _unit_interval(stored: np.ndarray) -> np.ndarray:
  """Returns float32 [B, H, W, 1] in 0-1 from uint8 [B, H, W]."""
  return stored[..., None] * np.float32(1 / 255)
