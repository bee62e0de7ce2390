"""Companions that make a feature which can stand in for the teacher's.

Called as the regressors are: with the student's and the teacher's feature, of
which only the shape is read.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.losses import maps
from jaxkd.nets import layers, pooling
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array


class SimKDTransfer(nn.Module, kw_only=True):
  """Bottleneck of 1x1, 3x3 and 1x1 convolutions, each with batch norm, ReLU.

  It stays in use after training: the teacher's classifier reads its output
  (`reuse_classifier`). KD3's projector is the same net.

  Shapes: `[B, H, W, C]`, `[B, H', W', C']` ->
  `[B, min(H, H'), min(W, W'), C']`.

  Taps:
    conv1, bn1, conv2, bn2: `[B, ., ., C' // factor]`.
    conv3, bn3: the output before its ReLU.

  Attributes:
    factor: how much narrower the bottleneck is than the teacher's map.
    dtype: computation type; None: float32.

  Reference: https://arxiv.org/abs/2203.14001, Sec. 3; KD3:
  https://arxiv.org/abs/2307.11469.
  """

  factor: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, student: Array, teacher: Array, *, train: bool = False
  ) -> Array:
    """Returns the student's map in the place of the teacher's."""
    features = teacher.shape[-1]
    middle = features // self.factor
    x = maps.shrink(student, teacher)
    sizes = ((middle, 1), (middle, 3), (features, 1))
    for i, (width, size) in enumerate(sizes, start=1):
      x = layers.Conv(
        width,
        size,
        padding=size // 2,
        use_bias=False,
        dtype=self.dtype,
        name=f"conv{i}",
      )(x)
      x = nn.relu(BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train=train))
    return x


def reuse_classifier(feature: Array, kernel: Array, bias: Array) -> Array:
  """Logits of a map by the linear classifier of another network.

  Args:
    feature: `[B, *spatial, D]`, averaged over its places.
    kernel: the teacher's, `[D, C]`.
    bias: the teacher's, `[C]`.

  Returns:
    `[B, C]`.
  """
  return pooling.global_average_pool(feature) @ kernel + bias[None]


class MGDGenerator(nn.Module, kw_only=True):
  """Generates the teacher's map from the student's behind a random mask.

  In training every place of the student's map is 0 with probability `masked`,
  by the key `dropout`; then a convolution of 3, ReLU, a convolution of 3. Maps
  of unequal channels go through a 1x1 convolution first.

  Shapes: `[B, *spatial, C]`, `[B, *spatial', C']` ->
  `[B, *min(spatial, spatial'), C']`.

  Taps, all of the output's shape:
    align: the 1x1 convolution, where C is not C'.
    conv1, conv2.

  Attributes:
    masked: probability that a place is hidden, lambda.
    dtype: computation type; None: float32.

  Reference: https://arxiv.org/abs/2205.01529, Sec. 3.
  """

  masked: float = 0.75
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, student: Array, teacher: Array, *, train: bool = False
  ) -> Array:
    """Returns the generated map."""
    features = teacher.shape[-1]
    x = maps.shrink(student, teacher)
    if x.shape[-1] != features:
      x = layers.Conv(features, 1, dtype=self.dtype, name="align")(x)
    if train:
      places = (*x.shape[:-1], 1)
      shown = jax.random.bernoulli(
        self.make_rng("dropout"), 1 - self.masked, places
      )
      x = x * shown.astype(x.dtype)
    options = {"padding": 1, "dtype": self.dtype}
    x = nn.relu(layers.Conv(features, 3, name="conv1", **options)(x))
    return layers.Conv(features, 3, name="conv2", **options)(x)
