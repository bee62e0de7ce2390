"""Digits: parts without leaks, and draws that belong to seed and image."""

import numpy as np
import pytest

from jaxkd.data import Digits, Task, pipeline
from jaxkd.errors import ConfigError

EVERYTHING = {
  "noise": True,
  "wrong_labels": {3: (8, 0.4), 4: (9, 1.0)},
  "outliers": 0.05,
}


def parts(splits):
  return splits.train, splits.validation, splits.test


def column(source, name):
  return source.take(range(len(source)))[name]


def test_it_is_a_task():
  assert isinstance(Digits(), Task)
  assert (Digits().name, Digits().num_classes) == ("digits", 10)


def test_parts_have_1000_200_597_examples():
  assert [len(part) for part in parts(Digits().splits(0))] == [1000, 200, 597]


@pytest.mark.parametrize(("flat", "shape"), [(False, (8, 8, 1)), (True, (64,))])
def test_images_are_float32_between_paper_and_ink(flat, shape):
  for part in parts(Digits(flat=flat).splits(0)):
    rows = part.take([0, 1])
    assert {k: (v.shape, v.dtype.name) for k, v in rows.items()} == {
      "image": ((2, *shape), "float32"),
      "label": ((2,), "int32"),
      "index": ((2,), "int32"),
    }
    image = column(part, "image")
    assert (image.min(), image.max()) == (-1, 1)


def test_flat_images_are_the_rows_of_the_others():
  flat, square = (Digits(flat=f).splits(1).test for f in (True, False))
  np.testing.assert_array_equal(
    column(flat, "image"), column(square, "image").reshape(-1, 64)
  )


def test_every_image_is_in_one_part():
  images = [column(p, "image") for p in parts(Digits(flat=True).splits(3))]
  assert len(np.unique(np.concatenate(images), axis=0)) == 1797


def test_a_seed_always_gives_the_same_bytes_and_another_one_does_not():
  first, again, other = (Digits(**EVERYTHING).splits(s) for s in (2, 2, 3))
  prints = [
    [pipeline.fingerprint(p) for p in parts(s)] for s in (first, again, other)
  ]
  assert prints[0] == prints[1]
  assert not set(prints[0]) & set(prints[2])


def test_other_parts_do_not_depend_on_the_training_size():
  task = Digits(**EVERYTHING)
  small = Digits(**EVERYTHING, train_size=100).splits(0)
  large = task.splits(0)
  for name in ("validation", "test"):
    left, right = (getattr(s, name) for s in (small, large))
    assert pipeline.fingerprint(left) == pipeline.fingerprint(right)
  for name in ("label", "noise", "noisy_label"):
    np.testing.assert_array_equal(
      column(small.train, name), column(large.train, name)[:100]
    )


def test_noise_is_standard_normal_of_the_shape_of_the_image():
  for flat, shape in ((True, (64,)), (False, (8, 8, 1))):
    train = Digits(noise=True, flat=flat).splits(0).train
    noise = column(train, "noise")
    assert noise.shape == (1000, *shape)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_an_option_adds_its_entry_and_changes_no_other():
  plain, full = Digits().splits(0), Digits(**EVERYTHING).splits(0)
  for ours, theirs in zip(parts(plain), parts(full), strict=True):
    added = theirs.arrays.keys() - ours.arrays.keys()
    assert added == {"noise", "noisy_label", "outlier"}
    np.testing.assert_array_equal(
      column(ours, "label"), column(theirs, "label")
    )
    kept = column(theirs, "outlier") == 0
    np.testing.assert_array_equal(
      column(ours, "image")[kept], column(theirs, "image")[kept]
    )


def test_classes_are_called_wrong_with_their_probability():
  train = Digits(wrong_labels=EVERYTHING["wrong_labels"]).splits(0).train
  label, noisy = column(train, "label"), column(train, "noisy_label")
  assert (noisy[label == 4] == 9).all()
  threes = noisy[label == 3]
  assert set(threes) == {3, 8}
  assert 0.25 < (threes == 8).mean() < 0.55
  others = ~np.isin(label, (3, 4))
  np.testing.assert_array_equal(noisy[others], label[others])


def test_classes_may_be_swapped():
  swap = {3: (8, 1.0), 8: (3, 1.0)}
  train = Digits(wrong_labels=swap).splits(0).train
  label, noisy = column(train, "label"), column(train, "noisy_label")
  np.testing.assert_array_equal(noisy == 8, label == 3)
  np.testing.assert_array_equal(noisy == 3, label == 8)


def test_labels_are_wrong_and_images_replaced_in_training_alone():
  splits = Digits(**EVERYTHING).splits(0)
  for part in (splits.validation, splits.test):
    np.testing.assert_array_equal(
      column(part, "noisy_label"), column(part, "label")
    )
    assert not column(part, "outlier").any()


def test_more_probable_errors_contain_the_less_probable_ones():
  few, many = (
    Digits(wrong_labels={1: (7, share)}).splits(0).train for share in (0.2, 0.6)
  )
  few, many = (column(part, "noisy_label") == 7 for part in (few, many))
  assert few.sum() < many.sum()
  assert (many | ~few).all()


def test_outliers_are_standard_normal_noise_of_the_stated_share():
  train = Digits(outliers=0.3, flat=True).splits(0).train
  outlier = column(train, "outlier")
  assert (outlier.dtype, outlier.sum()) == (np.int32, 300)
  image = column(train, "image")[outlier == 1]
  assert abs(image.mean()) < 0.03
  assert abs(image.std() - 1) < 0.03


def test_outliers_are_not_the_noise_of_the_same_image():
  train = Digits(outliers=0.3, noise=True).splits(0).train
  outlier = column(train, "outlier") == 1
  noise, image = (column(train, n)[outlier].ravel() for n in ("noise", "image"))
  assert abs(np.corrcoef(noise, image)[0, 1]) < 0.05


@pytest.mark.parametrize(
  ("field", "value", "expected"),
  [
    ("train_size", 0, "an integer of at least 1"),
    ("validation_size", 0, "an integer of at least 1"),
    ("test_size", 1.5, "an integer of at least 1"),
    ("batch_size", 0, "an integer of at least 1"),
    ("outliers", 1.0, "a number of at least 0 and below 1"),
    ("outliers", -0.1, "a number of at least 0 and below 1"),
    ("wrong_labels", {3: (3, 0.5)}, "another class, a probability"),
    ("wrong_labels", {3: (10, 0.5)}, "classes 0 to 9"),
    ("wrong_labels", {"3": (8, 0.5)}, "classes 0 to 9"),
    ("wrong_labels", {3: (8, 1.5)}, "a probability"),
    ("wrong_labels", {3: (8, "half")}, "a probability"),
    ("wrong_labels", {3: 8}, "another class, a probability"),
  ],
)
def test_a_field_out_of_range_is_refused_by_name(field, value, expected):
  with pytest.raises(ConfigError, match=rf"Digits\.{field} = .*{expected}"):
    Digits(**{field: value})


def test_more_examples_than_there_are_is_refused():
  message = r"Digits.train_size \+ .* = 1798: expected at most 1797"
  with pytest.raises(ConfigError, match=message):
    Digits(train_size=1001).splits(0)
