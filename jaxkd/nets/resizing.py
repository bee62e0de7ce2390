"""Changes of the spatial size of a map, as PyTorch makes them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import dtypes
from jax.typing import DTypeLike

from jaxkd.nets import initializers

Array = jax.Array


def nearest(x: Array, sizes: tuple[int, ...]) -> Array:
  """Takes place floor(i n / m) of every axis.

  Args:
    x: `[B, *spatial, C]`.
    sizes: m of every spatial axis.

  Returns:
    `[B, *sizes, C]`.
  """
  for axis, size in enumerate(sizes, start=1):
    n = x.shape[axis]
    if n != size:
      x = jnp.take(x, np.arange(size) * n // size, axis=axis)
  return x


class TransposedConv(nn.Module):
  """The gradient of a convolution as a layer: it enlarges by its stride.

  Shapes: `[B, *spatial, I]` -> `[B, *spatial', features]` with
  `n' = (n - 1) strides - 2 padding + kernel_size + output_padding`. The kernel
  `[*sizes, I, features]` is that of the convolution by which it is computed:
  PyTorch's mirrored.

  Attributes:
    features: number of output channels.
    kernel_size: size along every spatial axis.
    strides: enlargement of every spatial axis.
    padding: cut off on both sides of every spatial axis.
    output_padding: added at the end of every spatial axis.
    dtype: computation type; None: the promotion of input and float32.
  """

  features: int
  kernel_size: int
  strides: int = 1
  padding: int = 0
  output_padding: int = 0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the enlarged `inputs`."""
    axes = inputs.ndim - 2
    sizes = (self.kernel_size,) * axes
    kernel = self.param(
      "kernel",
      jax.nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform"),
      (*sizes, inputs.shape[-1], self.features),
      jnp.float32,
    )
    bias = self.param(  # PyTorch's fan-in of this layer is its fan-out
      "bias",
      initializers.fan_in_bias(math.prod(sizes) * self.features),
      (self.features,),
      jnp.float32,
    )
    inputs, kernel, bias = dtypes.promote_dtype(
      inputs, kernel, bias, dtype=self.dtype
    )
    around = self.kernel_size - 1 - self.padding
    channels_last = (0, axes + 1, *range(1, axes + 1))
    outputs = jax.lax.conv_general_dilated(
      inputs,
      kernel,
      window_strides=(1,) * axes,
      padding=((around, around + self.output_padding),) * axes,
      lhs_dilation=(self.strides,) * axes,
      dimension_numbers=jax.lax.ConvDimensionNumbers(
        channels_last, (axes + 1, axes, *range(axes)), channels_last
      ),
    )
    return outputs + bias.reshape((1,) * (axes + 1) + (-1,))
