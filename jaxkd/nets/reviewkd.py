"""Attention fusion of ReviewKD: shallow maps reviewed with deeper ones.

Reference: Chen et al., https://arxiv.org/abs/2104.09044, Sec. 3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import layers, resizing
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array
_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def _as_map(feature: Array) -> Array:
  """A vector `[B, C]` is the map `[B, 1, 1, C]`."""
  return feature if feature.ndim == 4 else feature[:, None, None]


class FusionBlock(nn.Module, kw_only=True):
  """One stage's map, fused by attention with what the deeper stages left.

  Shapes: student's map `[B, H, W, C]`, teacher's map `[B, H', W', C']`, of
  which only the shape is read, and the residue `[B, ., ., M]` of the next
  deeper block, or None -> output `[B, H', W', C']`, residue `[B, H', W', M]`.

  Taps:
    conv1, bn1: `[B, H, W, M]`.
    attention: `[B, H, W, 2]`, before its sigmoid; not without residue.
    conv2, bn2: `[B, H', W', C']`.

  Attributes:
    middle: M, channels in which maps are fused.
    dtype: computation type; None: float32.
  """

  middle: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    student: Array,
    teacher: Array,
    residue: Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[Array, Array]:
    """Returns the output and the residue for the next shallower block."""
    bn1, bn2 = (BatchNorm(dtype=self.dtype, name=f"bn{i}") for i in (1, 2))
    options = {"use_bias": False, "kernel_init": _INIT, "dtype": self.dtype}
    conv1 = layers.Conv(self.middle, 1, name="conv1", **options)
    x = bn1(conv1(student), train=train)
    if residue is not None:
      residue = resizing.nearest(residue, student.shape[1:-1])
      attention = layers.Conv(2, 1, dtype=self.dtype, name="attention")
      share = nn.sigmoid(attention(jnp.concatenate([x, residue], -1)))
      x = x * share[..., :1] + residue * share[..., 1:]
    x = resizing.nearest(x, teacher.shape[1:-1])
    conv2 = layers.Conv(
      teacher.shape[-1], 3, padding=1, name="conv2", **options
    )
    return bn2(conv2(x), train=train), x


class ReviewFusion(nn.Module, kw_only=True):
  """A fusion block for every stage, from the deepest to the shallowest.

  Shapes: the student's and the teacher's stages, shallow first, each
  `[B, H, W, C]` or a pooled vector `[B, C]` -> one map per stage, shallow
  first, of the teacher's stage's shape, a vector as `[B, 1, 1, C]`. Of the
  teacher's stages only the shapes are read.

  Taps: block1, block2, ... from the shallowest stage on; inside: the taps of
  `FusionBlock`.

  Attributes:
    middle: channels in which maps are fused; None: the deepest student's, 512
      at most.
    dtype: computation type; None: float32.
  """

  middle: int | None = None
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self,
    student: Sequence[Array],
    teacher: Sequence[Array],
    *,
    train: bool = False,
  ) -> list[Array]:
    """Returns the fused maps."""
    if len(student) != len(teacher) or not student:
      raise errors.ConfigError(
        f"ReviewFusion: {len(student)} student stages, {len(teacher)} teacher "
        "stages; expected as many, at least one"
      )
    middle = self.middle or min(512, student[-1].shape[-1])
    fused, residue = [], None
    for i in reversed(range(len(student))):
      block = FusionBlock(middle=middle, dtype=self.dtype, name=f"block{i + 1}")
      output, residue = block(
        _as_map(student[i]), _as_map(teacher[i]), residue, train=train
      )
      fused.insert(0, output)
    return fused
