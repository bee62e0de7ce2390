"""Whether an export still gives what it gave, and how fast."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from jaxkd.errors import ConfigError, RefusedInput, StorageError
from jaxkd.export.exporting import FACTS, FORMATS, VERSION
from jaxkd.export.parity import Function, Parity
from jaxkd.training import files


def serve_check(
  exported: str | os.PathLike,
  *,
  batch: int | None = None,
  repetitions: int = 20,
) -> dict[str, Any]:
  """Runs an export on the inputs beside it.

  Args:
    exported: the folder.
    batch: examples at once; as many as there are if not given.
    repetitions: of the timed run.

  Returns:
    Plain JSON: `latency_ms`, the median; `first_ms`, with compilation;
    `difference` and `relative`, to what the trained network gave; `agrees`,
    None where that was on another platform.

  Raises:
    ConfigError: a number is below 1.
    RefusedInput: the folder is no export that can be run, or is damaged.
  """
  for name, number in (("batch", batch), ("repetitions", repetitions)):
    if number is not None and number < 1:
      raise ConfigError(f"--{name} {number}: expected at least 1")
  folder = Path(exported)
  facts = _read(folder)
  known = facts["difference"]
  parity = Parity.read(folder, known["tolerance"])
  function = FORMATS[facts["format"]].read(folder)
  batch = batch or len(parity)
  try:
    seconds = _times(function, parity, batch, repetitions)
    found = parity.difference(function, batch)
  except (TypeError, ValueError, RuntimeError) as error:
    raise RefusedInput(f"{folder} cannot be run: {error}") from error
  platform = jax.default_backend()
  latency = median(seconds[1:])
  return {
    "format": facts["format"],
    "role": facts["role"],
    "platform": platform,
    "batch": batch,
    "repetitions": repetitions,
    "latency_ms": _milliseconds(latency),
    "first_ms": _milliseconds(seconds[0]),
    "examples_per_second": round(batch / latency, 1),
    "difference": _finite(found.absolute),
    "relative": _finite(found.relative),
    "tolerance": parity.tolerance,
    "agrees": (
      found.within(parity.tolerance) if platform == known["platform"] else None
    ),
  }


def _read(folder: Path) -> dict[str, Any]:
  """The content of export.json, if it is of an export that can be run."""
  path = folder / FACTS
  if not path.is_file():
    raise RefusedInput(f"{folder} is no export: it has no {FACTS}")
  try:
    facts = files.read_json(path)
    version, format, known = (
      facts[name] for name in ("version", "format", "difference")
    )
    if known is not None:
      float(known["tolerance"]), str(known["platform"]), str(facts["role"])
  except (StorageError, KeyError, TypeError, ValueError) as error:
    raise RefusedInput(f"{path} is damaged: {error!r}") from error
  if version != VERSION:
    raise RefusedInput(
      f"{path} has version {version!r}, this jaxkd reads {VERSION}"
    )
  if format not in FORMATS or known is None:
    runnable = ", ".join(n for n in FORMATS if n != "orbax")
    raise RefusedInput(
      f"{folder} is of the format {format!r}, which holds nothing to run; "
      f"expected one of {runnable}"
    )
  return facts


def _times(
  function: Function, parity: Parity, batch: int, repetitions: int
) -> list[float]:
  """Seconds of the first run and of the repetitions."""
  rows = np.arange(batch) % len(parity)
  given: Mapping[str, Any] = jax.device_put(
    {name: x[rows] for name, x in parity.inputs.items()}
  )
  seconds = []
  for _ in range(1 + repetitions):
    began = time.perf_counter()
    jax.block_until_ready(function(given))
    seconds.append(time.perf_counter() - began)
  return seconds


def _milliseconds(seconds: float) -> float:
  return round(1000 * seconds, 4)


def _finite(value: float) -> float | None:
  """A number that JSON can hold."""
  return value if math.isfinite(value) else None
