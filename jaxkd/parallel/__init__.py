"""Meshes and sharding rules."""

from jaxkd.parallel.mesh import FSDP, REPLICATED, Mesh, Placement, Rules, held

__all__ = ["FSDP", "REPLICATED", "Mesh", "Placement", "Rules", "held"]
