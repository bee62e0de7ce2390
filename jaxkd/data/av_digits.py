"""AV-digits: small handwritten digits paired with spoken ones, no download.

AV-MNIST in little: the image has lost most of its energy, the sound is noisy,
and together they say more than each alone. Images are the 1,797 of "Optical
Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine
Learning Repository, 1998, doi 10.24432/C50P49; CC BY 4.0); sounds are the
packaged speech of `jaxkd.data.speech`.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxkd.data import checks, energy, partition, randomness, speech
from jaxkd.data.source import ArraySource, Splits

_FULL_INK = 16
_FILE = pathlib.Path(__file__).with_name("digits.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AVDigits:
  """Scarce paired digits: `image` [8, 8, 1] and `audio` [frames, coefficients].

  Images and voice settings are split by the seed; every image is paired once
  with a digit of its class by a voice of its own split. What is fitted (the
  principal components, mean and deviation of the audio) is fitted on the
  training part. All noise is drawn once by the seed. `image` is float32,
  0-1 before degrading and within about -1..2 after; `audio` is float32
  with mean 0 and deviation 1 per coefficient over the training part.

  Attributes:
    train_size: Training examples left after the split.
    validation_fraction: Share of images and voices in the validation part.
    test_fraction: Share of images and voices in the test part.
    energy_removed: Fraction of the images' variance removed by PCA.
    image_noise: Deviation of the Gaussian noise, 1 being full ink.
    audio_noise: Deviation of the Gaussian noise, 1 being the deviation of the
      coefficient over the training part.
    batch_size: Examples in a training batch.
    coefficients: Mel-frequency cepstral coefficients per frame.
    frames: Frames of the 0.75 s of sound.
  """

  name: ClassVar[str] = "av_digits"
  num_classes: ClassVar[int] = 10

  train_size: int = 300
  validation_fraction: float = 0.2
  test_fraction: float = 0.2
  energy_removed: float = 0.5
  image_noise: float = 0.18
  audio_noise: float = 0.5
  batch_size: int = 32
  coefficients: int = 8
  frames: int = 8

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    partition.check_fractions(
      owner, self.validation_fraction, self.test_fraction
    )
    checks.require_number(f"{owner}.energy_removed", self.energy_removed, 0, 1)
    for name in ("image_noise", "audio_noise"):
      checks.require_number(f"{owner}.{name}", getattr(self, name), 0)
    for name in ("train_size", "batch_size", "frames"):
      checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)
    checks.require_integer(
      f"{owner}.coefficients", self.coefficients, 1, speech.MEL_BINS
    )

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: `train_size` exceeds the training part, or a part is empty.
    """
    with np.load(_FILE) as file:
      images = file["image"].reshape(-1, 64)
      labels = file["label"].astype(np.int32)
    train, *others = self._three_way(len(images), seed, "images")
    train = partition.cut(train, self.train_size, "AVDigits.train_size")
    parts = (train, *others)
    pictures = self._pictures(images, parts, seed)
    sounds = self._sounds(labels, parts, seed)
    sources = [
      ArraySource({"image": picture, "audio": sound, "label": labels[part]})
      for picture, sound, part in zip(pictures, sounds, parts, strict=True)
    ]
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

  def _pictures(
    self, images: np.ndarray, parts: Sequence[np.ndarray], seed: int
  ) -> list[np.ndarray]:
    """Returns float32 [n, 8, 8, 1] for each part, the first one fitted on."""
    rng = randomness.generator(seed=seed, purpose="image noise")
    noise = self.image_noise * rng.standard_normal(images.shape)
    degrade = energy.LowEnergy.fit(images[parts[0]], self.energy_removed)
    pictures = [degrade(images[p]) / _FULL_INK + noise[p] for p in parts]
    return [p.reshape(-1, 8, 8, 1).astype(np.float32) for p in pictures]

  def _sounds(
    self, labels: np.ndarray, parts: Sequence[np.ndarray], seed: int
  ) -> list[np.ndarray]:
    """Returns float32 [n, frames, coefficients], the first part fitted on."""
    spoken = speech.load()
    clean = speech.mfcc(
      speech.nats(spoken.log_mel),
      coefficients=self.coefficients,
      frames=self.frames,
    )
    voices = self._three_way(spoken.voice.max() + 1, seed, "voices")
    draws = randomness.generator(seed=seed, purpose="pairs").random(len(labels))
    sounds = []
    for part, voice in zip(parts, voices, strict=True):
      pool = np.flatnonzero(np.isin(spoken.voice, voice))
      rows = partition.partners(
        labels[part], pool, spoken.label[pool], draws[part]
      )
      sounds.append(clean[rows])
    rng = randomness.generator(seed=seed, purpose="audio noise")
    noise = rng.standard_normal((len(labels), *clean.shape[1:]))
    noise *= self.audio_noise * sounds[0].std((0, 1))
    sounds = [sound + noise[p] for sound, p in zip(sounds, parts, strict=True)]
    mean, deviation = sounds[0].mean((0, 1)), sounds[0].std((0, 1))
    return [((s - mean) / deviation).astype(np.float32) for s in sounds]
