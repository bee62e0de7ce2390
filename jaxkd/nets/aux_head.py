"""A second head that learns from the teacher's logits alone.

Reference: https://arxiv.org/abs/2411.08937, DHKD.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import batchnorm, layers

Array = jax.Array


class AuxiliaryHead(nn.Module, kw_only=True):
  """Two linear layers with dropout and batch normalisation between them.

  For teachers of another family than the student's; a `Linear` else. It is
  thrown away after training.

  Shapes: penultimate feature `[B, D]` -> `[B, classes]`.

  Taps:
    fc1, dropout, bn: `[B, hidden]`, before the activation.
    fc2: `[B, classes]`.

  Attributes:
    classes: number of classes.
    hidden: width of the layer between.
    dropout_rate: share of its outputs that is dropped in training.
    dtype: computation type; None: float32.
  """

  classes: int
  hidden: int = 200
  dropout_rate: float = 0.1
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, feature: Array, *, train: bool = False) -> Array:
    """Returns the logits of `feature`."""
    x = layers.Linear(self.hidden, dtype=self.dtype, name="fc1")(feature)
    drop = nn.Dropout(
      self.dropout_rate, deterministic=not train, name="dropout"
    )
    bn = batchnorm.BatchNorm(dtype=self.dtype, name="bn")
    x = nn.relu(bn(drop(x), train=train))
    return layers.Linear(self.classes, dtype=self.dtype, name="fc2")(x)
