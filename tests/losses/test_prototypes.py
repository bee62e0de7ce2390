"""Classifiers of prototypes: cosines, class weights, constraint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

NAMES = jnp.array([[2.0, 0.0], [0.0, 0.5], [1.0, 1.0]])


def test_lengths_do_not_matter_to_the_logits():
  logits = losses.prototype_logits(jnp.array([[3.0, 0.0]]), NAMES, scale=10.0)
  np.testing.assert_allclose(logits, [[10.0, 0.0, 10 / 2**0.5]], rtol=1e-6)


def test_a_zero_feature_has_equal_logits_and_a_finite_gradient():
  value, slope = jax.value_and_grad(
    lambda f: losses.prototype_logits(f, NAMES).sum()
  )(jnp.zeros((1, 2)))
  assert float(value) == 0
  assert np.isfinite(slope).all()


def test_confidence_is_the_mean_within_each_class_and_zero_without_examples():
  features, labels = jnp.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]]), [0, 0, 1]
  found = losses.class_confidence(features, jnp.array(labels), NAMES, scale=3.0)
  p = jax.nn.softmax(losses.prototype_logits(features, NAMES, scale=3.0))
  expected = [(p[0, 0] + p[1, 0]) / 2, p[2, 1], 0]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_constraint_weighs_every_class_by_its_confidence():
  moved = NAMES.at[0, 0].add(3.0).at[2, 1].add(1.0)
  found = losses.prototype_constraint(
    moved, NAMES, weights=jnp.array([0.5, 1.0, 0.0])
  )
  assert float(found) == pytest.approx(0.5 * 9 / 3)
  assert float(losses.prototype_constraint(moved, NAMES)) == pytest.approx(
    10 / 3
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: losses.prototype_logits(jnp.ones((2, 3)), NAMES),
      "features .2, 3",
    ),
    (
      lambda: losses.class_confidence(NAMES, jnp.ones(3), NAMES),
      "labels are float",
    ),
    (
      lambda: losses.prototype_constraint(NAMES, NAMES, weights=jnp.ones(2)),
      "weights .2,., prototypes",
    ),
  ],
)
def test_what_does_not_fit_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
