"""A phase's targets, live or cached: the losses cannot tell.

Targets depend on the example and on roles that the phase does not train. Live,
a step computes them; cached, they are computed once for every example and
join the source as further entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource
from jaxkd.method import Batch, Method, Phase
from jaxkd.parallel import Placement, arrays
from jaxkd.roles import Nets
from jaxkd.training.proofs import Watch

Frozen = Mapping[str, Mapping[str, Any]]


def make_targets(
  method: Method, phase: Phase, watch: Watch
) -> Callable[[Frozen, Batch], dict[str, Any]]:
  """Builds the function that computes the targets of one batch.

  Args:
    method: the method.
    phase: one of its phases, with targets.
    watch: notes what tracing the function shows.

  Returns:
    `(frozen, batch) -> targets`, [B, ...] by name.
  """

  def compute(frozen: Frozen, batch: Batch) -> dict[str, Any]:
    nets = Nets(method.roles, frozen["params"], frozen["collections"])
    targets = {name: fn(nets, batch) for name, fn in phase.targets.items()}
    watch.saw(nets)
    return targets

  return compute


def cache_targets(
  compute: Callable[[Frozen, Batch], dict[str, Any]],
  frozen: Frozen,
  source: ArraySource,
  *,
  batch_size: int,
  placement: Placement,
) -> ArraySource:
  """Computes the targets of every example.

  Args:
    compute: what `make_targets` made, jitted.
    frozen: trees of the roles that the phase does not train, as they are kept.
    source: N examples.
    batch_size: examples in a batch; small ones keep what is inside small.
    placement: on which devices.

  Returns:
    The source with an entry [N, ...] for each target, in host memory.
  """
  parts = [
    arrays.fetch(compute(frozen, placement.put_batch(batch)))
    for batch in pipeline.batches(source, batch_size, *placement.part)
  ]
  for name in parts[0]:
    rows = np.concatenate([part[name] for part in parts])[: len(source)]
    source = source.with_entry(name, rows)
  return source
