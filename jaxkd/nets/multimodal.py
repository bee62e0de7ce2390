"""Networks of several modalities that work with any subset of them.

Every modality has a stem. The outputs of the stems of modalities that an
example lacks are set to 0 *behind* the stem, where biases and batch norms
cannot bring them back, and the joint map goes to one head. A second head of the
same form can read the same map (tap `masked`) and is then a role of its own.

Reference: Wei et al. (MMANet), https://arxiv.org/abs/2304.08028.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd import errors
from jaxkd.nets import layers, mlp, pooling, resnet
from jaxkd.nets.batchnorm import BatchNorm

Array = jax.Array


class MaskedConcat(nn.Module):
  """Joins the channels of M modalities, those that are absent being 0.

  Shapes: M of `[B, *spatial, C_m]`, available `[B, M]` ->
  `[B, *spatial, sum of C_m]`.
  """

  @nn.compact
  def __call__(self, features: Sequence[Array], available: Array) -> Array:
    """Returns the joint map.

    Args:
      features: one map per modality, of the same places.
      available: 1 where an example has the modality, else 0.

    Raises:
      ConfigError: `available` has not one column for every modality.
    """
    expected = (len(features[0]), len(features))
    if available.shape != expected:
      raise errors.ConfigError(
        f"MaskedConcat: available of shape {available.shape}: expected "
        f"{expected}, one column for every modality"
      )
    shown = []
    for column, feature in enumerate(features):
      here = available[:, column] > 0
      here = here.reshape(-1, *(1,) * (feature.ndim - 1))
      zero = jnp.zeros((), feature.dtype)
      shown.append(jnp.where(here, feature, zero))
    return jnp.concatenate(shown, axis=-1)


class MLPHead(nn.Module, kw_only=True):
  """A perceptron on a joint vector.

  Shapes: `[B, D]` -> logits `[B, num_classes]`.

  Taps:
    trunk: `[B, features[-1]]`, the last shared feature; inside: `fc1`, `fc2`,
      ..., before their activation.
    classifier: `[B, num_classes]`.

  Attributes:
    features: sizes of the layers before the classifier.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  features: tuple[int, ...] = (64, 32)
  num_classes: int = 10
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, masked: Array) -> Array:
    """Returns the logits of the joint vector `masked`."""
    trunk = mlp.MLPTrunk(features=self.features, dtype=self.dtype, name="trunk")
    classifier = layers.Linear(
      self.num_classes, dtype=self.dtype, name="classifier"
    )
    return classifier(trunk(masked))


class MultimodalMLP(nn.Module, kw_only=True):
  """A perceptron for every modality and a joint one on what is available.

  Shapes: M of `[B, ...]`, flattened, and available `[B, M]` -> logits
  `[B, num_classes]`.

  Taps:
    stem1, stem2, ...: `[B, stem_features[-1]]`, in the order of the inputs,
      before the mask; inside: `fc1`, ..., before their activation.
    masked: `[B, M * stem_features[-1]]`.
    head: the logits; inside: see `MLPHead`, `head/trunk` the last shared
      feature.

  Attributes:
    stem_features: sizes of the layers of every stem.
    features: sizes of the joint layers before the classifier.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  stem_features: tuple[int, ...] = (32,)
  features: tuple[int, ...] = (64, 32)
  num_classes: int = 10
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, *inputs: Array) -> Array:
    """Returns the logits of the modalities and, last, which are available."""
    *modalities, available = inputs
    stems = [
      mlp.MLPTrunk(
        features=self.stem_features, dtype=self.dtype, name=f"stem{i}"
      )(x)
      for i, x in enumerate(modalities, start=1)
    ]
    x = MaskedConcat(name="masked")(stems, available)
    head = MLPHead(
      features=self.features,
      num_classes=self.num_classes,
      dtype=self.dtype,
      name="head",
    )
    return head(x)


class ResNetStem(nn.Module, kw_only=True):
  """The first half of ResNet-18 and squeeze-and-excitation.

  Shapes: `[B, H, W, I]` -> `[B, H/8, W/8, widths[-1]]`, rounded up.

  Taps:
    conv, bn: `[B, H/2, W/2, widths[0]]`, before the activation.
    layer1: `[B, H/4, W/4, widths[0]]`; inside: see `ResNetStage`.
    layer2: `[B, H/8, W/8, widths[1]]`; inside: likewise.
    se: of the output's shape; inside: `fc1`, `fc2`.

  Attributes:
    widths: channels of the two stages.
    reduction: of squeeze-and-excitation.
    dtype: computation type; None: float32.
  """

  widths: tuple[int, int] = (64, 128)
  reduction: int = 16
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the map of one modality."""
    x = resnet.conv(self.widths[0], 3, 2, "conv", self.dtype)(inputs)
    x = nn.relu(BatchNorm(dtype=self.dtype, name="bn")(x, train=train))
    around = ((1, 1), (1, 1))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=around)
    for number, width in enumerate(self.widths, start=1):
      stage = resnet.ResNetStage(
        features=width,
        strides=1 if number == 1 else 2,
        dtype=self.dtype,
        name=f"layer{number}",
      )
      x = stage(x, train=train)
    return resnet.SqueezeExcitation(
      reduction=self.reduction, dtype=self.dtype, name="se"
    )(x)


