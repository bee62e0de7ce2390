"""jaxkd: knowledge distillation research in JAX and Flax.

Public names load on first use, so that `import jaxkd` is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = (
  "data",
  "errors",
  "evaluation",
  "export",
  "identity",
  "losses",
  "method",
  "methods",
  "nets",
  "network",
  "parallel",
  "report",
  "training",
)
_NAMES = {
  "Experiment": "jaxkd.experiment",
  "Loss": "jaxkd.method",
  "Method": "jaxkd.method",
  "Network": "jaxkd.network",
  "Phase": "jaxkd.method",
  "Settings": "jaxkd.training.phase",
  "Update": "jaxkd.method",
  "fit": "jaxkd.experiment",
  "study": "jaxkd.studies",
}

__all__ = [*_ROOMS, *_NAMES]


def __getattr__(name: str) -> Any:
  """Loads a public name on first use."""
  if name in _ROOMS:
    return importlib.import_module(f"jaxkd.{name}")
  if name in _NAMES:
    return getattr(importlib.import_module(_NAMES[name]), name)
  raise AttributeError(f"module 'jaxkd' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
