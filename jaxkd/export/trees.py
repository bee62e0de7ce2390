"""Orbax: the variables alone, for other programs in JAX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.errors import StorageError
from jaxkd.export.trained import Trained

FOLDER = "variables"
USE = """\
`variables` is the tree of variables, by collection.

```python
import orbax.checkpoint as ocp

variables = ocp.StandardCheckpointer().restore("/absolute/path/to/variables")
```"""


def write(trained: Trained, folder: Path) -> dict[str, Any]:
  """Writes the tree of variables and reads it back.

  Args:
    trained: a network.
    folder: where to; absolute.

  Returns:
    Facts for export.json: none.

  Raises:
    StorageError: what was read is not what was written.
  """
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / FOLDER, trained.variables)
    checkpointer.wait_until_finished()
    found = checkpointer.restore(folder / FOLDER, trained.variables)
  same = jax.tree.map(
    lambda a, b: a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True),
    trained.variables,
    found,
  )
  if not all(jax.tree.leaves(same)):
    raise StorageError(f"{folder / FOLDER} does not hold what was written")
  return {}