class ResNetTrunk(nn.Module, kw_only=True):
  """The second half of ResNet-18 without its classifier.

  Shapes: `[B, H, W, I]` -> `[B, H/4, W/4, widths[-1]]`, rounded up.

  Taps:
    layer3: `[B, H/2, W/2, widths[0]]`; inside: see `ResNetStage`.
    layer4: the output; inside: likewise.

  Attributes:
    widths: channels of the two stages.
    dtype: computation type; None: float32.
  """

  widths: tuple[int, int] = (256, 512)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, inputs: Array, *, train: bool) -> Array:
    """Returns the last shared map."""
    x = inputs
    for number, width in enumerate(self.widths, start=3):
      stage = resnet.ResNetStage(
        features=width, strides=2, dtype=self.dtype, name=f"layer{number}"
      )
      x = stage(x, train=train)
    return x


class ResNetHead(nn.Module, kw_only=True):
  """The second half of ResNet-18 on a joint map.

  Shapes: `[B, H, W, I]` -> logits `[B, num_classes]`.

  Taps:
    trunk: `[B, H/4, W/4, widths[-1]]`, the last shared feature; inside: see
      `ResNetTrunk`.
    classifier: `[B, num_classes]`.

  Attributes:
    widths: channels of the two stages.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  widths: tuple[int, int] = (256, 512)
  num_classes: int = 10
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, masked: Array, *, train: bool = False) -> Array:
    """Returns the logits of the joint map `masked`."""
    trunk = ResNetTrunk(widths=self.widths, dtype=self.dtype, name="trunk")
    x = pooling.global_average_pool(trunk(masked, train=train))
    return layers.Linear(self.num_classes, dtype=self.dtype, name="classifier")(
      x
    )


class MultimodalResNet(nn.Module, kw_only=True):
  """ResNet-18 whose first half is there once for every modality: MMANet.

  Shapes: M of `[B, H, W, I_m]` and available `[B, M]` -> logits
  `[B, num_classes]`.

  Taps:
    stem1, stem2, ...: `[B, H/8, W/8, stem_widths[-1]]`, in the order of the
      inputs, before the mask; inside: see `ResNetStem`.
    masked: `[B, H/8, W/8, M * stem_widths[-1]]`.
    head: the logits; inside: see `ResNetHead`, `head/trunk` the last shared
      feature `[B, H/32, W/32, widths[-1]]`.

  Attributes:
    stem_widths: channels of the two stages of every stem.
    widths: channels of the two joint stages.
    reduction: of the squeeze-and-excitation that ends a stem.
    num_classes: number of classes.
    dtype: computation type; None: float32.
  """

  stem_widths: tuple[int, int] = (64, 128)
  widths: tuple[int, int] = (256, 512)
  reduction: int = 16
  num_classes: int = 2
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, *inputs: Array, train: bool = False) -> Array:
    """Returns the logits of the modalities and, last, which are available."""
    *modalities, available = inputs
    options = {"widths": self.stem_widths, "reduction": self.reduction}
    stems = [
      ResNetStem(dtype=self.dtype, name=f"stem{i}", **options)(x, train=train)
      for i, x in enumerate(modalities, start=1)
    ]
    x = MaskedConcat(name="masked")(stems, available)
    head = ResNetHead(
      widths=self.widths,
      num_classes=self.num_classes,
      dtype=self.dtype,
      name="head",
    )
    return head(x, train=train)
