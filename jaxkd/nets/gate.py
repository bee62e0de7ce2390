"""Gates: which teacher teaches an example, read from the student's logits.

Reference: https://arxiv.org/abs/2507.07015, GateNet.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers, pooling

Array = jax.Array


class GateNet(nn.Module, kw_only=True):
  """Two linear layers without an activation between them.

  Shapes: logits `[B, C]` -> gate logits `[B, ways]`.

  Taps:
    fc1: `[B, 2 C]`.
    fc2: `[B, ways]`.

  Attributes:
    ways: number of teachers to choose from.
    dtype: computation type; None: float32.
  """

  ways: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, logits: Array) -> Array:
    """Returns the gate logits of the student's `logits`."""
    hidden = 2 * logits.shape[-1]
    x = layers.Linear(hidden, dtype=self.dtype, name="fc1")(logits)
    return layers.Linear(self.ways, dtype=self.dtype, name="fc2")(x)


class DenseGateNet(nn.Module, kw_only=True):
  """A gate for dense prediction: two convolutions, average, linear layer.

  Shapes: logits `[B, H, W, C]` -> gate logits `[B, ways]`.

  Taps (before their activation):
    pointwise: `[B, H, W, 2 C]`.
    depthwise: `[B, ceil(H / 2), ceil(W / 2), 2 C]`.
    fc: `[B, ways]`.

  Attributes:
    ways: number of teachers to choose from.
    dtype: computation type; None: float32.
  """

  ways: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, logits: Array) -> Array:
    """Returns the gate logits of the student's `logits`."""
    hidden = 2 * logits.shape[-1]
    x = layers.Conv(hidden, 1, dtype=self.dtype, name="pointwise")(logits)
    x = layers.Conv(
      hidden,
      3,
      strides=2,
      padding=1,
      groups=hidden,
      dtype=self.dtype,
      name="depthwise",
    )(nn.relu(x))
    x = pooling.global_average_pool(nn.relu(x))  # [B, 2 C]
    return layers.Linear(self.ways, dtype=self.dtype, name="fc")(x)


class Gate(nn.Module, kw_only=True):
  """The gate that fits the logits: `GateNet`, or the dense one for maps.

  Shapes: `[B, C]` or `[B, H, W, C]` -> gate logits `[B, ways]`.

  Taps:
    net: `[B, ways]`; inside: the taps of `GateNet` or `DenseGateNet`.

  Attributes:
    ways: number of teachers to choose from.
    dtype: computation type; None: float32.
  """

  ways: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, logits: Array) -> Array:
    """Returns the gate logits of the student's `logits`."""
    kind = GateNet if logits.ndim == 2 else DenseGateNet
    return kind(ways=self.ways, dtype=self.dtype, name="net")(logits)
