"""Rows and columns of probabilities: scales, constant rows, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = RANDOM.normal(size=(2, 6, 5)).astype(np.float32)


def test_dist_of_rows_is_one_minus_the_mean_correlation():
  q, p = jax.nn.softmax(STUDENT), jax.nn.softmax(TEACHER)
  rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
  value = losses.dist(STUDENT, TEACHER, intra_weight=0.0, eps=0.0)
  np.testing.assert_allclose(value, 1 - np.mean(rows), rtol=1e-5)


def test_dist_of_columns_is_one_minus_the_mean_correlation():
  q, p = jax.nn.softmax(STUDENT), jax.nn.softmax(TEACHER)
  columns = [np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
  value = losses.dist(STUDENT, TEACHER, inter_weight=0.0, eps=0.0)
  np.testing.assert_allclose(value, 1 - np.mean(columns), rtol=1e-5)


def test_a_teacher_that_is_the_same_everywhere_teaches_nothing():
  teacher = jnp.zeros_like(TEACHER)
  value, gradient = jax.jit(jax.value_and_grad(losses.dist))(STUDENT, teacher)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_dense_logits_are_rows_of_one_matrix():
  student, teacher = (x.reshape(2, 3, 1, 5) for x in (STUDENT, TEACHER))
  for loss in (losses.dist, losses.mlkd, losses.batch_correlation):
    expected = loss(STUDENT, TEACHER)
    np.testing.assert_allclose(loss(student, teacher), expected, rtol=1e-5)


def test_batch_and_class_correlation_of_one_matrix_are_transposes():
  square = STUDENT[:5], TEACHER[:5]
  q, p = (np.asarray(jax.nn.softmax(x)) for x in square)
  classes = np.sum((p.T @ p - q.T @ q) ** 2) / 5
  batch = np.sum((p @ p.T - q @ q.T) ** 2) / 5
  np.testing.assert_allclose(
    losses.class_correlation(*square), classes, rtol=1e-5
  )
  np.testing.assert_allclose(
    losses.batch_correlation(*square), batch, rtol=1e-5
  )


def test_masks_choose_at_least_half_of_the_rows_and_classes():
  rows, classes = losses.confidence_masks(TEACHER)
  assert rows.sum() == 3
  assert classes.sum() == 3
  largest = jax.nn.softmax(TEACHER).max(-1)
  assert largest[rows].max() < largest[~rows].min()


def test_rows_left_out_are_not_chosen_and_do_not_move_the_median():
  where = np.array([1, 1, 0, 1, 1, 0], bool)
  bad = np.where(where[:, None], TEACHER, np.nan)
  rows, classes = losses.confidence_masks(bad, where=where)
  expected_rows, expected_classes = losses.confidence_masks(TEACHER[where])
  np.testing.assert_array_equal(rows[where], expected_rows)
  np.testing.assert_array_equal(classes, expected_classes)
  assert not rows[~where].any()


def test_the_codes_masks_are_factors():
  rows, classes = losses.confidence_masks(TEACHER)
  pair = STUDENT, TEACHER
  instances = losses.kl(*pair, temperature=2.0).mean()
  instances += losses.batch_correlation(*pair, temperature=2.0)
  expected = rows.mean() * instances
  expected += classes.mean() * losses.class_correlation(*pair, temperature=2.0)
  value = losses.mlkd(*pair, temperatures=(2.0,), masks="code")
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_per_sample_masks_leave_out_the_sure_rows_of_kl():
  def loss(student):
    return losses.mlkd(student, TEACHER, temperatures=(1.0,))

  rows, _ = losses.confidence_masks(TEACHER)
  sure = np.where(rows[:, None], STUDENT, TEACHER)
  kl = jnp.where(rows, losses.kl(STUDENT, TEACHER), 0).mean()
  assert loss(sure) > kl  # the rows' correlations come on top
  assert loss(jnp.asarray(TEACHER)) < 1e-6


def test_nothing_left_costs_nothing():
  for loss in (losses.dist, losses.mlkd, losses.batch_correlation):
    value, gradient = jax.jit(jax.value_and_grad(loss))(
      STUDENT, TEACHER, where=jnp.zeros(6)
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_an_unknown_kind_of_masks_is_refused():
  with pytest.raises(ValueError, match="masks='hard'; expected one of per_"):
    losses.mlkd(STUDENT, TEACHER, masks="hard")
