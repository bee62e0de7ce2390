"""Embeddings that losses compare: lengths, zeros, parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import nets

KEY = jax.random.key(0)


def test_embeddings_of_any_shape_have_length_one():
  x = jax.random.normal(KEY, (5, 2, 3))
  embeddings, variables = nets.UnitEmbedding(features=7).init_with_output(
    KEY, x
  )
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
  assert variables["params"]["linear"]["kernel"].shape == (6, 7)


def test_half_precision_leaves_the_length_at_one():
  net = nets.UnitEmbedding(features=7, dtype=jnp.bfloat16)
  embeddings, _ = net.init_with_output(KEY, jax.random.normal(KEY, (5, 6)))
  assert embeddings.dtype == jnp.float32
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)


def test_a_zero_embedding_stays_one_with_gradient_zero():
  net = nets.UnitEmbedding(features=2)
  params = {"linear": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
  f = lambda x: net.apply({"params": params}, x).sum()
  value, gradient = jax.value_and_grad(f)(jnp.zeros((1, 2)))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)
