"""The label's class and the others: what the parts sum to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = RANDOM.normal(size=(2, 4, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2], np.int32)


def test_kl_is_the_first_part_and_1_minus_p_times_the_second():
  target = losses.target_class_kl(STUDENT, TEACHER, LABELS, temperature=2.0)
  others = losses.non_target_class_kl(STUDENT, TEACHER, LABELS, temperature=2.0)
  p = jax.nn.softmax(TEACHER / 2.0)[np.arange(4), LABELS]
  expected = losses.kl(STUDENT, TEACHER, temperature=2.0)
  np.testing.assert_allclose(target + (1 - p) * others, expected, rtol=1e-4)


def test_the_label_gets_no_gradient_from_the_other_classes():
  def loss(student):
    return losses.non_target_class_kl(student, TEACHER, LABELS).sum()

  gradient = jax.grad(loss)(STUDENT)
  np.testing.assert_array_equal(gradient[np.arange(4), LABELS], 0)


def test_two_classes_have_nothing_to_compare_outside_of_the_label():
  labels = np.minimum(LABELS, 1)
  values = losses.non_target_class_kl(STUDENT[:, :2], TEACHER[:, :2], labels)
  np.testing.assert_array_equal(values, 0)


def test_a_certain_teacher_leaves_the_others_as_they_are():
  sure = TEACHER + 1e3 * jax.nn.one_hot(LABELS, 5)
  values = losses.non_target_class_kl(STUDENT, sure, LABELS)
  expected = losses.non_target_class_kl(STUDENT, TEACHER, LABELS)
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_an_exponent_of_1_makes_ofa_a_soft_cross_entropy():
  values = losses.ofa(STUDENT, TEACHER, LABELS, exponent=1.0)
  expected = losses.soft_cross_entropy(STUDENT, jax.nn.softmax(TEACHER))
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_a_larger_exponent_gives_the_label_more_weight():
  def slope(exponent):
    def loss(student):
      return losses.ofa(student, TEACHER, LABELS, exponent=exponent).sum()

    return jax.grad(loss)(STUDENT)[np.arange(4), LABELS]

  assert (slope(1.4) < slope(1.0)).all()


def test_an_exponent_below_1_is_refused():
  with pytest.raises(ValueError, match="ofa: exponent=0.5; expected 1 to inf"):
    losses.ofa(STUDENT, TEACHER, LABELS, exponent=0.5)


def test_zeroed_labels_keep_the_mass_of_a_logit_of_0():
  zeroed = jnp.where(jax.nn.one_hot(LABELS, 5, dtype=bool), 0.0, STUDENT)
  values = losses.zeroed_target_kl(zeroed, STUDENT, LABELS)
  np.testing.assert_allclose(values, 0, atol=1e-6)
  removed = losses.non_target_class_kl(
    STUDENT, TEACHER, LABELS, temperature=1.0
  )
  values = losses.zeroed_target_kl(STUDENT, TEACHER, LABELS)
  assert (np.abs(values - removed) > 1e-3).all()


def test_labels_that_do_not_fit_are_refused():
  for loss in (losses.dkd, losses.nkd, losses.ofa, losses.zeroed_target_kl):
    with pytest.raises(ValueError, match=r"labels \(3,\); expected the shape"):
      loss(STUDENT, TEACHER, LABELS[:3])
