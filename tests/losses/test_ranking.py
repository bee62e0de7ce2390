"""Plackett-Luce: order, weights, shifts; Kendall's tau."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.losses.compiled import losses

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = RANDOM.normal(size=(2, 4, 6)).astype(np.float32)
LABELS = np.array([5, 0, 3, 3], np.int32)


def test_the_label_is_first_and_the_others_descend():
  ranking = losses.label_first_ranking(TEACHER, LABELS)
  np.testing.assert_array_equal(ranking[:, 0], LABELS)
  np.testing.assert_array_equal(
    jnp.sort(ranking), np.arange(6)[None] + 0 * ranking
  )
  others = jnp.take_along_axis(TEACHER, ranking, -1)[:, 1:]
  assert (jnp.diff(others) < 0).all()


def test_ties_keep_the_order_of_the_classes():
  ranking = losses.label_first_ranking(jnp.zeros((1, 5)), jnp.array([2]))
  np.testing.assert_array_equal(ranking, [[2, 0, 1, 3, 4]])


def test_the_likelihood_is_a_product_of_choices():
  ranking = losses.label_first_ranking(TEACHER, LABELS)
  s = jnp.take_along_axis(STUDENT, ranking, -1)
  choices = [-jax.nn.log_softmax(s[:, k:])[:, 0] for k in range(6)]
  values = losses.list_mle(STUDENT, ranking)
  np.testing.assert_allclose(values, sum(choices), rtol=1e-5)


def test_two_other_classes_swapped_change_the_loss():
  swapped = TEACHER[:, [1, 0, 2, 3, 4, 5]]
  labels = np.full(4, 5, np.int32)
  value = losses.plackett_luce(STUDENT, TEACHER, labels)
  other = losses.plackett_luce(STUDENT, swapped, labels)
  assert (np.abs(value - other) > 1e-4).all()


def test_a_certain_teacher_makes_it_a_cross_entropy():
  sure = TEACHER + 1e3 * jax.nn.one_hot(LABELS, 6)
  values = losses.plackett_luce(STUDENT, sure, LABELS)
  expected = losses.cross_entropy(STUDENT, LABELS)
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_the_first_step_has_the_labels_weight_where_the_teacher_is_wrong():
  wrong = TEACHER - 1e3 * jax.nn.one_hot(LABELS, 6)

  def loss(student):
    return losses.plackett_luce(student, wrong, LABELS).sum()

  # The label has no weight, and nobody is chosen against it.
  gradient = jax.grad(loss)(STUDENT)
  np.testing.assert_allclose(gradient[np.arange(4), LABELS], 0, atol=1e-6)


def test_a_thousand_classes_are_as_exact_as_a_slow_sum():
  student, teacher = RANDOM.normal(size=(2, 1, 1000)) * 3
  labels = np.array([7])
  ranking = np.asarray(losses.label_first_ranking(jnp.asarray(teacher), labels))
  s = student[0, ranking[0]]
  p = np.exp(teacher[0, ranking[0]])
  steps = [scipy.special.logsumexp(s[k:]) - s[k] for k in range(1000)]
  expected = np.dot(p / p.sum(), steps)
  value = losses.plackett_luce(*jnp.float32([student, teacher]), labels)
  np.testing.assert_allclose(value[0], expected, rtol=1e-5)


def test_a_ranking_of_floats_is_refused():
  with pytest.raises(ValueError, match="list_mle: labels are float32"):
    losses.list_mle(STUDENT, jnp.asarray(TEACHER))


def test_tau_is_scipys_tau_b_with_and_without_ties():
  rounded = np.round(STUDENT), np.round(TEACHER)
  for a, b in ((STUDENT, TEACHER), rounded):
    pairs = zip(a, b, strict=True)
    expected = [scipy.stats.kendalltau(*pair).statistic for pair in pairs]
    np.testing.assert_allclose(losses.kendall_tau(a, b), expected, atol=1e-6)


def test_tau_of_a_row_of_one_value_is_0():
  tau = losses.kendall_tau(jnp.zeros((1, 6)), TEACHER[:1])
  np.testing.assert_array_equal(tau, 0)
