"""Networks: pure `(init, apply)` pairs with taps and edits.

A `Network` runs a module of any library as a pure function of its variables
and of the batch entries that it names. Two things can be done to it from
outside, without touching the model:

* a **tap** reads the output of a submodule by its path (`"block2/fc1"`);
* an **edit** replaces the output of a submodule by a function of it. A tap on
  an edited path reads the edited output.

Paths are those of the module library: Linen submodule names, NNX attribute
paths, or the names given to `tap` inside a plain function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax
import jax
from flax import linen, nnx

from jaxkd.adapters import (
  NNX,
  Adapter,
  Edit,
  Linen,
  Probe,
  Pure,
  Variables,
  tap,
)
from jaxkd.errors import ConfigError, did_you_mean

__all__ = [
  "NNX",
  "Edit",
  "Linen",
  "Network",
  "Outputs",
  "Pure",
  "Weights",
  "tap",
]

Array = jax.Array
Batch = Mapping[str, Any]


@flax.struct.dataclass
class Outputs:
  """What a network returned.

  Attributes:
    value: the module's return value.
    taps: tapped submodule outputs by path.
  """

  value: Any
  taps: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def logits(self) -> Array:
    """The logits: `value`, or its `"logits"` entry if it is a mapping."""
    if isinstance(self.value, Mapping):
      if "logits" not in self.value:
        raise ConfigError(
          "the network returned no 'logits' but " + ", ".join(self.value)
        )
      return self.value["logits"]
    return self.value


class Weights(Protocol):
  """Variables that lie somewhere, see `jaxkd.teachers`."""

  def load(self, like: Variables) -> Variables:
    """Loads variables.

    Args:
      like: those of the network, as `jax.ShapeDtypeStruct`s by collection.

    Returns:
      All of them, or a part of them.
    """

  def fingerprint(self) -> str:
    """A digest of what is loaded."""


@dataclasses.dataclass(frozen=True)
class Network:
  """A module and the batch entries that it consumes, as pure functions.

  Attributes:
    module: a Linen module, or an adapter (`NNX`, `Pure`).
    inputs: names of the batch entries, in the order of the module's
      positional arguments.
    weights: where its variables are loaded from; those that are not there
      are drawn, as all are without.
  """

  module: Any
  inputs: tuple[str, ...] = ("image",)
  weights: Weights | None = None

  def __post_init__(self):
    """Checks the module and normalises the inputs."""
    object.__setattr__(self, "inputs", tuple(self.inputs))
    if isinstance(self.module, nnx.Module):
      raise ConfigError(
        f"{type(self.module).__name__} is an NNX module with its own "
        "parameters; give NNX(factory), which builds it from rngs"
      )
    if not isinstance(self.module, (linen.Module, Adapter)):
      raise ConfigError(
        f"module={self.module!r}: expected a Linen module, NNX(factory) or "
        "Pure(init_fn, apply_fn)"
      )

  @property
  def adapter(self) -> Adapter:
    """What runs the module."""
    if isinstance(self.module, linen.Module):
      return Linen(self.module)
    return self.module

  def _arguments(self, batch: Batch) -> list[Any]:
    for name in self.inputs:
      if name not in batch:
        raise ConfigError(
          f"the batch has no entry {name!r}"
          + did_you_mean(name, batch)
          + f" (has {', '.join(sorted(batch))}); it is an input of "
          + self.name
        )
    return [batch[name] for name in self.inputs]

  @property
  def name(self) -> str:
    """The name of the wrapped module's class."""
    module = self.module
    module = getattr(module, "factory", getattr(module, "apply_fn", module))
    return getattr(module, "__name__", type(module).__name__)

  def init(self, rng: Array, batch: Batch) -> Variables:
    """Draws fresh variables.

    Args:
      rng: a typed key.
      batch: arrays with a leading batch axis; only `inputs` are read.

    Returns:
      Variables by collection, `"params"` among them.

    Raises:
      ConfigError: if the batch lacks an input.
    """
    variables = self.adapter.init(rng, self._arguments(batch))
    return {"params": {}, **variables}

  def apply(
    self,
    variables: Variables,
    batch: Batch,
    *,
    train: bool = False,
    rngs: Mapping[str, Array] | None = None,
    taps: Sequence[str] = (),
    edits: Mapping[str, Edit] | None = None,
    method: str | None = None,
  ) -> tuple[Outputs, Variables]:
    """Runs the network.

    Args:
      variables: by collection, as `init` returns them.
      batch: arrays with a leading batch axis; only `inputs` are read.
      train: whether layers behave as in training (batch statistics,
        dropout).
      rngs: keys of random layers by name.
      taps: submodule paths whose outputs are returned.
      edits: functions put on submodule outputs, by path.
      method: runs this named method of the module in place of `__call__`.

    Returns:
      The outputs, and the collections that the pass changed (none in eval
      mode).

    Raises:
      ConfigError: for a missing batch entry or a path that does not exist.
    """
    probe = Probe(taps, edits or {})
    value, changed = self.adapter.apply(
      variables,
      self._arguments(batch),
      train=train,
      rngs=rngs or {},
      probe=probe,
      method=method,
    )
    probe.check()
    return Outputs(value=value, taps=probe.outputs()), changed

  def paths(self, batch: Batch) -> dict[str, Any]:
    """Returns every tap path with the shape of its output; runs nothing."""
    probe = Probe((), {})

    def trace(rng, arguments):
      variables = {"params": {}, **self.adapter.init(rng, arguments)}
      return self.adapter.apply(
        variables,
        arguments,
        train=False,
        rngs={},
        probe=probe,
        method=None,
      )[0]

    jax.eval_shape(trace, jax.random.key(0), self._arguments(batch))
    return dict(probe.seen)
