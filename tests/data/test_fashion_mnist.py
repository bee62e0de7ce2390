"""Fashion-MNIST: the published test part, the rest cut by the seed."""

import numpy as np
import pytest

from jaxkd.data import FashionMNIST
from jaxkd.errors import ConfigError, RefusedInput
from tests.data import idx


@pytest.fixture
def folder(tmp_path):
  return idx.write(tmp_path)


def _task(folder, **changed):
  sizes = {"train_size": 120, "validation_size": 60, **changed}
  return FashionMNIST(folder=folder, **sizes)


def test_images_are_standardised_floats_with_labels(folder):
  batch = _task(folder).splits(0).train.take([0, 1, 2])
  assert batch["image"].shape == (3, 28, 28, 1)
  assert batch["image"].dtype == np.float32
  whole = _task(folder).splits(0).train
  images = whole.take(range(len(whole)))["image"]
  assert -1 < images.mean() < 1
  assert images.min() >= -0.2860 / 0.3530 - 1e-5


def test_the_test_part_is_the_published_one_for_every_seed(folder):
  first, second = (_task(folder).splits(seed).test for seed in (0, 1))
  assert len(first) == 50
  np.testing.assert_array_equal(
    first.take(range(50))["label"], idx.digits(50, 1)[1]
  )
  np.testing.assert_array_equal(
    first.take(range(50))["image"], second.take(range(50))["image"]
  )


def test_training_and_validation_share_no_image_and_follow_the_seed(folder):
  splits, again, other = (_task(folder).splits(s) for s in (0, 0, 1))
  pictures = {
    name: {x.tobytes() for x in part.take(range(len(part)))["image"]}
    for name, part in (("train", splits.train), ("val", splits.validation))
  }
  assert not pictures["train"] & pictures["val"]
  labels = [s.train.take(range(120))["label"] for s in (splits, again, other)]
  np.testing.assert_array_equal(labels[0], labels[1])
  assert (labels[0] != labels[2]).any()


@pytest.mark.parametrize("field", ["train_size", "validation_size"])
def test_more_images_than_there_are_is_refused(folder, field):
  with pytest.raises(ConfigError, match="at most 200"):
    _task(folder, **{field: 190}).splits(0)


def test_an_absent_folder_says_which_package_has_the_files(tmp_path):
  with pytest.raises(RefusedInput, match="Fashion-MNIST.*dataset-fashion"):
    _task(tmp_path / "nowhere").splits(0)
