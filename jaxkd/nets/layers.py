"""Linear and convolution layers with PyTorch's default initialisation.

Flax gives a bias initialiser no fan-in, which PyTorch's default needs; these
two layers know theirs. Parameters are named as in Flax: `kernel`, `bias`.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jax.typing import DTypeLike

from jaxkd.nets import initializers

Array = jax.Array

ROWS = (((1,), (0,)), ((), ()))  # the dimension numbers of a matrix product


def _add_bias(
  module: nn.Module,
  outputs: Array,
  fan_in: int,
  bias_init: initializers.BiasInitializer,
) -> Array:
  """Adds the parameter `bias` of `module` along the last axis."""
  bias = module.param(
    "bias", bias_init(fan_in), (outputs.shape[-1],), jnp.float32
  )
  shape = (1,) * (outputs.ndim - 1) + (-1,)
  return outputs + bias.astype(outputs.dtype).reshape(shape)


def rows_dot_general(
  inputs: Array,
  kernel: Array,
  dimension_numbers: jax.lax.DotDimensionNumbers,
  **options: Any,
) -> Array:
  """`jax.lax.dot_general` of a linear layer, all leading axes as one.

  XLA copies transposed what the gradient of a kernel contracts over several
  axes, which on a CPU takes longer than the product; over one it does not.

  Args:
    inputs: `[..., I]`.
    kernel: `[I, O]`.
    dimension_numbers: those of `inputs @ kernel`.
    **options: of `jax.lax.dot_general`.

  Returns:
    `[..., O]`.
  """
  del dimension_numbers
  *leading, size = inputs.shape
  rows = inputs.reshape(math.prod(leading), size)
  outputs = jax.lax.dot_general(rows, kernel, ROWS, **options)
  return outputs.reshape(*leading, kernel.shape[-1])


def rows_dot(inputs: Array, kernel: Array) -> Array:
  """`inputs @ kernel` of `[..., I]` and `[I, O]`, see `rows_dot_general`."""
  return rows_dot_general(inputs, kernel, ROWS)


class Linear(nn.Module):
  """`x W + b` on the last axis.

  Shapes: `[..., I]` -> `[..., features]`.

  Attributes:
    features: size of the output.
    kernel_init: initialiser of the kernel `[I, features]`.
    bias_init: fan-in -> initialiser of the bias `[features]`.
    dtype: computation type; None: the promotion of input and float32.
  """

  features: int
  kernel_init: initializers.Initializer = initializers.fan_in_uniform()
  bias_init: initializers.BiasInitializer = initializers.fan_in_bias
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the linear map of `inputs`."""
    fan_in = inputs.shape[-1]
    kernel = self.param(
      "kernel", self.kernel_init, (fan_in, self.features), jnp.float32
    )
    inputs, kernel = dtypes.promote_dtype(inputs, kernel, dtype=self.dtype)
    return _add_bias(self, rows_dot(inputs, kernel), fan_in, self.bias_init)


class Conv(nn.Module):
  """Convolution over all axes between the first and the last.

  Shapes: `[B, *spatial, I]` -> `[B, *spatial', features]`, one to three
  spatial axes, the same kernel size, stride and padding along each.

  Attributes:
    features: number of output channels.
    kernel_size: size along every spatial axis.
    strides: step along every spatial axis.
    padding: zeros on both sides of every spatial axis.
    groups: channel groups; `I` makes a depthwise convolution.
    use_bias: whether a bias is added.
    kernel_init: initialiser of the kernel `[*sizes, I / groups, features]`.
    bias_init: fan-in -> initialiser of the bias `[features]`.
    dtype: computation type; None: the promotion of input and float32.
  """

  features: int
  kernel_size: int
  strides: int = 1
  padding: int = 0
  groups: int = 1
  use_bias: bool = True
  kernel_init: initializers.Initializer = initializers.fan_in_uniform()
  bias_init: initializers.BiasInitializer = initializers.fan_in_bias
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the convolution of `inputs`."""
    axes = inputs.ndim - 2
    inputs_per_group = inputs.shape[-1] // self.groups
    shape = (self.kernel_size,) * axes + (inputs_per_group, self.features)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    inputs, kernel = dtypes.promote_dtype(inputs, kernel, dtype=self.dtype)
    outputs = self._convolve(inputs, kernel, axes)
    if not self.use_bias:
      return outputs
    fan_in = math.prod(shape[:-1])
    return _add_bias(self, outputs, fan_in, self.bias_init)

  def _convolve(self, inputs: Array, kernel: Array, axes: int) -> Array:
    """The convolution, as a matrix product where that is faster on a CPU."""
    windows = self._windows(inputs, axes)
    if windows is not None:
      return rows_dot(windows, kernel.reshape(-1, self.features))
    spatial = tuple(range(1, axes + 1))
    channels_last = (0, axes + 1, *spatial)
    return jax.lax.conv_general_dilated(
      inputs,
      kernel,
      window_strides=(self.strides,) * axes,
      padding=((self.padding, self.padding),) * axes,
      dimension_numbers=jax.lax.ConvDimensionNumbers(
        channels_last, (axes + 1, axes, *range(axes)), channels_last
      ),
      feature_group_count=self.groups,
    )

  def _windows(self, inputs: Array, axes: int) -> Array | None:
    """What each output sees, [B, *spatial', k^n I], where that is cheap.

    It is where windows do not overlap, and where they hold few numbers: of one
    channel, or together at most twice as many as come out.
    """
    size, strides = self.kernel_size, self.strides
    batch, *spatial, channels = inputs.shape
    if self.groups > 1:
      return None
    if not self.padding:
      if spatial == [size] * axes:
        return inputs.reshape(batch, *(1,) * axes, -1)
      if size == 1:
        return inputs[:, *(slice(None, None, strides),) * axes]
      if size == strides and not any(n % size for n in spatial):
        return _side_by_side(inputs, size)
    few = size**axes * channels <= 2 * self.features
    if few or (channels == 1 and strides == 1):
      return _overlapping(inputs, size, strides, self.padding)
    return None


def _side_by_side(inputs: Array, size: int) -> Array:
  """Windows that fill all axes: [B, *spatial, I] -> [B, *spatial', ...]."""
  batch, *spatial, channels = inputs.shape
  places = itertools.chain.from_iterable((n // size, size) for n in spatial)
  blocks = inputs.reshape(batch, *places, channels)
  last = blocks.ndim - 1
  blocks = blocks.transpose(0, *range(1, last, 2), *range(2, last, 2), last)
  return blocks.reshape(batch, *(n // size for n in spatial), -1)


def _overlapping(inputs: Array, size: int, strides: int, padding: int) -> Array:
  """All windows: [B, *spatial, I] -> [B, *spatial', size^n I]."""
  axes = inputs.ndim - 2
  around = ((0, 0), *((padding, padding),) * axes, (0, 0))
  inputs = jnp.pad(inputs, around)
  ends = [strides * ((n - size) // strides) + 1 for n in inputs.shape[1:-1]]
  return jnp.concatenate(
    [
      inputs[
        (
          slice(None),
          *(slice(i, i + n, strides) for i, n in zip(start, ends, strict=True)),
        )
      ]
      for start in itertools.product(range(size), repeat=axes)
    ],
    axis=-1,
  )
