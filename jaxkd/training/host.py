"""What a method's host functions work with: `Phase.begin`, `after_epoch`.

They run between steps, outside of any jit, as plain Python: they pick examples
for a stream, count predictions, search a grid, start a role from another one.
They must be functions of what they are given, so that a resumed run repeats
them. With several processes each runs them, on equal values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.source import Splits
from jaxkd.errors import ConfigError
from jaxkd.method import Batch
from jaxkd.parallel import Placement, arrays
from jaxkd.roles import Nets, key_of

Tree = Any
RowsFn = Callable[[Nets, Batch], Mapping[str, jax.Array]]


@dataclasses.dataclass(kw_only=True)
class Host:
  """The run as a host function sees it.

  Attributes:
    phase: the phase's name.
    epoch: number of the pass that ended, from 0; 0 when the phase begins.
    params: parameters by role. A function that begins a phase may replace
      entries.
    collections: other variables by role, likewise.
    memory: what the method keeps between steps, by name. Entries may be
      replaced by arrays of the same shape and type.
    start: draws parameters and collections of all roles by role, as they
      were before the first phase.
    splits: the data.
    roles: the method's networks.
    rng: the run's key.
    placement: where arrays lie.
    batch_size: examples in a batch of `run`.
    compiled: functions that were compiled for earlier calls.
  """

  phase: str
  epoch: int
  params: dict[str, Tree]
  collections: dict[str, Tree]
  memory: dict[str, Tree]
  start: Callable[[], tuple[dict[str, Tree], dict[str, Tree]]]
  splits: Splits
  roles: Mapping[str, Any]
  rng: jax.Array
  placement: Placement
  batch_size: int
  compiled: dict[Any, Callable[..., Any]]

  def key(self, name: str) -> jax.Array:
    """A random key by name, for this phase and epoch."""
    return key_of(self.rng, f"host/{self.phase}/{self.epoch}/{name}")

  def run(
    self,
    function: RowsFn,
    split: str = "train",
    *,
    rows: np.ndarray | None = None,
  ) -> dict[str, np.ndarray]:
    """Applies a function of networks and batch to all examples of a split.

    Args:
      function: a method's own function, `(nets, batch) -> arrays [B, ...]` by
        name; networks run in evaluation mode. It is compiled once a phase.
      split: the split.
      rows: numbers of the examples, [n]; all if not given.

    Returns:
      Arrays [n, ...] by name, in the order of the examples.
    """
    source = self.splits.part(split)
    if rows is not None:
      source = source.subset(rows)
    run = self._compile(function)
    placement = self.placement
    state = placement.put(
      {
        "params": self.params,
        "collections": self.collections,
        "memory": self.memory,
      }
    )
    parts = [
      arrays.fetch(run(**state, batch=placement.put_batch(batch)))
      for batch in pipeline.batches(source, self.batch_size, *placement.part)
    ]
    return {
      name: np.concatenate([part[name] for part in parts])[: len(source)]
      for name in parts[0]
    }

  def _compile(self, function: RowsFn) -> Callable[..., Any]:
    bare = getattr(function, "func", function)  # of a partial
    owned = hasattr(bare, "__self__")
    if "<" in bare.__qualname__ and not owned:
      raise ConfigError(
        f"phase {self.phase!r}: Host.run({bare.__qualname__}): expected a "
        "method's own function, which is compiled once"
      )
    fixed = (getattr(function, "args", ()), getattr(function, "keywords", {}))
    key = (self.phase, bare.__qualname__, repr(fixed))
    if key not in self.compiled:

      def run(params, collections, memory, batch):
        nets = Nets(self.roles, params, collections, memory=memory)
        return dict(function(nets, batch))

      self.compiled[key] = jax.jit(run)
    return self.compiled[key]


def checked(before: Mapping[str, Tree], after: Mapping[str, Tree]) -> Tree:
  """What a host function left, in the types and places of what was there.

  Args:
    before: arrays by name.
    after: the same names, arrays or NumPy arrays.

  Returns:
    `after`, each array where the one before lies.

  Raises:
    ConfigError: if an entry was added, or a shape or type changed.
  """
  if set(after) != set(before):
    names = ", ".join(sorted(set(after) ^ set(before)))
    raise ConfigError(
      f"a host function added or removed {names}; expected entries that the "
      "method declares"
    )
  return jax.tree.map(_as_before, dict(before), dict(after))


def _as_before(old: jax.Array, new: Any) -> jax.Array:
  if new is old:
    return old
  new = jnp.array(new, old.dtype) if np.isscalar(new) else jnp.array(new)
  if new.shape != old.shape or new.dtype != old.dtype:
    raise ConfigError(
      f"a host function replaced {old.dtype} {old.shape} by {new.dtype} "
      f"{new.shape}; expected one shape and type"
    )
  return arrays.put(new, old.sharding)
