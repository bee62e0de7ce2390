"""Factors of factor transfer: what of a map the student is to learn.

The paraphraser is trained alone, to reconstruct the teacher's map, and frozen;
the translator is trained with the student. `losses.factor_transfer` compares
their factors.

Reference: https://arxiv.org/abs/1802.04977.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers, resizing
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array
SLOPE = 0.1  # of the leaky ReLUs


def _block(
  net: nn.Module, layer: nn.Module, name: str, x: Array, train: bool
) -> Array:
  """Layer, batch norm if the net has it, leaky ReLU."""
  x = layer(x)
  if net.use_bn:
    x = BatchNorm(dtype=net.dtype, name=f"{name}_bn")(x, train=train)
  return nn.leaky_relu(x, SLOPE)


def _encoded(net: nn.Module, x: Array, features: int, train: bool) -> Array:
  """Three convolutions of 3: as wide as the input, then the factor twice."""
  for i, width in enumerate((x.shape[-1], features, features), start=1):
    name = f"encoder{i}"
    layer = layers.Conv(width, 3, padding=1, dtype=net.dtype, name=name)
    x = _block(net, layer, name, x, train)
  return x


class Paraphraser(nn.Module, kw_only=True):
  """Autoencoder of the teacher's map with a narrower factor in the middle.

  Shapes: `[B, *spatial, C]` -> factor `[B, *spatial, round(rate C)]` and
  reconstruction `[B, *spatial, C]`.

  Taps (before their activation):
    encoder1: `[B, *spatial, C]`.
    encoder2, encoder3, decoder1: `[B, *spatial, round(rate C)]`.
    decoder2, decoder3: `[B, *spatial, C]`.
    encoder1_bn, ... decoder3_bn: the same, with `use_bn`.

  Attributes:
    rate: k, width of the factor over the map's.
    use_bn: whether every layer has batch norm.
    dtype: computation type; None: float32.
  """

  rate: float = 0.5
  use_bn: bool = False
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, teacher: Array, *, train: bool = False
  ) -> tuple[Array, Array]:
    """Returns the factor and the reconstruction."""
    features = round(self.rate * teacher.shape[-1])
    factor = x = _encoded(self, teacher, features, train)
    widths = (features, teacher.shape[-1], teacher.shape[-1])
    for i, width in enumerate(widths, start=1):
      name = f"decoder{i}"
      layer = resizing.TransposedConv(
        width, 3, padding=1, dtype=self.dtype, name=name
      )
      x = _block(self, layer, name, x, train)
    return factor, x


class Translator(nn.Module, kw_only=True):
  """The student's factor, as wide as the paraphraser's.

  Shapes: student `[B, *spatial, C]`, teacher `[B, *spatial', C']`, of which
  only the shape is read -> factor `[B, *spatial, round(rate C')]`.

  Taps (before their activation):
    encoder1, encoder1_bn: `[B, *spatial, C]`.
    encoder2, encoder3, encoder2_bn, encoder3_bn: the factor's shape.

  Attributes:
    rate: k, as the paraphraser's.
    use_bn: whether every layer has batch norm.
    dtype: computation type; None: float32.
  """

  rate: float = 0.5
  use_bn: bool = True
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, student: Array, teacher: Array, *, train: bool = False
  ) -> Array:
    """Returns the factor."""
    features = round(self.rate * teacher.shape[-1])
    return _encoded(self, student, features, train)
