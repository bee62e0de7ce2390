"""Ways to compute a convolution of images, by XLA's and by matrix products.

Images are `[B, H, W, C]`, kernels `[k, k, I / groups, O]`; `strides` are the
steps of the window, `padding` the zeros on every side. Except for `convolve`,
each is for the kernels that its first line names.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp

Array = jax.Array


def convolve(
  x: Array, kernel: Array, *, strides: int, padding: int, groups: int = 1
) -> Array:
  """XLA's convolution."""
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(strides, strides),
    padding=((padding, padding),) * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def grouped(x: Array, kernel: Array, *, strides: int, padding: int) -> Array:
  """XLA's convolution with a channel in every group."""
  groups = x.shape[-1]
  return convolve(x, kernel, strides=strides, padding=padding, groups=groups)


def windows(
  x: Array, size: int, strides: int, padding: int, fill: float = 0.0
) -> list[Array]:
  """What stands at each place of a window, row by row: `[B, H', W', C]` each.

  Args:
    x: `[B, H, W, C]`.
    size: side of a window.
    strides: between windows.
    padding: on every side.
    fill: what is padded with.
  """
  sides = ((0, 0), *((padding, padding),) * 2, (0, 0))
  x = jnp.pad(x, sides, constant_values=fill)
  height, width = ((n - size) // strides + 1 for n in x.shape[1:3])
  return [
    x[:, i : i + strides * height : strides, j : j + strides * width : strides]
    for i, j in itertools.product(range(size), repeat=2)
  ]


def rows_dot(x: Array, matrix: Array) -> Array:
  """`[..., I]` by `[I, O]`, all leading axes as one."""
  flat = x.reshape(-1, x.shape[-1]) @ matrix
  return flat.reshape(*x.shape[:-1], -1)


def dot(x: Array, kernel: Array, *, strides: int, padding: int) -> Array:
  """A convolution of 1 as a matrix product."""
  del padding
  return rows_dot(x[:, ::strides, ::strides], kernel[0, 0])


def patches_dot(
  x: Array, kernel: Array, *, strides: int, padding: int
) -> Array:
  """All windows as rows, and one matrix product (im2col)."""
  rows = jnp.concatenate(windows(x, len(kernel), strides, padding), -1)
  return rows_dot(rows, kernel.reshape(-1, kernel.shape[-1]))


def shifted_dots(
  x: Array, kernel: Array, *, strides: int, padding: int
) -> Array:
  """A matrix product for every place of the window, and their sum."""
  shifted = windows(x, len(kernel), strides, padding)
  places = itertools.product(range(len(kernel)), repeat=2)
  return sum(
    rows_dot(rows, kernel[place])
    for rows, place in zip(shifted, places, strict=True)
  )


def kernel_gradient_dot(
  x: Array, kernel: Array, *, strides: int, padding: int
) -> Array:
  """XLA's convolution, but the kernel's gradient as one matrix product."""
  plain = functools.partial(convolve, strides=strides, padding=padding)

  @jax.custom_vjp
  def function(x, kernel):
    return plain(x, kernel)

  def forward(x, kernel):
    return plain(x, kernel), (x, kernel)

  def backward(kept, gradient):
    x, kernel = kept
    of_x = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)[0]
    rows = jnp.concatenate(windows(x, len(kernel), strides, padding), -1)
    of_kernel = rows.reshape(-1, rows.shape[-1]).T @ gradient.reshape(
      -1, gradient.shape[-1]
    )
    return of_x, of_kernel.reshape(kernel.shape)

  function.defvjp(forward, backward)
  return function(x, kernel)


def shifted_sum(
  x: Array, kernel: Array, *, strides: int, padding: int
) -> Array:
  """A depthwise convolution as one product for every place of the window."""
  shifted = windows(x, len(kernel), strides, padding)
  places = itertools.product(range(len(kernel)), repeat=2)
  return sum(
    rows * kernel[place].reshape(1, 1, 1, -1)
    for rows, place in zip(shifted, places, strict=True)
  )


def reshape_dot(
  x: Array, kernel: Array, *, strides: int, padding: int
) -> Array:
  """Windows side by side, cut by a reshape, and one matrix product."""
  del padding
  batch, height, width, channels = x.shape
  rows = x.reshape(
    batch, height // strides, strides, width // strides, strides, channels
  )
  rows = rows.swapaxes(2, 3)
  rows = rows.reshape(*rows.shape[:3], -1)
  return rows_dot(rows, kernel.reshape(-1, kernel.shape[-1]))
