"""Pooling: sizes, values, gradients and the way back by unpooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxkd import errors
from jaxkd.nets import pooling

POOLS = (
  pooling.average_pool,
  pooling.max_pool,
  lambda x, window: pooling.max_pool_with_indices(x, window)[0],
)


def _distinct(shape, seed=0):
  """Returns distinct values one apart, so that no window has a tie."""
  size = int(np.prod(shape))
  values = np.random.default_rng(seed).permutation(size).astype(np.float32)
  return jnp.asarray(values.reshape(shape))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
  ("spatial", "window", "expected"),
  [
    ((17,), 3, (5,)),
    ((52,), 3, (17,)),
    ((5, 7), 2, (2, 3)),
    ((6, 4), 2, (3, 2)),
    ((3, 7, 5), 2, (1, 3, 2)),
  ],
)
def test_odd_sizes_are_cropped(pool, spatial, window, expected):
  shape = (2, *spatial, 3)
  pooled = pool(_distinct(shape), window)
  assert pooled.shape == (2, *expected, 3)
  used = tuple(slice(0, size * window) for size in expected)
  cropped = _distinct(shape)[(slice(None), *used)]
  np.testing.assert_array_equal(pooled, pool(cropped, window))


@pytest.mark.parametrize("spatial", [(7,), (7, 5), (4, 3, 5)])
def test_values_equal_a_loop_over_windows(spatial):
  x = np.asarray(_distinct((2, *spatial, 3)))
  pooled_max = np.asarray(pooling.max_pool(x, 2))
  pooled_mean = np.asarray(pooling.average_pool(x, 2))
  for place in np.ndindex(*(size // 2 for size in spatial)):
    window = x[(slice(None), *(slice(2 * i, 2 * i + 2) for i in place))]
    axes = tuple(range(1, window.ndim - 1))
    here = (slice(None), *place)
    np.testing.assert_array_equal(pooled_max[here], window.max(axes))
    np.testing.assert_allclose(pooled_mean[here], window.mean(axes), rtol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("spatial", [(7,), (5, 4), (2, 3, 4)])
def test_gradients_equal_finite_differences(pool, spatial):
  x = _distinct((1, *spatial, 2))
  weights = _distinct(pool(x, 2).shape, seed=1)
  test_util.check_grads(
    lambda x: jnp.mean(pool(x, 2) * weights),
    (x,),
    order=1,
    modes=["rev"],
    eps=0.25,
    rtol=1e-3,
  )


def test_equal_maxima_share_the_gradient_or_the_first_takes_it():
  x = jnp.ones((1, 2, 2, 1))
  shared = jax.grad(lambda x: pooling.max_pool(x, 2).sum())(x)
  np.testing.assert_allclose(shared, np.full_like(x, 0.25))
  first = jax.grad(lambda x: pooling.max_pool_with_indices(x, 2)[0].sum())(x)
  np.testing.assert_array_equal(first.reshape(-1), [1, 0, 0, 0])


@pytest.mark.parametrize("spatial", [(6,), (4, 6), (2, 4, 6)])
def test_unpooling_puts_each_maximum_where_it_was(spatial):
  x = _distinct((2, *spatial, 3)) + 1
  pooled, indices = pooling.max_pool_with_indices(x, 2)
  np.testing.assert_array_equal(pooled, pooling.max_pool(x, 2))
  restored = pooling.max_unpool(pooled, indices, 2)
  assert restored.shape == x.shape
  np.testing.assert_array_equal(
    restored, np.where(restored > 0, np.asarray(x), 0)
  )
  assert int((restored > 0).sum()) == pooled.size
  np.testing.assert_array_equal(pooling.max_pool(restored, 2), pooled)


def test_unpooling_passes_the_gradient_of_the_chosen_places():
  x = _distinct((1, 4, 4, 2))
  pooled, indices = pooling.max_pool_with_indices(x, 2)
  gradient = jax.grad(
    lambda values: jnp.sum(pooling.max_unpool(values, indices, 2) * x)
  )(pooled)
  np.testing.assert_array_equal(gradient, pooled)


def test_the_global_average_runs_over_all_places():
  x = _distinct((2, 3, 4, 5, 6))
  expected = np.asarray(x).reshape(2, -1, 6).mean(1)
  np.testing.assert_allclose(
    pooling.global_average_pool(x), expected, rtol=1e-6
  )


def test_a_window_larger_than_the_map_is_refused():
  with pytest.raises(errors.ConfigError, match=r"\(2, 1, 4, 3\) with window 2"):
    pooling.max_pool(jnp.ones((2, 1, 4, 3)), 2)
