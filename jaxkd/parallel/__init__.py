"""Meshes and sharding rules."""

from jaxkd.parallel.mesh import FSDP
from jaxkd.parallel.mesh import REPLICATED
from jaxkd.parallel.mesh import Mesh
from jaxkd.parallel.mesh import Placement

__all__ = ["FSDP", "REPLICATED", "Mesh", "Placement"]
