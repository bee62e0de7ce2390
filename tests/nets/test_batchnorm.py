"""Batch norm: normalisation, PyTorch's running statistics, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxkd.nets import batchnorm

SHAPES = [(6, 4), (3, 5, 4), (2, 3, 5, 4), (2, 3, 2, 3, 4)]


def _setup(shape):
  net = batchnorm.BatchNorm()
  x = 2 + 3 * jax.random.normal(jax.random.key(0), shape)
  return net, x, net.init(jax.random.key(1), x, train=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_training_normalises_over_all_axes_but_the_last(shape):
  net, x, variables = _setup(shape)
  y, _ = net.apply(variables, x, train=True, mutable=["batch_stats"])
  rows = np.asarray(y).reshape(-1, 4)
  np.testing.assert_allclose(rows.mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(rows.var(0), 1, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_running_variance_takes_the_unbiased_variance(shape):
  net, x, variables = _setup(shape)
  _, state = net.apply(variables, x, train=True, mutable=["batch_stats"])
  rows = np.asarray(x).reshape(-1, 4)
  stats = state["batch_stats"]
  np.testing.assert_allclose(stats["mean"], 0.1 * rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    stats["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5
  )


def test_evaluation_uses_and_keeps_the_running_statistics():
  net, x, variables = _setup((6, 4))
  stats = {
    "mean": np.arange(4, dtype=np.float32),
    "var": np.arange(1, 5, dtype=np.float32),
  }
  variables = variables | {"batch_stats": stats}
  y, state = net.apply(variables, x, train=False, mutable=["batch_stats"])
  expected = (np.asarray(x) - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state["batch_stats"]["var"], stats["var"])


def test_initialising_leaves_the_running_statistics_alone():
  _, _, variables = _setup((6, 4))
  np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(4))
  np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(4))


def test_the_gradient_flows_through_the_batch_statistics():
  net, x, variables = _setup((3, 4))

  def objective(x):
    y, _ = net.apply(variables, x, train=True, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(y))

  test_util.check_grads(objective, (x,), order=1, modes=["rev"], rtol=2e-2)
  gradient = jax.grad(objective)(x)
  np.testing.assert_allclose(gradient.sum(0), np.zeros(4), atol=1e-5)


def test_one_example_gives_finite_statistics():
  net, _, variables = _setup((6, 4))
  x = jnp.ones((1, 4))
  _, state = net.apply(variables, x, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(state["batch_stats"]["var"], np.full(4, 0.9))


def test_statistics_of_a_half_precision_input_are_float32():
  net = batchnorm.BatchNorm(dtype=jnp.bfloat16)
  x = 100 + jax.random.normal(jax.random.key(0), (64, 4), jnp.bfloat16)
  variables = net.init(jax.random.key(1), x, train=True)
  y, state = net.apply(variables, x, train=True, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16
  assert state["batch_stats"]["var"].dtype == jnp.float32
  expected = np.asarray(x, np.float64).var(0, ddof=1)
  np.testing.assert_allclose(
    state["batch_stats"]["var"], 0.9 + 0.1 * expected, rtol=1e-4
  )
