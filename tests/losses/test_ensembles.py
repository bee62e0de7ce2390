"""Means of teachers, and networks that teach each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

TEACHERS = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
STUDENT = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
WEIGHTS = np.array([0.5, 0.2, 0.3], np.float32)


def test_the_softmax_at_t_is_the_mean_of_probabilities_at_t():
  logits = losses.probability_mean(TEACHERS, weights=WEIGHTS, temperature=3.0)
  expected = np.einsum("k,kbc->bc", WEIGHTS, jax.nn.softmax(TEACHERS / 3.0))
  np.testing.assert_allclose(jax.nn.softmax(logits / 3.0), expected, rtol=1e-5)


def test_one_teacher_is_its_own_mean():
  expected = jax.nn.softmax(TEACHERS[0] / 2.0)
  for mean in (
    losses.probability_mean(TEACHERS[:1], temperature=2.0),
    losses.logit_mean(TEACHERS[:1]),
  ):
    np.testing.assert_allclose(jax.nn.softmax(mean / 2.0), expected, rtol=1e-5)


def test_the_mean_of_kls_has_the_gradient_of_the_probability_mean():
  def separate(student):
    each = [losses.kl(student, teacher) for teacher in TEACHERS]
    return sum(w * x for w, x in zip(WEIGHTS, each, strict=True)).sum()

  def together(student):
    mean = losses.probability_mean(TEACHERS, weights=WEIGHTS)
    return losses.kl(student, mean).sum()

  expected = jax.jit(jax.grad(separate))(STUDENT)
  np.testing.assert_allclose(
    jax.jit(jax.grad(together))(STUDENT), expected, rtol=1e-4, atol=1e-6
  )


def test_weights_of_single_examples_choose_their_teacher():
  weights = jax.nn.one_hot(jnp.array([2, 0, 1, 1]), 3).T
  chosen = TEACHERS[[2, 0, 1, 1], np.arange(4)]
  mean = losses.logit_mean(TEACHERS, weights=weights)
  np.testing.assert_allclose(mean, chosen, rtol=1e-6)
  mean = losses.probability_mean(TEACHERS, weights=weights)
  np.testing.assert_allclose(mean, jax.nn.log_softmax(chosen), rtol=1e-5)


def test_a_class_that_no_teacher_has_stays_away():
  teachers = jnp.asarray(TEACHERS).at[:, :, 1].set(-jnp.inf)
  for mean in (losses.probability_mean, losses.logit_mean):
    assert (mean(teachers)[:, 1] == -jnp.inf).all()
    gradient = jax.grad(lambda t, mean=mean: mean(t)[:, 0].sum())(teachers)
    assert np.isfinite(gradient).all()


def test_a_teacher_without_weight_may_be_anything():
  teachers = jnp.asarray(TEACHERS).at[2].set(-jnp.inf)
  mean = losses.logit_mean(teachers, weights=jnp.array([1.0, 1.0, 0.0]))
  np.testing.assert_allclose(mean, TEACHERS[:2].mean(0), rtol=1e-5)


def test_weights_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"logit_mean: weights \(2,\) of"):
    losses.logit_mean(TEACHERS, weights=WEIGHTS[:2])


def test_a_network_learns_from_the_others_and_does_not_teach_them():
  def first(networks):
    return losses.mutual_kl(networks)[0].sum()

  gradient = jax.grad(first)(TEACHERS)
  assert (np.abs(gradient[0]) > 0).all()
  np.testing.assert_array_equal(gradient[1:], 0)


def test_a_network_alone_is_refused():
  with pytest.raises(ValueError, match=r"networks \(1, 4, 5\); expected"):
    losses.mutual_kl(TEACHERS[:1])
