"""LeNet-5 with ReLU and average pooling, for images of 28 by 28 pixels.

Reference: LeCun et al., Gradient-based learning applied to document
recognition, 1998; this variant: https://arxiv.org/abs/2507.07015 (AV-MNIST).
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers, pooling

Array = jax.Array


def _features(image: Array, dtype: DTypeLike | None) -> Array:
  """Returns the 84 features after `fc1`; layers belong to the caller."""
  x = layers.Conv(6, 5, padding=2, dtype=dtype, name="conv1")(image)
  x = pooling.average_pool(nn.relu(x), 2)  # [B, 14, 14, 6]
  x = layers.Conv(16, 5, dtype=dtype, name="conv2")(x)
  x = pooling.average_pool(nn.relu(x), 2)  # [B, 5, 5, 16]
  x = layers.Conv(120, 5, dtype=dtype, name="conv3")(x)
  x = nn.relu(x).reshape(x.shape[0], -1)  # [B, 120]
  return nn.relu(layers.Linear(84, dtype=dtype, name="fc1")(x))


class LeNet5(nn.Module, kw_only=True):
  """LeNet-5: three convolutions and two linear layers, 62k parameters.

  Shapes: image `[B, 28, 28, 1]` -> logits `[B, num_classes]`.

  Taps (before their activation):
    conv1: `[B, 28, 28, 6]`.
    conv2: `[B, 10, 10, 16]`.
    conv3: `[B, 1, 1, 120]`; an edit may return `[B, 120]`.
    fc1: `[B, 84]`.
    fc2: `[B, num_classes]`.

  Attributes:
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  num_classes: int = 10
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Returns the logits of `image`."""
    x = _features(image, self.dtype)
    return layers.Linear(self.num_classes, dtype=self.dtype, name="fc2")(x)


class LeNet5Trunk(nn.Module, kw_only=True):
  """LeNet-5 without its classifier.

  Shapes: image `[B, 28, 28, 1]` -> features `[B, 84]`, after a ReLU.

  Taps: `conv1`, `conv2`, `conv3`, `fc1`, as in `LeNet5`.

  Attributes:
    dtype: computation type; None: float32.
  """

  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """Returns the features of `image`."""
    return _features(image, self.dtype)
