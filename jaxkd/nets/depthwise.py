"""A filter for every channel, and the margins of convolutions."""

import functools
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jax.typing import DTypeLike

Array = jax.Array
Padding = Literal["same", "symmetric"]

PADDINGS = ("same", "symmetric")
_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def margins(
  size: int, kernel_size: int, strides: int, padding: Padding
) -> tuple[int, int]:
  """Returns how many zeros stand before and behind an axis.

  Args:
    size: of the axis.
    kernel_size: k.
    strides: s.
    padding: `same`: as few as give ceil(size / s) places, of an odd number
      more behind (TensorFlow's rule); `symmetric`: k // 2 on both sides.
  """
  if padding == "symmetric":
    return kernel_size // 2, kernel_size // 2
  places = -(-size // strides)
  total = max((places - 1) * strides + kernel_size - size, 0)
  return total // 2, total - total // 2


class DepthwiseConv(nn.Module, kw_only=True):
  """A filter for every channel.

  Shapes: `[B, H, W, C]` -> `[B, ceil(H / s), ceil(W / s), C]`.

  Attributes:
    kernel_size: k, odd; the kernel is `[k, k, 1, C]`.
    strides: s, along both axes.
    padding: see `margins`.
    dtype: computation type; None: the promotion of input and float32.
  """

  kernel_size: int
  strides: int = 1
  padding: Padding = "same"
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the filtered map."""
    shape = (self.kernel_size, self.kernel_size, 1, inputs.shape[-1])
    kernel = self.param("kernel", _INIT, shape, jnp.float32)
    inputs, kernel = dtypes.promote_dtype(inputs, kernel, dtype=self.dtype)
    margin = around(inputs, self.kernel_size, self.strides, self.padding)
    return jax.lax.platform_dependent(
      inputs,
      kernel,
      cpu=functools.partial(_shifted_sum, strides=self.strides, margin=margin),
      default=functools.partial(_grouped, strides=self.strides, margin=margin),
    )


def around(
  inputs: Array, kernel_size: int, strides: int, padding: Padding
) -> tuple[tuple[int, int], ...]:
  """Returns the margins of height and width of `inputs` [B, H, W, C]."""
  return tuple(
    margins(size, kernel_size, strides, padding) for size in inputs.shape[1:3]
  )


def _shifted_sum(inputs: Array, kernel: Array, *, strides: int, margin):
  """One product for every place of the kernel: the fast way on a CPU."""
  x = jnp.pad(inputs, ((0, 0), *margin, (0, 0)))
  size = len(kernel)
  height, width = ((n - size) // strides + 1 for n in x.shape[1:3])
  return sum(
    x[:, i : i + strides * height : strides, j : j + strides * width : strides]
    * kernel[i : i + 1, j : j + 1]
    for i, j in itertools.product(range(size), repeat=2)
  )


def _grouped(inputs: Array, kernel: Array, *, strides: int, margin):
  """A convolution with one channel in every group."""
  return jax.lax.conv_general_dilated(
    inputs,
    kernel,
    window_strides=(strides, strides),
    padding=margin,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=inputs.shape[-1],
  )
