"""Cross entropy: its definition, axes, masks and errors."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses

LOGITS = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 5, (4, 3)).astype(np.int32)


def test_it_is_the_negative_log_probability_of_the_label():
  values = losses.cross_entropy(LOGITS, LABELS)
  expected = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_the_class_axis_can_be_any():
  first = losses.cross_entropy(np.moveaxis(LOGITS, -1, 1), LABELS, axis=1)
  last = losses.cross_entropy(LOGITS, LABELS)
  np.testing.assert_array_equal(first, last)


def test_labels_of_masked_entries_are_not_read():
  where = LABELS != 2
  labels = np.where(where, LABELS, 999).astype(np.int32)
  values = losses.cross_entropy(LOGITS, labels, where=where)
  expected = losses.cross_entropy(LOGITS, LABELS) * where
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_labels_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r"labels \(4,\) must have .* \(4, 3\)"):
    losses.cross_entropy(LOGITS, LABELS[:, 0])


def test_labels_that_are_not_integers_are_refused():
  with pytest.raises(ValueError, match="labels are float32, expected integers"):
    losses.cross_entropy(LOGITS, jnp.asarray(LABELS, jnp.float32))
