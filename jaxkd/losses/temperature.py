"""A temperature that is trained against the student (CTKD).

The temperature is learned to make the distillation loss large while the student
makes it small: one backward pass does both, because the gradient is reversed
on its way to the temperature. The reversal starts weak and grows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.losses import checks

Array = jax.Array


@jax.custom_vjp
def _reversed(x: Array, scale: Array) -> Array:
  del scale
  return x


def _forward(x: Array, scale: Array) -> tuple[Array, Array]:
  return x, scale


def _backward(scale: Array, gradient: Array) -> tuple[Array, Array]:
  reversed_gradient = -scale * gradient
  return reversed_gradient.astype(gradient.dtype), jnp.zeros_like(scale)


_reversed.defvjp(_forward, _backward)


def reverse_gradient(x: Array, scale: float | Array = 1.0) -> Array:
  """The identity, whose gradient is multiplied by minus `scale`.

  Args:
    x: any float array.
    scale: lambda; 0 passes no gradient, a negative number does not reverse.

  Returns:
    `x`.

  Reference: Ganin and Lempitsky, https://arxiv.org/abs/1409.7495, Sec. 3.
  """
  return _reversed(x, jnp.asarray(scale, jnp.float32))


def adversarial_temperature(
  parameter: Array,
  *,
  scale: float | Array = 1.0,
  start: float = 1.0,
  span: float = 20.0,
) -> Array:
  """A temperature whose parameter climbs the loss that it is used in.

    T = start + span sigmoid(parameter)

  Args:
    parameter: trained, any shape ([] for one temperature, [B] for one per
      example).
    scale: lambda, strength of the reversed gradient; see `reversal_strength`.
    start: least temperature, above 0.
    span: largest temperature minus the least, above 0.

  Returns:
    T, of the parameter's shape, float32 at least.

  Raises:
    ValueError: if start or span is not above 0.

  Reference: Li et al. (CTKD), https://arxiv.org/abs/2211.16231, Sec. 3.
  """
  checks.positive("adversarial_temperature", "start", start)
  checks.positive("adversarial_temperature", "span", span)
  parameter = jnp.asarray(parameter)
  dtype = jnp.promote_types(parameter.dtype, jnp.float32)
  reversed_ = reverse_gradient(parameter.astype(dtype), scale)
  return start + span * jax.nn.sigmoid(reversed_)


def reversal_strength(epoch: float | Array, *, epochs: float = 10.0) -> Array:
  """Lambda of an epoch: from 0 to 1 along half a cosine, then 1.

    lambda = (1 - cos(pi min(epoch / epochs, 1))) / 2

  Args:
    epoch: counted from 0.
    epochs: when it reaches 1, above 0.

  Returns:
    lambda, of the shape of `epoch`.

  Raises:
    ValueError: if epochs is not above 0.

  Reference: Li et al. (CTKD), https://arxiv.org/abs/2211.16231, Sec. 3.
  """
  checks.positive("reversal_strength", "epochs", epochs)
  share = jnp.clip(jnp.asarray(epoch, jnp.float32) / epochs, 0.0, 1.0)
  return (1 - jnp.cos(jnp.pi * share)) / 2
