"""Networks on sequences: audio features over time, video, and both (DSCNN-I).

One family: a branch of convolutions over all axes between batch and channels
(time; or time, height and width), and a perceptron on one branch or on two. The
four branches of the paper are the `Branch` constants of this file:

  constant          input                   output
  RAVDESS_AUDIO     [B, 156, 15]            [B, 1280]
  RAVDESS_VISUAL    [B, 15, 224, 224, 3]    [B, 18816]
  VGGSOUND_AUDIO    [B, 128, 10]            [B, 256]
  VGGSOUND_VISUAL   [B, 10, 7, 7, 512]      [B, 128]

Reference: https://arxiv.org/abs/2507.07015, networks of RAVDESS and VGGSound.
"""

import dataclasses

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import batchnorm, junctions, layers, mlp, pooling

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
  """What distinguishes one convolutional branch from another.

  Attributes:
    widths: channels of the convolutions.
    pools: max-pooling window after each convolution; 1: no pooling.
  """

  widths: tuple[int, ...]
  pools: tuple[int, ...]


RAVDESS_AUDIO = Branch(widths=(32, 128, 256), pools=(3, 3, 3))
RAVDESS_VISUAL = Branch(widths=(6, 12, 24), pools=(2, 2, 2))
VGGSOUND_AUDIO = Branch(widths=(16, 32, 64), pools=(3, 3, 3))
VGGSOUND_VISUAL = Branch(widths=(256, 128, 64), pools=(2, 2, 1))


class ConvBranch(nn.Module, kw_only=True):
  """Convolution 3, batch norm, ReLU, max pooling, repeated; then flattened.

  Shapes: `[B, *spatial, C]` -> `[B, D]`.

  Taps:
    conv1, conv2, ...: before batch norm and activation.
    bn1, bn2, ...: before the activation.

  Attributes:
    branch: widths and pooling windows.
    dtype: computation type; None: float32.
  """

  branch: Branch
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the features of `inputs`."""
    x = inputs
    steps = zip(self.branch.widths, self.branch.pools, strict=True)
    for i, (width, pool) in enumerate(steps, start=1):
      x = layers.Conv(width, 3, padding=1, dtype=self.dtype, name=f"conv{i}")(x)
      x = batchnorm.BatchNorm(dtype=self.dtype, name=f"bn{i}")(x, train=train)
      x = nn.relu(x)
      x = pooling.max_pool(x, pool) if pool > 1 else x
    return x.reshape(x.shape[0], -1)


class BranchNet(nn.Module, kw_only=True):
  """One convolutional branch and a perceptron.

  AudioBranchNet, VisualBranchNet and their VGGSound versions, by `branch`.

  Shapes: `[B, *spatial, C]` -> logits `[B, features[-1]]`.

  Taps:
    branch: `[B, D]`; inside: `conv1`, `bn1`, ..., `conv3`, `bn3`.
    fc1, fc2, fc3: `[B, 320]`, `[B, 160]`, `[B, 8]`, before their activation.

  Attributes:
    branch: widths and pooling windows of the convolutions.
    features: sizes of the linear layers; the last is the number of classes.
    dtype: computation type; None: float32.
  """

  branch: Branch = RAVDESS_AUDIO
  features: tuple[int, ...] = (320, 160, 8)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool = False) -> Array:
    """Returns the logits of `inputs`."""
    branch = ConvBranch(branch=self.branch, dtype=self.dtype, name="branch")
    return mlp.dense_stack(
      branch(inputs, train=train), self.features, self.dtype
    )


class DSCNNI(nn.Module, kw_only=True):
  """DSCNN-I: a visual and an audio branch and one perceptron.

  Shapes: visual `[B, T, H, W, C]`, audio `[B, T, C]` -> logits
  `[B, features[-1]]`.

  Taps:
    visual_branch, audio_branch: `[B, D]`; inside: `conv1`, `bn1`, ...
    concat: `[B, D_audio + D_visual]`, audio first.
    fc1, fc2, fc3: `[B, 320]`, `[B, 160]`, `[B, 8]`, before their activation.

  Attributes:
    visual: widths and pooling windows of the visual branch.
    audio: widths and pooling windows of the audio branch.
    features: sizes of the linear layers; the last is the number of classes.
    dtype: computation type; None: float32.
  """

  visual: Branch = RAVDESS_VISUAL
  audio: Branch = RAVDESS_AUDIO
  features: tuple[int, ...] = (320, 160, 8)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, visual: Array, audio: Array, *, train: bool = False
  ) -> Array:
    """Returns the logits of the pairs `(visual, audio)`."""
    visual_branch = ConvBranch(
      branch=self.visual, dtype=self.dtype, name="visual_branch"
    )
    audio_branch = ConvBranch(
      branch=self.audio, dtype=self.dtype, name="audio_branch"
    )
    x = junctions.Concat(name="concat")(
      audio_branch(audio, train=train), visual_branch(visual, train=train)
    )
    return mlp.dense_stack(x, self.features, self.dtype)
