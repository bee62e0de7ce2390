"""Running what a method deploys, over a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource
from jaxkd.method import Method
from jaxkd.network import Outputs
from jaxkd.parallel import Placement, arrays
from jaxkd.roles import Nets

if TYPE_CHECKING:
  from jaxkd.training.loop import Fitted


@dataclasses.dataclass
class Predictor:
  """Runs a method's predictors; compiled once for all seeds.

  Attributes:
    method: the method.
    placement: on which devices.
    batch_size: examples in a batch.
    of: what is kept of a predictor's outputs, arrays [B, ...].
  """

  method: Method
  placement: Placement
  batch_size: int
  of: Callable[[Outputs], Any] = lambda outputs: outputs.logits

  def __post_init__(self):
    """Makes the jitted function."""

    def run(params, collections, memory, batch):
      nets = Nets(self.method.roles, params, collections, memory=memory)
      outputs = self.method.outputs(nets, batch)
      self._names = tuple(outputs)  # jit would sort a dict by name
      kept = [self.of(output) for output in outputs.values()]
      return kept, dict(self.method.measure(nets, batch))

    self._run = jax.jit(run)

  def __call__(
    self, fitted: Fitted, source: ArraySource
  ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs over a source.

    Args:
      fitted: the method's variables.
      source: N examples.

    Returns:
      Arrays [N, ...] by predictor, in the method's order, and further measures
      [N] by name.
    """
    variables = {
      "params": dict(fitted.params),
      "collections": dict(fitted.collections),
      "memory": dict(fitted.memory),
    }
    placement = self.placement
    variables = placement.put(variables)
    parts = [
      arrays.fetch(self._run(**variables, batch=placement.put_batch(batch)))
      for batch in pipeline.batches(source, self.batch_size, *placement.part)
    ]
    kept, measures = jax.tree.map(
      lambda *rows: np.concatenate(rows)[: len(source)], *parts
    )
    return dict(zip(self._names, kept, strict=True)), measures
