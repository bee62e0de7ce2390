"""CNN-I: an image and an audio network joined halfway (AV-MNIST teacher).

Reference: https://arxiv.org/abs/2507.07015, multimodal network of AV-MNIST.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from jaxkd.nets import cnn_audio, junctions, layers, lenet

Array = jax.Array


class CNNI(nn.Module, kw_only=True):
  """CNN-I: LeNet-5 and a five-layer CNN, joined by two linear layers, 1.8M.

  There is no activation between `fc1` and `fc2`.

  Shapes: image `[B, 28, 28, 1]`, audio `[B, 112, 112, 1]` -> logits
  `[B, num_classes]`.

  Taps:
    image_branch: `[B, 84]`; inside: `conv1`, `conv2`, `conv3`, `fc1`.
    audio_branch: `[B, 512]`; inside: `conv1` ... `conv5`.
    concat: `[B, 596]`, image first.
    fc1: `[B, hidden]`.
    fc2: `[B, num_classes]`.

  Attributes:
    num_classes: number of classes.
    hidden: size of `fc1`.
    dtype: computation type; None: float32.
  """

  num_classes: int = 10
  hidden: int = 298
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, image: Array, audio: Array) -> Array:
    """Returns the logits of the pairs `(image, audio)`."""
    image_branch = lenet.LeNet5Trunk(dtype=self.dtype, name="image_branch")
    audio_branch = cnn_audio.FiveLayerCNNTrunk(
      dtype=self.dtype, name="audio_branch"
    )
    x = junctions.Concat(name="concat")(
      image_branch(image), audio_branch(audio)
    )  # [B, 84 + 512]
    x = layers.Linear(self.hidden, dtype=self.dtype, name="fc1")(x)
    return layers.Linear(self.num_classes, dtype=self.dtype, name="fc2")(x)
