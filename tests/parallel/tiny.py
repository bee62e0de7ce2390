"""Tiny nets that teach each other, for placements: data, methods, steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd import nets
from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource, Splits
from jaxkd.methods import Distill
from jaxkd.network import Network
from jaxkd.parallel import Placement
from jaxkd.terms import Labels, Logits
from jaxkd.training.program import Program, build
from jaxkd.training.proofs import Watch
from tests.methods import toys

SYMBOLS, LENGTH, SIDE, CLASSES = 32, 6, 4, 4
BATCH = 32


def source(kind: str, size: int, seed: int) -> ArraySource:
  """Vectors, images or tokens, and their labels."""
  random = np.random.default_rng(seed)
  if kind == "decoder":
    tokens = random.integers(0, SYMBOLS, (size, LENGTH + 1)).astype(np.int32)
    return ArraySource({"tokens": tokens[:, :-1], "label": tokens[:, 1:]})
  shape = (12,) if kind == "mlp" else (SIDE, SIDE, 3)
  image = random.normal(size=(size, *shape)).astype(np.float32)
  label = random.integers(0, CLASSES, size).astype(np.int32)
  return ArraySource({"image": image, "label": label})


def splits(kind: str, train: int = 156) -> Splits:
  """Sources of these sizes."""
  sizes = {"train": train, "validation": 12, "test": 8}
  return Splits(
    **{n: source(kind, size, i) for i, (n, size) in enumerate(sizes.items())}
  )


def batch(kind: str) -> dict[str, np.ndarray]:
  """A batch of which all examples count."""
  return next(pipeline.batches(source(kind, BATCH, 0), BATCH))


def network(kind: str, width: int, **options: Any) -> Network:
  """A net whose every split dimension is a multiple of 8."""
  if kind == "mlp":
    return Network(nets.MLP(features=(2 * width, width, CLASSES), **options))
  size = {"width": width, "heads": 2, "hidden": 2 * width, **options}
  if kind == "vit":
    size = {"image_size": SIDE, "patch": 2, "num_classes": CLASSES, **size}
    return Network(nets.VisionTransformer(**{"depth": 1, **size}))
  size = {"depth": 2, "scan_layers": True, **size}
  module = nets.CausalDecoder(vocabulary_size=SYMBOLS, **size)
  return Network(module, inputs=("tokens",))


def distill(
  kind: str,
  *,
  student: Mapping[str, Any] | None = None,
  teacher: Mapping[str, Any] | None = None,
  accumulate: int = 1,
) -> Distill:
  """A student of width 16 learns from labels and a ready teacher of 32."""
  method = Accumulating(
    student=network(kind, 16, **(student or {})),
    teachers={"teacher": network(kind, 32, **(teacher or {}))},
    terms=(
      Labels(name="task"),
      Logits(name="kd", options={"temperature": 2.0}),
    ),
    teacher_epochs=0,
    epochs=4,
    lr=1e-2,
    accumulate=accumulate,
  )
  return method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulating(Distill):
  """The method, its batches in parts."""

  accumulate: int = 1

  def _update(self, trainable, loss, lr=None):
    update = super()._update(trainable, loss, lr)
    return dataclasses.replace(update, accumulate=self.accumulate)


def compiled(
  method: Distill, kind: str, placement: Placement
) -> tuple[Program, tuple[Any, ...]]:
  """The step on a batch, and what it is called with."""
  given = batch(kind)
  state, frozen = toys.begin(method, given, phase=-1)
  state = placement.put(state)
  frozen = placement.keep(frozen)
  given = placement.put_batch(given)
  program = build(
    method,
    method.phases[-1].planned(4),
    state=state,
    best=None,
    frozen=frozen,
    batch=given,
    validation_batch=given,
    steps_per_epoch=4,
    placement=placement,
    watch=Watch(),
  )
  return program, (state, frozen, given)
