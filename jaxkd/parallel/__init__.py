"""Meshes, rules that place roles on them, frozen roles, and processes."""

from jaxkd.parallel.frozen import Frozen
from jaxkd.parallel.mesh import Mesh, Placement, held
from jaxkd.parallel.rules import (
  FSDPRules,
  MLPRules,
  ReplicatedRules,
  Rules,
  TransformerRules,
)

__all__ = [
  "FSDPRules",
  "Frozen",
  "MLPRules",
  "Mesh",
  "Placement",
  "ReplicatedRules",
  "Rules",
  "TransformerRules",
  "held",
]
