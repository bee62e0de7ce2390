"""A backbone with two linear classifiers: of labels and of a teacher.

Reference: Kang et al. (DHO), https://arxiv.org/abs/2505.07675.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import layers

Array = jax.Array


class DualHead(nn.Module, kw_only=True):
  """Two heads, or one in both places, on the features of a backbone.

  Shapes: whatever the backbone reads -> {"labels": `[B, num_classes]`,
  "teacher": `[B, num_classes]`, "features": `[B, D]`}.

  Taps:
    backbone: `[B, D]`; inside: the backbone's own taps.
    label_head: `[B, num_classes]`.
    teacher_head: `[B, num_classes]`, before `scale`; not with `single`.

  Attributes:
    backbone: a module that returns features `[B, D]`.
    num_classes: number of classes.
    single: one head receives labels and teacher: the usual student.
    normalized: the teacher's head reads features of length 1 and its logits,
      bias and all, are multiplied by `scale`, as CLIP's are; the head of labels
      reads the features as they are.
    scale: of the teacher's head, where it is normalised.
    dtype: computation type; None: float32.
  """

  backbone: nn.Module
  num_classes: int
  single: bool = False
  normalized: bool = False
  scale: float = 100.0
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, *inputs: Array) -> dict[str, Array]:
    """Returns the logits of both heads, and the features."""
    features = self.backbone(*inputs)
    labels = layers.Linear(
      self.num_classes, dtype=self.dtype, name="label_head"
    )(features)
    if self.single:
      return {"labels": labels, "teacher": labels, "features": features}
    head = layers.Linear(
      self.num_classes, dtype=self.dtype, name="teacher_head"
    )
    if not self.normalized:
      teacher = head(features)
    else:
      length = jnp.linalg.norm(features, axis=-1, keepdims=True)
      teacher = self.scale * head(features / jnp.maximum(length, 1e-12))
    return {"labels": labels, "teacher": teacher, "features": features}
