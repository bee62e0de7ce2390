"""Losses of logits: definitions, axes, masks, saturation and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses

LOGITS = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
TEACHER = np.random.default_rng(2).normal(size=(4, 3, 5)).astype(np.float32)
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
  message = r"cross_entropy: labels \(4,\); expected the shape .* \(4, 3\)"
  with pytest.raises(ValueError, match=message):
    losses.cross_entropy(LOGITS, LABELS[:, 0])


def test_labels_that_are_not_integers_are_refused():
  with pytest.raises(ValueError, match="labels are float32; expected integers"):
    losses.cross_entropy(LOGITS, jnp.asarray(LABELS, jnp.float32))


def test_smoothed_labels_are_soft_labels():
  soft = 0.8 * jax.nn.one_hot(LABELS, 5) + 0.2 / 5
  values = losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
  expected = losses.soft_cross_entropy(LOGITS, soft)
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_class_at_minus_infinity_gets_no_share_of_the_smoothing():
  absent = LOGITS.copy()
  absent[..., 4] = -np.inf
  labels = np.minimum(LABELS, 3)
  values = losses.cross_entropy(absent, labels, label_smoothing=0.1)
  expected = losses.cross_entropy(LOGITS[..., :4], labels, label_smoothing=0.1)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_smoothing_above_one_is_refused():
  with pytest.raises(ValueError, match="label_smoothing=1.5; expected 0 to 1"):
    losses.cross_entropy(LOGITS, LABELS, label_smoothing=1.5)


def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy():
  p = jax.nn.softmax(TEACHER)
  values = losses.soft_cross_entropy(LOGITS, p)
  entropy = losses.soft_cross_entropy(TEACHER, p)
  expected = losses.kl(LOGITS, TEACHER) + entropy
  np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("gap", [-200.0, 200.0])
def test_saturated_differences_of_logits_have_a_slope_of_half_t(gap):
  def loss(student):
    return losses.normalized_binary_kl(student, jnp.zeros(3), temperature=2.0)

  value, slope = jax.value_and_grad(loss)(jnp.full(3, gap))
  expected = 3 * 4 * (100.0 / 2 - np.log(2))
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(slope, np.sign(gap) * np.ones(3), rtol=1e-5)


def test_small_differences_of_logits_cost_their_squares_over_8():
  student = TEACHER + 1e-3 * LOGITS
  values = losses.normalized_binary_kl(student, TEACHER, temperature=3.0)
  expected = jnp.sum((student - TEACHER) ** 2, -1) / 8
  np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_normalized_binary_kl_is_a_kl_from_even_odds():
  u = (LOGITS - TEACHER) / 2
  expected = 4 * losses.binary_kl(u, jnp.zeros_like(u))
  values = losses.normalized_binary_kl(LOGITS, TEACHER, temperature=2.0)
  np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_the_virtual_teacher_is_a_distribution_around_the_label():
  u = losses.virtual_teacher(jnp.array([2]), 5, correct=0.9)
  np.testing.assert_allclose(u, [[0.025, 0.025, 0.9, 0.025, 0.025]], rtol=1e-6)


def test_losses_of_all_classes_refuse_a_top_k_teacher():
  teacher = losses.TopK.of(TEACHER, 2)
  for loss in (losses.binary_kl, losses.soft_cross_entropy):
    with pytest.raises(ValueError, match="needs access 'white'"):
      loss(LOGITS, teacher)


def test_a_temperature_of_0_is_refused():
  with pytest.raises(ValueError, match="binary_kl: temperature=0; expected"):
    losses.binary_kl(LOGITS, TEACHER, temperature=0)
