"""Digit views: halves and sums of one image, each with noise of its own."""

import numpy as np
import pytest

from jaxkd.data import DigitViews, Task, pipeline
from jaxkd.errors import ConfigError

CLEAN = {"left_noise": 0.0, "right_noise": 0.0, "sums_noise": 0.0}
VIEWS = ("left", "right", "sums")


@pytest.fixture(scope="module")
def splits():
  return DigitViews().splits(0)


@pytest.fixture(scope="module")
def clean():
  return DigitViews(**CLEAN).splits(0)


def parts(splits):
  return splits.train, splits.validation, splits.test


def test_it_is_a_task():
  assert isinstance(DigitViews(), Task)
  assert (DigitViews().name, DigitViews().num_classes) == ("digit_views", 10)


def test_parts_have_the_documented_sizes(splits):
  assert [len(part) for part in parts(splits)] == [500, 359, 540]


def test_entries_have_the_documented_shapes_and_types(splits):
  for part in parts(splits):
    rows = part.take([0, 1])
    assert {k: (v.shape, v.dtype.name) for k, v in rows.items()} == {
      "left": ((2, 8, 4), "float32"),
      "right": ((2, 8, 4), "float32"),
      "sums": ((2, 16), "float32"),
      "available": ((2, 3), "float32"),
      "label": ((2,), "int32"),
      "index": ((2,), "int32"),
    }
    np.testing.assert_array_equal(part.arrays["available"], 1)


def test_without_noise_the_halves_are_the_image_of_the_sums(clean):
  for part in parts(clean):
    image = np.concatenate([part.arrays["left"], part.arrays["right"]], 2)
    assert image.min() == 0
    assert image.max() == 1
    sums = np.concatenate([image.mean(2), image.mean(1)], 1)
    np.testing.assert_allclose(part.arrays["sums"], sums, atol=1e-6)


def test_the_halves_show_all_1797_images_once():
  every = parts(DigitViews(**CLEAN, train_size=898).splits(3))
  images = [
    np.concatenate([part.arrays["left"], part.arrays["right"]], 2)
    for part in every
  ]
  flat = np.round(np.concatenate(images).reshape(-1, 64) * 16)
  assert len(np.unique(flat, axis=0)) == len(flat) == 1797


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_noise_of_its_own_strength(view, clean):
  noisy = DigitViews(**{**CLEAN, f"{view}_noise": 0.7}).splits(0)
  for name in VIEWS:
    added = noisy.validation.arrays[name] - clean.validation.arrays[name]
    if name == view:
      assert added.std() == pytest.approx(0.7, rel=0.03)
    else:
      np.testing.assert_array_equal(added, 0)


def test_noise_of_views_is_independent(splits, clean):
  added = [
    (splits.train.arrays[name] - clean.train.arrays[name]).ravel()[:8000]
    for name in VIEWS
  ]
  assert np.abs(np.corrcoef(added)[np.triu_indices(3, 1)]).max() < 0.05


def test_noise_depends_on_the_seed_and_the_example_alone(splits):
  small = DigitViews(train_size=50).splits(0)
  for name in VIEWS:
    np.testing.assert_array_equal(
      small.train.arrays[name], splits.train.arrays[name][:50]
    )
    np.testing.assert_array_equal(
      small.test.arrays[name], splits.test.arrays[name]
    )


def test_a_seed_always_gives_the_same_bytes():
  again = [DigitViews().splits(2) for _ in range(2)]
  prints = [[pipeline.fingerprint(p) for p in parts(s)] for s in again]
  assert prints[0] == prints[1]
  assert prints[0] != [pipeline.fingerprint(p) for p in parts(again[0])][::-1]


def test_seeds_give_different_splits_and_noise():
  left, right = (DigitViews().splits(seed).test for seed in (0, 1))
  assert not np.array_equal(left.arrays["label"], right.arrays["label"])


def nearest_class(splits, names):
  """Test accuracy of the nearest class mean of some views."""
  train, test = (
    np.concatenate([p.arrays[n].reshape(len(p), -1) for n in names], 1)
    for p in (splits.train, splits.test)
  )
  label = splits.train.arrays["label"]
  means = np.stack([train[label == c].mean(0) for c in range(10)])
  distance = ((test[:, None] - means[None]) ** 2).sum(-1)
  return (distance.argmin(1) == splits.test.arrays["label"]).mean()


def test_the_sums_are_clearly_the_weakest_view(splits):
  left, right, sums = (nearest_class(splits, [view]) for view in VIEWS)
  assert sums < min(left, right) - 0.1
  assert sums > 0.2
  assert nearest_class(splits, ("left", "right")) > max(left, right) + 0.03


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("train_size", 0, "an integer of at least 1"),
    ("batch_size", 1.5, "an integer of at least 1"),
    ("left_noise", -1, "a number of at least 0 and finite"),
    ("right_noise", float("inf"), "a number of at least 0 and finite"),
    ("sums_noise", "0.1", "a number of at least 0 and finite"),
    ("validation_fraction", 0, "a number above 0"),
    ("test_fraction", 0.8, "a number below 1"),
  ],
)
def test_a_field_out_of_range_is_refused_by_name(field, value, expected):
  message = rf"DigitViews\..*{field} = .*{expected}"
  with pytest.raises(ConfigError, match=message):
    DigitViews(**{field: value})


def test_more_training_examples_than_there_are_is_refused():
  message = "DigitViews.train_size = 899: .* at least 1 and at most 898"
  with pytest.raises(ConfigError, match=message):
    DigitViews(train_size=899).splits(0)
