"""Multi-layer perceptrons of one or several inputs, ReLU between layers.

Reference: https://arxiv.org/abs/2507.07015 (MLP-I: CrisisMMD networks).
"""

from collections.abc import Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import junctions, layers

Array = jax.Array


def dense_stack(
  x: Array, features: Sequence[int], dtype: DTypeLike | None
) -> Array:
  """Applies `fc1`, `fc2`, ... with ReLU between, none after the last.

  To be called from a module's compact method, which then owns the layers.

  Args:
    x: `[B, I]`.
    features: sizes of the layers.
    dtype: computation type; None: the promotion of input and float32.

  Returns:
    `[B, features[-1]]`.
  """
  for i, size in enumerate(features, start=1):
    x = x if i == 1 else nn.relu(x)
    x = layers.Linear(size, dtype=dtype, name=f"fc{i}")(x)
  return x


class MLP(nn.Module, kw_only=True):
  """Multi-layer perceptron on a flattened input.

  Shapes: `[B, ...]` -> logits `[B, features[-1]]`.

  Taps (before their activation):
    fc1, fc2, ...: `[B, features[0]]`, `[B, features[1]]`, ...

  Attributes:
    features: sizes of all layers; the last one is the number of classes.
    dtype: computation type; None: float32.
  """

  features: tuple[int, ...] = (64, 36, 18, 10)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the logits of `inputs`."""
    x = inputs.reshape(inputs.shape[0], -1)
    return dense_stack(x, self.features, self.dtype)


class FusionMLP(nn.Module, kw_only=True):
  """Multi-layer perceptron on any number of inputs side by side.

  Shapes: `[B, ...]`, `[B, ...]`, ... -> logits `[B, features[-1]]`.

  Taps:
    concat: `[B, sum of the input sizes]`, in the order of the inputs.
    fc1, fc2, ...: `[B, features[0]]`, ..., before their activation.

  Attributes:
    features: sizes of all layers; the last one is the number of classes.
    dtype: computation type; None: float32.
  """

  features: tuple[int, ...] = (36, 18, 10)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, *inputs: Array) -> Array:
    """Returns the logits of the tuples of `inputs`."""
    x = junctions.Concat(name="concat")(*inputs)
    return dense_stack(x, self.features, self.dtype)


class MLPTrunk(nn.Module, kw_only=True):
  """Multi-layer perceptron without a classifier, with a ReLU at its end.

  Shapes: `[B, ...]` -> features `[B, features[-1]]`.

  Taps: `fc1`, `fc2`, ..., before their activation.

  Attributes:
    features: sizes of the layers.
    dtype: computation type; None: float32.
  """

  features: tuple[int, ...]
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Returns the features of `inputs`."""
    x = inputs.reshape(inputs.shape[0], -1)
    return nn.relu(dense_stack(x, self.features, self.dtype))


class MLPI(nn.Module, kw_only=True):
  """MLP-I: a perceptron for every modality, joined by a third one, 4.6M.

  Shapes: visual `[B, 2048]`, text `[B, 768]` -> logits `[B, features[-1]]`.

  Taps:
    visual_branch, text_branch: `[B, 512]`; inside: `fc1`, `fc2`.
    concat: `[B, 1024]`, visual first.
    fc1, fc2, fc3: `[B, 512]`, `[B, 256]`, `[B, 8]`, before their activation.

  Attributes:
    branch_features: sizes of the layers of each branch.
    features: sizes of the layers after joining.
    dtype: computation type; None: float32.
  """

  branch_features: tuple[int, ...] = (1024, 512)
  features: tuple[int, ...] = (512, 256, 8)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, visual: Array, text: Array) -> Array:
    """Returns the logits of the pairs `(visual, text)`."""
    branches = [
      MLPTrunk(features=self.branch_features, dtype=self.dtype, name=name)(x)
      for name, x in (("visual_branch", visual), ("text_branch", text))
    ]
    x = junctions.Concat(name="concat")(*branches)
    return dense_stack(x, self.features, self.dtype)
