"""Spoken digits: log-mel pictures of speech and what is computed from them.

The packaged file `spoken_digits.npz` holds the ten English digits spoken by
the synthesiser espeak-ng with 152 voice settings (accent and voice variant,
speed, pitch); `experiments/data/make_spoken_digits.py` makes it again.
espeak-ng itself is free software under the GPL version 3; what it says is the
output of the program and not covered by its licence, so the file comes under
the licence of this project.

Log-mel, for every source of speech: silence cut at both ends, centred in
0.75 s, peak 1; 56 frames of 40 ms under a Hann window, evenly spaced; power
spectrum of 2,048 points; 56 triangular filters, evenly spaced on the mel scale
2595 log10(1 + f / 700 Hz) between 60 and 4,000 Hz; natural logarithm relative
to the clip's maximum, cut at -80 dB. Stored as uint8: 0 is -80 dB, 255 is 0.
"""

import dataclasses
import functools
import pathlib

import numpy as np

FRAMES = 56
MEL_BINS = 56
RANGE = 8.0 * np.log(10.0)  # nats of power from silence to the maximum, 80 dB
_DURATION = 0.75  # s
_WINDOW = 0.04  # s
_FFT = 2048
_LOW, _HIGH = 60.0, 4000.0  # Hz
_SILENCE = 0.02  # of the peak
_FILE = pathlib.Path(__file__).with_name("spoken_digits.npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speech:
  """M utterances of digits.

  Attributes:
    log_mel: uint8 [M, frames 56, mel bins 56], see `nats`.
    label: int32 [M], the digit 0..9.
    voice: int32 [M], number of the speaker or voice setting.
  """

  log_mel: np.ndarray
  label: np.ndarray
  voice: np.ndarray


@functools.lru_cache(maxsize=1)
def load() -> Speech:
  """Returns the packaged speech: 152 voice settings times 10 digits."""
  with np.load(_FILE) as file:
    return Speech(
      log_mel=file["log_mel"],
      label=file["label"].astype(np.int32),
      voice=file["voice"].astype(np.int32),
    )


def log_mel(samples: np.ndarray, rate: int) -> np.ndarray:
  """Returns the log-mel of one utterance, uint8 [frames 56, mel bins 56].

  Args:
    samples: Sound pressure [T], any unit, not all zero.
    rate: Samples per second, at least 8,000.
  """
  samples = _centred(np.asarray(samples, np.float64), round(_DURATION * rate))
  width = round(_WINDOW * rate)
  starts = np.linspace(0, len(samples) - width, FRAMES).round().astype(int)
  frames = samples[starts[:, None] + np.arange(width)]
  spectrum = np.fft.rfft(frames * np.hanning(width), _FFT)
  mel = np.abs(spectrum) ** 2 @ _filters(rate).T
  relative = np.log(np.maximum(mel / mel.max(), np.exp(-RANGE)))
  return np.round((relative + RANGE) * (255.0 / RANGE)).astype(np.uint8)


def nats(stored: np.ndarray) -> np.ndarray:
  """Returns stored log-mel as float64 nats relative to the clip's maximum."""
  return stored * (RANGE / 255) - RANGE


def mfcc(
  log_mel: np.ndarray, *, coefficients: int = 15, frames: int = FRAMES
) -> np.ndarray:
  """Returns mel-frequency cepstral coefficients [M, frames, coefficients].

  The orthonormal DCT-II over the mel bins, its first coefficients, then
  linear interpolation in time.

  Args:
    log_mel: float [M, frames, mel bins] in nats.
    coefficients: How many coefficients, at most the number of mel bins.
    frames: Number of frames to return.
  """
  bins = log_mel.shape[-1]
  k = np.arange(coefficients)[:, None]
  basis = np.cos(np.pi / bins * (np.arange(bins) + 0.5) * k)
  basis *= np.where(k == 0, np.sqrt(1 / bins), np.sqrt(2 / bins))
  cepstrum = log_mel @ basis.T
  return np.matmul(_interpolation(log_mel.shape[-2], frames), cepstrum)


def enlarge(log_mel: np.ndarray, size: int = 112) -> np.ndarray:
  """Returns log-mel [M, frames, bins] as float32 [M, size, size].

  Linear interpolation in both directions.
  """
  count, frames, bins = log_mel.shape
  frequency = _interpolation(bins, size).T.astype(np.float32)
  wide = log_mel.reshape(-1, bins).astype(np.float32) @ frequency
  time = _interpolation(frames, size).astype(np.float32)
  return np.matmul(time, wide.reshape(count, frames, size))


def _centred(samples: np.ndarray, length: int) -> np.ndarray:
  """Cuts silence at both ends, then cuts or pads evenly to the length."""
  samples = samples / np.abs(samples).max()
  loud = np.flatnonzero(np.abs(samples) > _SILENCE)
  samples = samples[loud[0] : loud[-1] + 1]
  surplus = max(len(samples) - length, 0)
  samples = samples[surplus // 2 : len(samples) - (surplus - surplus // 2)]
  missing = length - len(samples)
  return np.pad(samples, (missing // 2, missing - missing // 2))


@functools.lru_cache(maxsize=2)
def _filters(rate: int) -> np.ndarray:
  """Returns triangles of height 1, [mel bins, FFT bins]."""
  low, high = 2595 * np.log10(1 + np.array([_LOW, _HIGH]) / 700)
  edges = 700 * (10 ** (np.linspace(low, high, MEL_BINS + 2) / 2595) - 1)
  frequencies = np.fft.rfftfreq(_FFT, 1 / rate)
  left, centre, right = (edges[i : i + MEL_BINS, None] for i in range(3))
  rising = (frequencies - left) / (centre - left)
  falling = (right - frequencies) / (right - centre)
  return np.maximum(np.minimum(rising, falling), 0.0)


def _interpolation(count: int, wanted: int) -> np.ndarray:
  """Returns [wanted, count], rows of weights that sum to 1.

  Triangles around aligned cell centres: linear interpolation to more cells,
  and as many times wider, hence averaging, to fewer.
  """
  centres = np.clip(
    (np.arange(wanted) + 0.5) * count / wanted - 0.5, 0, count - 1
  )
  distance = np.abs(centres[:, None] - np.arange(count))
  weights = np.maximum(1 - distance / max(1.0, count / wanted), 0)
  return weights / weights.sum(1, keepdims=True)
