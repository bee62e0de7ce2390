"""Pooling with non-overlapping windows, as reshape and reduce.

All functions take `[B, *spatial, C]` with any number of spatial axes and pool
along each of them with the same window; a rest smaller than the window is cut
off, as PyTorch does. Reductions of a reshaped array differentiate into a
comparison and a product, where XLA's window reduction differentiates into a
scatter, which is slow on CPU.
"""

import math

import jax
import jax.numpy as jnp

from jaxkd import errors

Array = jax.Array


def _windows(x: Array, window: int) -> Array:
  """Splits every spatial axis: `[B, n1, window, n2, window, ..., C]`."""
  sizes = x.shape[1:-1]
  if not sizes or min(sizes) < window:
    raise errors.ConfigError(
      f"cannot pool an array of shape {x.shape} with window {window}: "
      f"expected [B, *spatial, C] with spatial axes of at least {window}"
    )
  shape = [x.shape[0]]
  for axis, size in enumerate(sizes, start=1):
    x = jax.lax.slice_in_dim(x, 0, size - size % window, axis=axis)
    shape += [size // window, window]
  return x.reshape(*shape, x.shape[-1])


def _window_axes(windows: Array) -> tuple[int, ...]:
  """Returns the axes of `_windows` that run inside a window."""
  return tuple(range(2, windows.ndim - 1, 2))


def average_pool(x: Array, window: int) -> Array:
  """Returns the mean of every window.

  Args:
    x: `[B, *spatial, C]`.
    window: size and stride along every spatial axis.

  Returns:
    `[B, *(spatial // window), C]`.

  Raises:
    ConfigError: a spatial axis is smaller than the window.
  """
  windows = _windows(x, window)
  return jnp.mean(windows, axis=_window_axes(windows))


def max_pool(x: Array, window: int) -> Array:
  """Returns the maximum of every window.

  Equal maxima share the gradient equally.

  Args:
    x: `[B, *spatial, C]`.
    window: size and stride along every spatial axis.

  Returns:
    `[B, *(spatial // window), C]`.

  Raises:
    ConfigError: a spatial axis is smaller than the window.
  """
  windows = _windows(x, window)
  return jnp.max(windows, axis=_window_axes(windows))


def global_average_pool(x: Array) -> Array:
  """Returns the mean over all spatial axes, `[B, *spatial, C]` -> `[B, C]`."""
  return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))


def max_pool_with_indices(x: Array, window: int) -> tuple[Array, Array]:
  """Returns the maximum of every window and where it was.

  The first of equal maxima wins and takes the whole gradient.

  Args:
    x: `[B, *spatial, C]`.
    window: size and stride along every spatial axis.

  Returns:
    The maxima `[B, *(spatial // window), C]`, and int32 positions of that shape
    inside the window, counted in C order over its axes.

  Raises:
    ConfigError: a spatial axis is smaller than the window.
  """
  windows = _windows(x, window)
  inner = _window_axes(windows)
  windows = jnp.moveaxis(windows, inner, range(-1 - len(inner), -1))
  windows = windows.reshape(*windows.shape[: -1 - len(inner)], -1, x.shape[-1])
  indices = jnp.argmax(windows, axis=-2)
  chosen = _one_hot(indices, windows.shape[-2])
  return jnp.sum(jnp.where(chosen, windows, 0), axis=-2), indices


def max_unpool(x: Array, indices: Array, window: int) -> Array:
  """Puts every value at its position in its window, zeros elsewhere.

  Args:
    x: `[B, *spatial, C]`.
    indices: positions from `max_pool_with_indices`, the shape of `x`.
    window: size and stride along every spatial axis.

  Returns:
    `[B, *(spatial * window), C]`.
  """
  axes = x.ndim - 2
  chosen = _one_hot(indices, math.prod([window] * axes))
  windows = jnp.where(chosen, jnp.expand_dims(x, -2), 0)
  windows = windows.reshape(*x.shape[:-1], *[window] * axes, x.shape[-1])
  windows = jnp.moveaxis(
    windows, range(-1 - axes, -1), range(2, 2 + 2 * axes, 2)
  )
  spatial = [size * window for size in x.shape[1:-1]]
  return windows.reshape(x.shape[0], *spatial, x.shape[-1])


def _one_hot(indices: Array, count: int) -> Array:
  """Returns `[..., count, C]`, true where the new axis equals the index."""
  positions = jax.lax.broadcasted_iota(
    indices.dtype,
    (*indices.shape[:-1], count, indices.shape[-1]),
    indices.ndim - 1,
  )
  return positions == jnp.expand_dims(indices, -2)
