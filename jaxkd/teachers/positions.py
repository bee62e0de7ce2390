"""Tables of positions on a square grid, for images of another size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxkd.teachers.tensors import Tensor

_SHARPNESS = -0.75  # of torch's cubic kernel


def resized(tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
  """A table of positions with a finer or coarser grid.

  As transformers does it with `interpolate_pos_encoding`: the vectors of the
  grid are interpolated by cubics, those of the tokens before it stay.

  Args:
    tensor: [..., T + side^2, D], T at most 2 side.
    shape: of what is wanted, [..., T + other_side^2, D].

  Returns:
    A tensor of that shape, at least in float32; None if it has the shape, or
    the shapes are none of this form.
  """
  old, new = tuple(tensor.shape), tuple(shape)
  if old == new or len(old) < 2 or len(old) != len(new):
    return None
  side, other = math.isqrt(old[-2]), math.isqrt(new[-2])
  before = old[-2] - side**2
  alike = old[:-2] == new[:-2] and old[-1] == new[-1]
  if not alike or not side or before != new[-2] - other**2:
    return None

  def read():
    value = tensor.read().astype(dtype)
    grid = value[..., before:, :].reshape(*old[:-2], side, side, old[-1])
    weights = cubic(side, other).astype(dtype)
    grid = np.einsum("ai,bj,...ijd->...abd", weights, weights, grid)
    grid = grid.reshape(*old[:-2], other**2, old[-1])
    return np.concatenate([value[..., :before, :], grid], axis=-2)

  dtype = np.result_type(tensor.dtype, np.float32)
  return dataclasses.replace(tensor, shape=new, dtype=dtype, read=read)


def cubic(size: int, other: int) -> np.ndarray:
  """The weights by which torch resizes an axis, bicubic, corners not aligned.

  Args:
    size: of the axis.
    other: what it becomes.

  Returns:
    [other, size], float64; rows have the sum 1.
  """
  places = (np.arange(other) + 0.5) * size / other - 0.5
  first = np.floor(places).astype(int) - 1
  weights = np.zeros((other, size))
  for step in range(4):
    index = np.clip(first + step, 0, size - 1)  # the border goes on
    far = np.abs(places - (first + step))
    np.add.at(weights, (np.arange(other), index), _kernel(far))
  return weights


def _kernel(x: np.ndarray) -> np.ndarray:
  """The cubic convolution kernel at distances of 0 to 2."""
  a = _SHARPNESS
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.where(x <= 1, near, far)
