"""Batch normalisation with PyTorch's running statistics.

Flax keeps the biased batch variance in its running average, PyTorch the
unbiased one. The difference is a factor `n / (n - 1)`, which matters for the
small batches of dense prediction and for reading PyTorch checkpoints.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import initializers

Array = jax.Array


class BatchNorm(nn.Module):
  """Normalises every channel (last axis) over all other axes.

  In training: `(x - mean) / sqrt(var + epsilon) * scale + bias` with the batch
  mean and the *biased* batch variance, and
  `running = momentum * running + (1 - momentum) * batch`, where the running
  variance takes the *unbiased* batch variance. Else: with the running
  statistics. Statistics are computed in float32 whatever the input type.

  Shapes: `[B, ..., C]` -> `[B, ..., C]`, any number of axes.
  Variables, all `[C]`: params `scale`, `bias`; batch_stats `mean`, `var`.

  Attributes:
    momentum: weight of the old running statistics (PyTorch's is one minus it).
    epsilon: added to the variance.
    scale_init: initialiser of the scale.
    dtype: type of the output; None: the promotion of input and float32.

  Reference: https://arxiv.org/abs/1502.03167, Alg. 1 and 2.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  scale_init: initializers.Initializer = jax.nn.initializers.ones
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns `inputs` normalised; updates `batch_stats` if `train`."""
    channels = inputs.shape[-1]
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
    x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    broadcast = (1,) * (inputs.ndim - 1) + (channels,)
    if train:
      mean, var = self._batch_statistics(x, running_mean, running_var)
    else:
      mean, var = running_mean.value, running_var.value
    scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
    bias = self.param(
      "bias", jax.nn.initializers.zeros, (channels,), jnp.float32
    )
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    shift = bias - mean * factor
    outputs = x * factor.reshape(broadcast) + shift.reshape(broadcast)
    dtype = self.dtype or jnp.result_type(inputs.dtype, jnp.float32)
    return outputs.astype(dtype)

  def _batch_statistics(
    self, x: Array, running_mean: nn.Variable, running_var: nn.Variable
  ) -> tuple[Array, Array]:
    """Returns mean and biased variance of `x` and moves the running ones."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axis=axes)
    var = jnp.var(x, axis=axes)
    if not self.is_initializing():
      count = x.size // x.shape[-1]
      unbiased = var * (count / max(count - 1, 1))
      keep = self.momentum
      running_mean.value = keep * running_mean.value + (1 - keep) * mean
      running_var.value = keep * running_var.value + (1 - keep) * unbiased
    return mean, var
