"""A phase's targets, live or cached: the losses cannot tell.

Targets depend on the example and on roles that the phase does not train. Live,
a step computes them; cached, they are computed once for every example and
join the source as further entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource
from jaxkd.method import Batch, Method, Phase
from jaxkd.parallel import Placement
from jaxkd.roles import Nets

Frozen = Mapping[str, Mapping[str, Any]]


def with_targets(
  method: Method, phase: Phase, frozen: Frozen, batch: Batch
) -> Batch:
  """Adds the phase's targets to a batch, unless they came with it."""
  missing = [name for name in phase.targets if name not in batch]
  if not missing:
    return batch
  nets = Nets(method.roles, frozen["params"], frozen["collections"])
  return {
    **batch,
    **{
      name: jax.lax.stop_gradient(phase.targets[name](nets, batch))
      for name in missing
    },
  }


def cache_targets(
  method: Method,
  phase: Phase,
  frozen: Frozen,
  source: ArraySource,
  *,
  batch_size: int,
  placement: Placement,
) -> ArraySource:
  """Computes the targets of every example.

  Args:
    method: the method.
    phase: one of its phases, with targets.
    frozen: trees of the roles that it does not train, placed.
    source: N examples.
    batch_size: examples in a batch; small ones keep what is inside small.
    placement: on which devices.

  Returns:
    The source with an entry [N, ...] for each target, in host memory.
  """

  @jax.jit
  def compute(frozen, batch):
    full = with_targets(method, phase, frozen, batch)
    return {name: full[name] for name in phase.targets}

  parts = [
    jax.device_get(compute(frozen, placement.put_batch(batch)))
    for batch in pipeline.batches(source, batch_size)
  ]
  for name in phase.targets:
    rows = np.concatenate([part[name] for part in parts])[: len(source)]
    source = source.with_entry(name, rows)
  return source
