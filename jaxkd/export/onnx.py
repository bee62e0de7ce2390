"""ONNX, by jax2onnx, which has no part in the library's own installation.

Its newer releases ask for an older orbax than jaxkd does. In an environment
of its own, the extra `onnx` lets pip choose a release that does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import extras
from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.export.parity import Function, named
from jaxkd.export.trained import Trained

FILE = "model.onnx"
USE = """\
The batch size is free.

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
value = session.run(None, batch)  # the inputs by name
```"""
_WHAT = "--format onnx"


def write(trained: Trained, folder: Path) -> dict[str, Any]:
  """Writes the graph with its variables.

  Args:
    trained: what is exported.
    folder: where to.

  Returns:
    Facts for export.json: none.

  Raises:
    MissingExtra: jax2onnx is not installed.
    ConfigError: it cannot convert the graph.
  """
  jax2onnx = extras.need("jax2onnx", extra="onnx", what=_WHAT)
  extras.need("onnxruntime", extra="onnx", what=_WHAT)  # for the check
  entries = list(trained.examples)
  value = trained.apply(trained.variables, trained.examples)

  def function(*arrays):
    batch = dict(zip(entries, arrays, strict=True))
    return jax.tree.leaves(trained.apply(trained.variables, batch))

  try:
    jax2onnx.to_onnx(
      function,
      [
        jax.ShapeDtypeStruct(("batch", *x.shape[1:]), x.dtype)
        for x in trained.examples.values()
      ],
      input_names=entries,
      output_names=list(named(value)),
      return_mode="file",
      output_path=str(folder / FILE),
    )
  except Exception as error:
    raise ConfigError(
      f"jax2onnx cannot convert {trained.role}: {error}; --format stablehlo "
      "needs no conversion"
    ) from error
  return {}


def read(folder: Path) -> Function:
  """Returns the function of a batch that a folder holds.

  Raises:
    MissingExtra: onnxruntime is not installed.
    RefusedInput: the file is absent or damaged.
  """
  runtime = extras.need("onnxruntime", extra="onnx", what="running ONNX")
  path = folder / FILE
  try:
    session = runtime.InferenceSession(
      str(path), providers=["CPUExecutionProvider"]
    )
  except Exception as error:
    raise RefusedInput(f"{path} cannot be read: {error}") from error
  names = [output.name for output in session.get_outputs()]
  kept = {given.name for given in session.get_inputs()}

  def run(batch):
    fed = {name: np.asarray(x) for name, x in batch.items() if name in kept}
    return dict(zip(names, session.run(None, fed), strict=True))

  return run
