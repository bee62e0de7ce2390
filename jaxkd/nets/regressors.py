"""Regressors: trained maps of a student's feature to its teacher's.

All companions of feature losses are called with the student's and the
teacher's feature and return what takes the place of the student's in the loss.
Of the teacher's feature only the shape is read, so that nothing of them is
given twice and no gradient reaches the teacher: as a role they are
`Network(module, inputs=("student", "teacher"))`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.losses import maps
from jaxkd.nets import layers, resizing
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array


def _misfit(
  net: str, student: Array, teacher: Array, expected: str
) -> errors.ConfigError:
  """The error of a regressor that has no form for two shapes."""
  return errors.ConfigError(
    f"{net}: student feature {student.shape}, teacher feature "
    f"{teacher.shape}; expected {expected}"
  )


class FitNetRegressor(nn.Module, kw_only=True):
  """FitNets' regressor: a convolution that fits, batch norm, ReLU.

  The convolution halves the map (3, stride 2), doubles it (transposed, 4,
  stride 2), or has the size that leaves the teacher's: 1 for equal maps.

  Shapes: maps `[B, *spatial, C]`, `[B, *spatial', C']` -> `[B, *spatial', C']`.

  Taps, both `[B, *spatial', C']`: conv, bn (before the ReLU).

  Attributes:
    dtype: computation type; None: float32.

  Reference: https://arxiv.org/abs/1412.6550; the forms are those of
  https://arxiv.org/abs/1910.10699.
  """

  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, student: Array, teacher: Array, *, train: bool = False
  ) -> Array:
    """Returns the student's feature in the teacher's shape."""
    x = self._conv(student, teacher)(student)
    return nn.relu(BatchNorm(dtype=self.dtype, name="bn")(x, train=train))

  def _conv(self, student: Array, teacher: Array) -> nn.Module:
    ours, theirs = student.shape[1:-1], teacher.shape[1:-1]
    options = {"dtype": self.dtype, "name": "conv"}
    features, pairs = teacher.shape[-1], list(zip(ours, theirs, strict=True))
    if all(s == 2 * t for s, t in pairs):
      return layers.Conv(features, 3, strides=2, padding=1, **options)
    if all(2 * s == t for s, t in pairs):
      return resizing.TransposedConv(
        features, 4, strides=2, padding=1, **options
      )
    sizes = {1 + s - t for s, t in pairs}
    if len(sizes) != 1 or min(sizes) < 1:
      expected = "half, double, or as much less along every axis, or equal"
      raise _misfit("FitNetRegressor", student, teacher, expected)
    return layers.Conv(features, sizes.pop(), **options)


class HintRegressor(nn.Module, kw_only=True):
  """The regressor of MST-Distill's FitNets, without batch norm and ReLU.

  A vector to a vector: a convolution of 3 along it, with a stride where the
  teacher's is shorter, then nearest places. A map to a vector: a convolution to
  16 channels, then a linear layer. A map to a map that is equal, half or double
  as large: a convolution of 3, transposed where it doubles.

  Shapes: `[B, ...]`, `[B, ...]'` -> `[B, ...]'`.

  Taps:
    conv: the convolution, `[B, n, 1]`, `[B, *spatial, 16]` or the output.
    fc: of a map to a vector, `[B, D']`.

  Attributes:
    channels: of the convolution before a linear layer.
    dtype: computation type; None: float32.

  Reference: https://arxiv.org/abs/2507.07015.
  """

  channels: int = 16
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, student: Array, teacher: Array) -> Array:
    """Returns the student's feature in the teacher's shape."""
    options = {"padding": 1, "dtype": self.dtype, "name": "conv"}
    features = teacher.shape[-1]
    if student.ndim == teacher.ndim == 2:
      strides = max(student.shape[-1] // features, 1)
      x = layers.Conv(1, 3, strides=strides, **options)(student[..., None])
      return resizing.nearest(x, (features,))[..., 0]
    if teacher.ndim == 2:
      x = layers.Conv(self.channels, 3, **options)(student)
      fc = layers.Linear(features, dtype=self.dtype, name="fc")
      return fc(x.reshape(len(x), -1))
    ours, theirs = student.shape[1:-1], teacher.shape[1:-1]
    if ours == theirs:
      return layers.Conv(features, 3, **options)(student)
    if theirs == tuple(-(-n // 2) for n in ours):
      return layers.Conv(features, 3, strides=2, **options)(student)
    if theirs == tuple(2 * n for n in ours):
      enlarge = resizing.TransposedConv(
        features, 3, strides=2, output_padding=1, **options
      )
      return enlarge(student)
    expected = "a vector, or a map that is equal, half or double as large"
    raise _misfit("HintRegressor", student, teacher, expected)


class Connector(nn.Module, kw_only=True):
  """1x1 convolution to the teacher's channels and batch norm: OFD, ICKD.

  Shapes: `[B, *spatial, C]`, `[B, *spatial', C']` -> `[B, *spatial, C']`.

  Taps, both `[B, *spatial, C']`: conv, bn.

  Attributes:
    dtype: computation type; None: float32.

  Reference: https://arxiv.org/abs/1904.01866, Sec. 3.
  """

  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, student: Array, teacher: Array, *, train: bool = False
  ) -> Array:
    """Returns the student's map with the teacher's channels."""
    conv = layers.Conv(
      teacher.shape[-1],
      1,
      use_bias=False,
      kernel_init=jax.nn.initializers.variance_scaling(
        2.0, "fan_out", "normal"
      ),
      dtype=self.dtype,
      name="conv",
    )
    bn = BatchNorm(dtype=self.dtype, name="bn")
    return bn(conv(student), train=train)


class VIDRegressor(nn.Module, kw_only=True):
  """Gaussian of the teacher's map: a mean from the student's, variances.

  The mean is three 1x1 convolutions with ReLUs between them; the variance of a
  channel is softplus(a) + `least`, the same for all examples and places.

  Shapes: `[B, *spatial, C]`, `[B, *spatial', C']` -> mean
  `[B, *min(spatial, spatial'), C']`, the teacher's feature as it came, variance
  `[C']`: the arguments of `losses.vid`.

  Taps: conv1, conv2, conv3 (the mean), all of the mean's shape.

  Attributes:
    variance: where it starts.
    least: below which no variance falls.
    dtype: computation type of the mean; None: float32.

  Reference: https://arxiv.org/abs/1904.05835, Sec. 3.
  """

  variance: float = 5.0
  least: float = 1e-5
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, student: Array, teacher: Array
  ) -> tuple[Array, Array, Array]:
    """Returns mean, teacher's feature and variance."""
    features = teacher.shape[-1]
    x = maps.shrink(student, teacher)
    for i in (1, 2, 3):
      x = layers.Conv(
        features, 1, use_bias=False, dtype=self.dtype, name=f"conv{i}"
      )(x if i == 1 else nn.relu(x))
    start = jnp.log(jnp.expm1(self.variance - self.least))
    log_scale = self.param(
      "log_scale", jax.nn.initializers.constant(start), (features,), jnp.float32
    )
    return x, teacher, nn.softplus(log_scale) + self.least
