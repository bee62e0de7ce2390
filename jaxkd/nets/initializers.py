"""Initialisers of the reference networks: PyTorch's defaults, and FuseNet's.

A kernel has shape `[..., I, O]` (channels-last: spatial axes, inputs, outputs);
its fan-in is the product of all axes but the last. PyTorch draws the kernel
*and* the bias of a linear or convolution layer from the uniform distribution on
`(-1/sqrt(fan_in), 1/sqrt(fan_in))`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Initializer = Callable[..., Array]
BiasInitializer = Callable[[int], Initializer]


def symmetric_uniform(bound: float) -> Initializer:
  """Returns an initialiser drawing from `U(-bound, bound)`.

  Args:
    bound: half the width of the interval.

  Returns:
    A function of `(key, shape, dtype)`.
  """

  def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def fan_in_uniform() -> Initializer:
  """Returns PyTorch's kernel default, `U(-1, 1) / sqrt(fan_in)`.

  PyTorch writes it as Kaiming-uniform with `a = sqrt(5)`.

  Returns:
    A function of `(key, shape, dtype)` for kernels `[..., I, O]`.
  """
  return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def fan_in_bias(fan_in: int) -> Initializer:
  """Returns PyTorch's bias default, `U(-1, 1) / sqrt(fan_in)`.

  Args:
    fan_in: inputs of one output unit of the layer that owns the bias.

  Returns:
    A function of `(key, shape, dtype)`.
  """
  return symmetric_uniform(1 / math.sqrt(fan_in))


def zero_bias(fan_in: int) -> Initializer:
  """Returns an initialiser of zeros, whatever the fan-in of the layer."""
  del fan_in
  return jax.nn.initializers.zeros


def xavier_normal(gain: float) -> Initializer:
  """Returns `N(0, 2 gain^2 / (fan_in + fan_out))`, not truncated.

  Args:
    gain: factor on the standard deviation.

  Returns:
    A function of `(key, shape, dtype)` for kernels `[..., I, O]`.
  """
  return jax.nn.initializers.variance_scaling(gain**2, "fan_avg", "normal")


def normal_around_one(stddev: float) -> Initializer:
  """Returns an initialiser drawing from `N(1, stddev^2)`.

  Args:
    stddev: standard deviation.

  Returns:
    A function of `(key, shape, dtype)`.
  """

  def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return 1 + stddev * jax.random.normal(key, shape, dtype)

  return init
