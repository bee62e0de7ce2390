"""Whether what was exported computes what was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.errors import RefusedInput

Tree = Any
Function = Callable[[Mapping[str, Any]], Tree]
FILE = "parity.npz"
TOLERANCE = 1e-5  # relative to the scale of the outputs
BATCHES = (1, 7)  # beside all examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """How far values lie from those expected.

  Attributes:
    absolute: the largest absolute difference; nan if one side is not finite
      where the other is.
    relative: the largest, over arrays, of the absolute difference over the
      largest absolute value expected.
  """

  absolute: float
  relative: float

  def within(self, tolerance: float) -> bool:
    """Whether the relative difference is at most this."""
    return self.relative <= tolerance


@dataclasses.dataclass(frozen=True)
class Parity:
  """Inputs, and what the trained graph makes of them.

  Attributes:
    inputs: batch entries, [N, ...].
    outputs: arrays [N, ...] by name.
    tolerance: the relative difference that is allowed: 1e-5, or the precision
      of the outputs if that is less.
  """

  inputs: Mapping[str, np.ndarray]
  outputs: Mapping[str, np.ndarray]
  tolerance: float = TOLERANCE

  @classmethod
  def of(cls, function: Function, inputs: Mapping[str, np.ndarray]) -> Parity:
    """What a function makes of inputs."""
    value = function(inputs)
    floats = [
      leaf.dtype
      for leaf in jax.tree.leaves(value)
      if jax.numpy.issubdtype(leaf.dtype, np.floating)
    ]
    coarsest = max((float(jax.numpy.finfo(d).eps) for d in floats), default=0.0)
    return cls(inputs, named(value), max(TOLERANCE, coarsest))

  def __len__(self) -> int:
    """Returns the number of examples N."""
    return len(next(iter(self.inputs.values())))

  def difference(self, function: Function, batch: int) -> Difference:
    """How far a function's values lie from the outputs.

    Args:
      function: of a batch.
      batch: examples at once; the last batch begins again with the first.

    Raises:
      RefusedInput: the outputs' names or shapes differ.
    """
    rows = np.arange(-(-len(self) // batch) * batch) % len(self)
    parts = [
      named(function({name: x[part] for name, x in self.inputs.items()}))
      for part in rows.reshape(-1, batch)
    ]
    if any(part.keys() != self.outputs.keys() for part in parts):
      raise RefusedInput(
        f"the export gives {', '.join(parts[0])}; expected "
        + ", ".join(self.outputs)
      )
    return _worst(
      (np.concatenate([part[name] for part in parts])[: len(self)], expected)
      for name, expected in self.outputs.items()
    )

  def save(self, folder: Path) -> None:
    """Writes the arrays to `parity.npz`."""
    arrays = {f"input:{name}": x for name, x in self.inputs.items()}
    arrays |= {f"output:{name}": x for name, x in self.outputs.items()}
    np.savez(folder / FILE, **arrays)

  @classmethod
  def read(cls, folder: Path, tolerance: float) -> Parity:
    """Reads `parity.npz`.

    Raises:
      RefusedInput: it is not there or is damaged.
    """
    path = folder / FILE
    parts: dict[str, dict[str, np.ndarray]] = {"input": {}, "output": {}}
    try:
      with np.load(path, allow_pickle=False) as arrays:
        for full in arrays.files:
          side, _, name = full.partition(":")
          parts[side][name] = arrays[full]
    except Exception as error:
      raise RefusedInput(f"{path} cannot be read: {error}") from error
    if not parts["input"] or not parts["output"]:
      raise RefusedInput(f"{path} is damaged: it lacks inputs or outputs")
    return cls(parts["input"], parts["output"], tolerance)


def named(value: Tree) -> dict[str, np.ndarray]:
  """The arrays of a value by path, a lone one as `value`, floats as float32."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(value))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/") or "value": (
      leaf.astype(np.float32)
      if jax.numpy.issubdtype(leaf.dtype, np.floating)
      else leaf
    )
    for path, leaf in leaves
  }


def _worst(pairs: Any) -> Difference:
  absolute = relative = 0.0
  for found, expected in pairs:
    if found.shape != expected.shape:
      raise RefusedInput(
        f"the export gives {found.shape}; expected {expected.shape}"
      )
    if not expected.size:
      continue
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
      gap = np.where(found == expected, 0.0, np.abs(found - expected)).max()
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(finite.max(initial=0.0), np.finfo(np.float32).tiny)
    absolute = np.maximum(absolute, gap)  # keeps nan
    relative = np.maximum(relative, gap / scale)
  return Difference(absolute=float(absolute), relative=float(relative))
