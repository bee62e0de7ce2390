"""StableHLO: the graph with its variables in one file, read by JAX alone.

The batch size is symbolic, nothing is donated, one device is enough, and the
file holds the program for CPU, CUDA and TPU where all of it exists there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export as jax_export

from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.export.parity import Function
from jaxkd.export.trained import Trained

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
USE = """\
JAX and `flatbuffers` are all it takes; the batch size is free.

```python
from jax import export

with open("model.stablehlo", "rb") as file:
  exported = export.deserialize(file.read())
value = exported.call(batch)  # the inputs by name
```"""
LARGEST = 2**31 - 2**24  # bytes; a flatbuffer counts with 31 bits


def write(trained: Trained, folder: Path) -> dict[str, Any]:
  """Writes the graph.

  Args:
    trained: what is exported.
    folder: where to.

  Returns:
    Facts for export.json: the platforms.

  Raises:
    ConfigError: the variables are too large for one file, or the graph
      depends on the batch size in a way that cannot be written down.
  """
  if trained.size > LARGEST:
    raise ConfigError(
      f"{trained.role} has {trained.size:,} bytes of variables, and a file of "
      f"StableHLO holds {LARGEST:,}; export it as safetensors or orbax"
    )
  function = jax.jit(lambda batch: trained.apply(trained.variables, batch))
  lowered = lower(function, trained)
  (folder / FILE).write_bytes(lowered.serialize())
  return {"platforms": list(lowered.platforms)}


def lower(function: Any, trained: Trained, *before: Any) -> jax_export.Exported:
  """Lowers a jitted function for a batch of any size.

  Args:
    function: `(*before, batch) -> value`.
    trained: says what a batch holds.
    *before: shapes of further arguments.
  """
  (size,) = jax_export.symbolic_shape("batch")
  batch = {
    name: jax.ShapeDtypeStruct((size, *values.shape[1:]), values.dtype)
    for name, values in trained.examples.items()
  }
  try:
    platforms = _allowed(function, before, batch)
    return jax_export.export(function, platforms=platforms)(*before, batch)
  except ConfigError:
    raise
  except Exception as error:
    raise ConfigError(
      f"{trained.role} cannot be exported for any batch size: {error}"
    ) from error


def _allowed(
  function: Any, before: tuple[Any, ...], batch: Mapping[str, Any]
) -> tuple[str, ...]:
  """The platforms on which all of a function exists; this one if not all."""
  try:
    jax_export.export(function, platforms=PLATFORMS)(*before, batch)
  except NotImplementedError:
    return (jax.default_backend(),)
  return PLATFORMS


def read(folder: Path) -> Function:
  """Returns the function of a batch that a folder holds.

  Raises:
    RefusedInput: the file is absent or damaged.
  """
  path = folder / FILE
  return jax.jit(deserialized(path).call)


def deserialized(path: Path) -> jax_export.Exported:
  """Reads what `Exported.serialize` wrote.

  Raises:
    RefusedInput: the file is absent or damaged.
  """
  try:
    return jax_export.deserialize(bytearray(path.read_bytes()))
  except Exception as error:
    raise RefusedInput(f"{path} cannot be read: {error!r}") from error
