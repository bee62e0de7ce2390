"""Gradients that are projected or reversed, and a temperature that climbs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

G = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[-3.0]])}
R = {"a": jnp.array([1.0, -1.0]), "b": jnp.array([[2.0]])}


def _dot(a, b):
  return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)))


def test_conflicting_gradients_become_orthogonal():
  aligned = losses.align_gradients(G, R)
  assert _dot(G, R) < 0
  np.testing.assert_allclose(_dot(aligned, R), 0, atol=1e-6)


def test_gradients_that_agree_come_back_as_they_are():
  other = jax.tree.map(jnp.negative, R)
  aligned = losses.align_gradients(G, other)
  jax.tree.map(np.testing.assert_array_equal, aligned, G)


def test_a_reference_of_zeros_changes_nothing():
  aligned = losses.align_gradients(G, jax.tree.map(jnp.zeros_like, R))
  jax.tree.map(np.testing.assert_array_equal, aligned, G)


def test_a_reversed_gradient_is_minus_the_scale_times_it():
  def f(x, scale):
    return jnp.sum(losses.reverse_gradient(x, scale) ** 2)

  x = jnp.array([1.0, -2.0])
  value, gradient = jax.jit(jax.value_and_grad(f))(x, 0.5)
  assert value == 5
  np.testing.assert_allclose(gradient, -x)
  half = jax.jit(jax.grad(f))(x.astype(jnp.bfloat16), 0.5)
  assert half.dtype == jnp.bfloat16


def test_the_temperature_climbs_the_loss_that_the_student_descends():
  def loss(parameter, student):
    t = losses.adversarial_temperature(parameter)
    return losses.kl(student, jnp.array([1.0, 0.0, 2.0]), temperature=t)

  def plain(parameter, student):
    t = 1 + 20 * jax.nn.sigmoid(parameter)
    return losses.kl(student, jnp.array([1.0, 0.0, 2.0]), temperature=t)

  at = jnp.array(0.3), jnp.array([0.0, 1.0, 0.0])
  np.testing.assert_allclose(loss(*at), plain(*at), rtol=1e-6)
  ours, theirs = (jax.jit(jax.grad(f, (0, 1)))(*at) for f in (loss, plain))
  np.testing.assert_allclose(ours[0], -theirs[0], rtol=1e-5)
  np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)


def test_the_temperature_stays_in_its_range():
  parameters = jnp.array([-1e3, 0.0, 1e3])
  t = losses.adversarial_temperature(parameters, start=2.0, span=4.0)
  np.testing.assert_allclose(t, [2.0, 4.0, 6.0])


def test_the_reversal_grows_from_0_to_1_and_stays():
  strength = losses.reversal_strength(jnp.array([0, 5, 10, 30]), epochs=10)
  np.testing.assert_allclose(strength, [0, 0.5, 1, 1], atol=1e-6)


def test_a_span_of_0_is_refused():
  with pytest.raises(ValueError, match="span=0; expected a value above 0"):
    losses.adversarial_temperature(jnp.zeros(()), span=0)
