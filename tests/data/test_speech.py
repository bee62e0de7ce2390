"""Log-mel against tones and noise, MFCC against SciPy, the packaged speech."""

import numpy as np
import pytest
from scipy import fft

from jaxkd.data import speech


def tone(frequency: float, rate: int, seconds: float = 0.75) -> np.ndarray:
  return np.sin(2 * np.pi * frequency * np.arange(seconds * rate) / rate)


def centres() -> np.ndarray:
  """Returns the centre frequencies of the mel filters in Hz."""
  low, high = (2595 * np.log10(1 + f / 700) for f in (60, 4000))
  return 700 * (10 ** (np.linspace(low, high, 58)[1:-1] / 2595) - 1)


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
@pytest.mark.parametrize("mel_bin", [5, 20, 50])
def test_a_tone_peaks_in_the_filter_centred_on_it(rate, mel_bin):
  picture = speech.log_mel(tone(centres()[mel_bin], rate), rate)
  assert picture.shape == (speech.FRAMES, speech.MEL_BINS)
  np.testing.assert_array_equal(picture[5:-5].argmax(1), mel_bin)


def test_a_level_80_decibels_down_is_silence_and_40_the_middle():
  loud, soft = tone(1000, 8000, 0.375), tone(1000, 8000, 0.375)
  for factor, stored in ((0.1, 191), (0.03, 158)):
    picture = speech.log_mel(np.concatenate([loud, factor * soft]), 8000)
    expected = 255 * (1 + np.log10(factor**2) / 8)
    assert abs(int(picture[40].max()) - expected) <= 1.5
    assert abs(expected - stored) < 1


def test_loudness_and_surrounding_silence_do_not_matter():
  word = tone(500, 8000, 0.3)
  padded = np.concatenate([np.zeros(2000), 7 * word, np.zeros(900)])
  np.testing.assert_array_equal(
    speech.log_mel(word, 8000), speech.log_mel(padded, 8000)
  )


def test_a_short_word_is_centred_and_a_long_one_cut_evenly():
  short = speech.log_mel(tone(500, 8000, 0.2), 8000).max(1)
  assert short[0] == 0
  np.testing.assert_allclose(short, short[::-1], atol=3)
  long = speech.log_mel(tone(500, 8000, 2.0), 8000).max(1)
  assert long.min() > 240


def test_mfcc_is_the_orthonormal_dct_of_the_log_mel():
  picture = np.random.default_rng(0).normal(size=(3, 56, 56))
  expected = fft.dct(picture, norm="ortho", axis=-1)[..., :15]
  np.testing.assert_allclose(speech.mfcc(picture), expected, atol=1e-12)


def test_mfcc_in_fewer_frames_averages_time():
  ramp = np.broadcast_to(np.arange(56.0)[:, None], (1, 56, 56))
  found = speech.mfcc(ramp, coefficients=1, frames=8)[0, :, 0]
  expected = np.sqrt(56) * (np.arange(8) * 7 + 3)
  np.testing.assert_allclose(found[1:-1], expected[1:-1], rtol=1e-12)


def test_enlarging_interpolates_between_the_points():
  picture = np.zeros((1, 56, 56))
  picture[0, 10, 20] = 16.0
  found = speech.enlarge(picture)
  assert found.shape == (1, 112, 112)
  np.testing.assert_allclose(
    found[0, 19:23, 39:43],
    np.outer([1, 3, 3, 1], [1, 3, 3, 1]),
  )
  assert found.sum() == pytest.approx(64.0)


def test_the_packaged_speech_has_every_digit_in_every_voice():
  spoken = speech.load()
  assert spoken.log_mel.shape == (1520, 56, 56)
  pairs = set(zip(spoken.voice.tolist(), spoken.label.tolist(), strict=True))
  assert pairs == {(v, d) for v in range(152) for d in range(10)}


def test_no_two_packaged_utterances_are_equal_and_none_is_silent():
  flat = speech.load().log_mel.reshape(1520, -1)
  assert len(np.unique(flat, axis=0)) == 1520
  np.testing.assert_array_equal(flat.max(1), 255)


def test_the_packaged_scale_is_the_one_that_nats_uses():
  with np.load(speech._FILE) as file:
    low, step = file["scale"]
  np.testing.assert_allclose(speech.nats(np.uint8(0)), low, rtol=1e-6)
  np.testing.assert_allclose(
    speech.nats(np.uint8(255)), low + 255 * step, atol=1e-4
  )


def test_the_packaged_file_is_small_and_holds_no_objects():
  assert speech._FILE.stat().st_size < 5e6
  with np.load(speech._FILE, allow_pickle=False) as file:
    assert len(file["settings_voice"]) == 152
    assert len(set(file["settings_voice"].tolist())) == 152
