"""AV-digits: no leak between the splits, documented ranges, named errors."""

import numpy as np
import pytest

from jaxkd.data import AVDigits, Task, partition, pipeline, speech
from jaxkd.errors import ConfigError

CLEAN = {"energy_removed": 0.0, "image_noise": 0.0, "audio_noise": 0.0}


@pytest.fixture(scope="module")
def splits():
  return AVDigits().splits(0)


def parts(splits):
  return splits.train, splits.validation, splits.test


def test_it_is_a_task():
  assert isinstance(AVDigits(), Task)
  assert (AVDigits().name, AVDigits().num_classes) == ("av_digits", 10)


def test_parts_have_300_359_360_examples(splits):
  assert [len(part) for part in parts(splits)] == [300, 359, 360]


def test_entries_have_the_documented_shapes_and_types(splits):
  for part in parts(splits):
    rows = part.take([0, 1])
    assert {k: (v.shape, v.dtype.name) for k, v in rows.items()} == {
      "image": ((2, 8, 8, 1), "float32"),
      "audio": ((2, 8, 8), "float32"),
      "label": ((2,), "int32"),
      "index": ((2,), "int32"),
    }


def test_frames_and_coefficients_set_the_shape_of_the_audio():
  task = AVDigits(frames=32, coefficients=15)
  assert task.splits(0).train.arrays["audio"].shape == (300, 32, 15)


def test_no_image_of_one_part_is_in_another():
  clean = parts(AVDigits(**CLEAN, train_size=1078).splits(3))
  images = [part.arrays["image"].reshape(len(part), -1) for part in clean]
  everything = np.round(np.concatenate(images) * 16)
  assert len(np.unique(everything, axis=0)) == 1797


@pytest.fixture
def telling(monkeypatch):
  """Replaces every utterance by a flat picture at the level of its voice."""
  spoken = speech.load()
  level = np.broadcast_to(
    spoken.voice[:, None, None].astype(np.uint8), spoken.log_mel.shape
  )
  told = speech.Speech(log_mel=level, label=spoken.label, voice=spoken.voice)
  monkeypatch.setattr(speech, "load", lambda: told)


def test_no_voice_of_one_part_is_in_another(telling):
  task = AVDigits(**CLEAN, coefficients=1, train_size=1078)
  heard = [
    set(np.round(part.arrays["audio"][:, 0, 0], 3).tolist())
    for part in parts(task.splits(1))
  ]
  assert [len(levels) for levels in heard] == [91, 30, 31]
  assert len(set.union(*heard)) == 152


def test_a_sound_says_the_digit_of_its_image(monkeypatch):
  spoken = speech.load()
  level = np.broadcast_to(
    spoken.label[:, None, None].astype(np.uint8) * 20, spoken.log_mel.shape
  )
  told = speech.Speech(log_mel=level, label=spoken.label, voice=spoken.voice)
  monkeypatch.setattr(speech, "load", lambda: told)
  for part in parts(AVDigits(**CLEAN, coefficients=1).splits(0)):
    sound, label = part.arrays["audio"][:, 0, 0], part.arrays["label"]
    assert np.corrcoef(sound, label)[0, 1] > 0.9999


def test_audio_has_mean_zero_and_deviation_one_on_the_training_part(splits):
  audio = splits.train.arrays["audio"].astype(np.float64)
  np.testing.assert_allclose(audio.mean((0, 1)), 0, atol=1e-5)
  np.testing.assert_allclose(audio.std((0, 1)), 1, atol=1e-5)


def test_images_are_in_0_1_before_degrading():
  image = AVDigits(**CLEAN).splits(0).train.arrays["image"]
  assert image.min() == pytest.approx(0, abs=5e-3)
  assert image.max() == pytest.approx(1, abs=5e-3)


def test_image_noise_has_the_stated_deviation():
  clean = AVDigits(**CLEAN).splits(0).validation.arrays["image"]
  noisy = AVDigits(**{**CLEAN, "image_noise": 0.3}).splits(0).validation
  assert (noisy.arrays["image"] - clean).std() == pytest.approx(0.3, rel=0.03)


def test_audio_noise_is_in_deviations_of_the_training_audio():
  clean = AVDigits(**CLEAN).splits(0).train.arrays["audio"]
  noisy = AVDigits(**{**CLEAN, "audio_noise": 2.0}).splits(0).train
  added = noisy.arrays["audio"] * np.sqrt(5) - clean
  np.testing.assert_allclose(added.std((0, 1)), 2.0, rtol=0.1)


def test_removed_energy_is_missing_from_the_training_images():
  clean = AVDigits(**CLEAN).splits(0).train.arrays["image"]
  low = AVDigits(**{**CLEAN, "energy_removed": 0.5}).splits(0).train
  held = low.arrays["image"].var(0).sum() / clean.var(0).sum()
  assert 0.499 < held < 0.6


def test_the_components_are_fitted_on_the_training_images_alone(monkeypatch):
  before = AVDigits(image_noise=0.0).splits(0)
  whole = partition.three_way

  def swapped(count, *, purpose, **options):
    train, validation, test = whole(count, purpose=purpose, **options)
    return train, validation[::-1], test[: len(test) // 2]

  monkeypatch.setattr(partition, "three_way", swapped)
  after = AVDigits(image_noise=0.0).splits(0)
  np.testing.assert_array_equal(
    before.validation.arrays["image"][::-1], after.validation.arrays["image"]
  )


def test_a_seed_always_gives_the_same_bytes():
  again = [AVDigits().splits(2) for _ in range(2)]
  prints = [[pipeline.fingerprint(p) for p in parts(s)] for s in again]
  assert prints[0] == prints[1]


def test_seeds_give_different_splits():
  left, right = AVDigits().splits(0), AVDigits().splits(1)
  assert not np.array_equal(
    left.test.arrays["label"], right.test.arrays["label"]
  )


def test_test_examples_do_not_depend_on_the_training_size():
  small, large = (AVDigits(train_size=n).splits(0) for n in (100, 300))
  for name in ("label", "index"):
    np.testing.assert_array_equal(
      small.test.arrays[name], large.test.arrays[name]
    )
  np.testing.assert_array_equal(
    small.train.arrays["label"], large.train.arrays["label"][:100]
  )


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("train_size", 0, "an integer of at least 1"),
    ("batch_size", 0, "an integer of at least 1"),
    ("energy_removed", 1.0, "a number of at least 0 and below 1"),
    ("energy_removed", -0.1, "a number of at least 0 and below 1"),
    ("energy_removed", float("nan"), "a number of at least 0 and below 1"),
    ("image_noise", -1, "a number of at least 0 and finite"),
    ("audio_noise", float("inf"), "a number of at least 0 and finite"),
    ("validation_fraction", 0, "a number above 0"),
    ("test_fraction", "0.2", "a number of at least 0 and below 1"),
    ("test_fraction", 0.8, "a number below 1"),
    ("coefficients", 57, "at most 56"),
    ("frames", 1.5, "an integer of at least 1"),
  ],
)
def test_a_field_out_of_range_is_refused_by_name(field, value, expected):
  with pytest.raises(ConfigError, match=rf"AVDigits\..*{field} = .*{expected}"):
    AVDigits(**{field: value})


def test_more_training_examples_than_there_are_is_refused():
  message = "AVDigits.train_size = 1079: .* at least 1 and at most 1078"
  with pytest.raises(ConfigError, match=message):
    AVDigits(train_size=1079).splits(0)
