"""Makes `jaxkd/data/spoken_digits.npz`: digits spoken by espeak-ng.

152 voice settings, every accent of English with every voice variant below,
each with its own speed and pitch, say zero to nine. `jaxkd/data/speech.py`
describes the log-mel and the licence. The packaged file was made with
espeak-ng 1.51; the same version gives the same bytes.

Run from the root of the repository, with the program `espeak-ng` installed:
  python -m experiments.data.make_spoken_digits
"""

import itertools
import pathlib
import subprocess
import tempfile
import wave

import numpy as np

from experiments.data import archive
from jaxkd.data import speech

_FILE = (
  pathlib.Path(__file__).parents[2] / "jaxkd" / "data" / "spoken_digits.npz"
)
WORDS = "zero one two three four five six seven eight nine".split()
ACCENTS = (
  "en-gb en-us en-gb-scotland en-gb-x-gbclan en-gb-x-rp en-gb-x-gbcwmd en-029 "
  "en-us-nyc"
).split()
VARIANTS = (
  "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 croak whisper klatt Alicia Andrea "
  "Denis"
).split()
SPEEDS = (120, 140, 160, 180, 200)  # words per minute
PITCHES = (25, 35, 45, 55, 65, 75, 85)  # espeak-ng's scale of 0..99


def settings() -> list[tuple[str, int, int]]:
  """Returns the 152 settings: voice name, words per minute, pitch."""
  voices = itertools.product(ACCENTS, VARIANTS)
  return [
    (f"{accent}+{variant}", SPEEDS[i % 5], PITCHES[i % 7])
    for i, (accent, variant) in enumerate(voices)
  ]


def speak(word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
  """Returns one word as log-mel, uint8 [frames, mel bins]."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "word.wav"
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch)]
    subprocess.run([*command, "-w", str(path), word], check=True)
    with wave.open(str(path), "rb") as file:
      assert file.getnchannels() == 1
      assert file.getsampwidth() == 2
      data = file.readframes(file.getnframes())
      samples = np.frombuffer(data, "<i2")
      return speech.log_mel(samples, file.getframerate())


def main() -> None:
  """Speaks every digit in every setting and writes the file."""
  table = settings()
  spoken = [(i, d) for i in range(len(table)) for d in range(len(WORDS))]
  voice, speed, pitch = zip(*table, strict=True)
  archive.write(
    _FILE,
    {
      "log_mel": np.stack([speak(WORDS[d], *table[i]) for i, d in spoken]),
      "label": np.array([d for _, d in spoken], np.uint8),
      "voice": np.array([i for i, _ in spoken], np.int16),
      "scale": np.array([-speech.RANGE, speech.RANGE / 255], np.float32),
      "settings_voice": np.array(voice),
      "settings_speed": np.array(speed, np.int16),
      "settings_pitch": np.array(pitch, np.int16),
    },
  )


if __name__ == "__main__":
  main()
