"""Small teachers and students that a distillation step is timed on.

Four networks of four kinds, of sizes whose step takes a CPU some tens of
milliseconds, with a batch of random examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxkd import nets
from jaxkd.data.source import ArraySource
from jaxkd.network import Network

CLASSES = 10
VOCABULARY = 1024


@dataclasses.dataclass(frozen=True)
class Size:
  """How large a network is; what each kind makes of it is in `network`."""

  width: int
  depth: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """A teacher, a student and what they read.

  Attributes:
    kind: "mlp", "resnet", "vit" or "decoder".
    teacher: its size.
    student: its size.
    batch_size: examples in a step.
    extent: side of an image, or tokens in a row.
    classes: of images, or the vocabulary.
  """

  kind: str
  teacher: Size
  student: Size
  batch_size: int
  extent: int
  classes: int = CLASSES

  def network(self, size: Size) -> Network:
    """The network of this size."""
    width, depth = size.width, size.depth
    if self.kind == "mlp":
      return Network(nets.MLP(features=(*(width,) * depth, self.classes)))
    if self.kind == "resnet":
      return Network(
        nets.ResNet(
          depths=(depth,) * 3,
          features=(width, 2 * width, 4 * width),
          bottleneck=False,
          stem_features=width,
          num_classes=self.classes,
        )
      )
    if self.kind == "vit":
      return Network(
        nets.VisionTransformer(
          image_size=self.extent,
          patch=4,
          width=width,
          depth=depth,
          heads=3,
          hidden=4 * width,
          num_classes=self.classes,
        )
      )
    return Network(
      nets.CausalDecoder(
        vocabulary_size=self.classes, width=width, depth=depth, heads=4
      ),
      ("tokens",),
    )

  def arrays(self, examples: int) -> Mapping[str, np.ndarray]:
    """Random examples: images and labels, or tokens and those that follow."""
    rng = np.random.default_rng(0)
    if self.kind == "decoder":
      shape = (examples, self.extent + 1)
      tokens = rng.integers(0, self.classes, shape).astype(np.int32)
      return {
        "tokens": tokens[:, :-1].copy(),
        "label": tokens[:, 1:].copy(),
      }
    channels = 1 if self.kind == "mlp" else 3
    shape = (examples, self.extent, self.extent, channels)
    return {
      "image": rng.random(shape, np.float32),
      "label": rng.integers(0, self.classes, examples, np.int32),
    }

  def source(self, examples: int) -> ArraySource:
    """The examples as a split of a task."""
    return ArraySource(dict(self.arrays(examples)))


# The perceptrons are those of Hinton et al., https://arxiv.org/abs/1503.02531.
PAIRS = {
  "mlp": Pair(
    kind="mlp",
    teacher=Size(1200, 2),
    student=Size(800, 2),
    batch_size=256,
    extent=28,
  ),
  "resnet": Pair(
    kind="resnet",
    teacher=Size(32, 2),
    student=Size(16, 1),
    batch_size=32,
    extent=64,
  ),
  "vit": Pair(
    kind="vit",
    teacher=Size(192, 4),
    student=Size(96, 2),
    batch_size=32,
    extent=32,
  ),
  "decoder": Pair(
    kind="decoder",
    teacher=Size(256, 4),
    student=Size(128, 2),
    batch_size=8,
    extent=64,
    classes=VOCABULARY,
  ),
}


def small(pair: Pair) -> Pair:
  """The same kinds in a size that compiles and runs in a moment."""
  return dataclasses.replace(
    pair,
    teacher=Size(48, 1),
    student=Size(24, 1),
    batch_size=4,
    extent=16,
  )
