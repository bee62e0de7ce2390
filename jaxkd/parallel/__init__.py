"""Meshes, sharding rules, and the processes of a run."""

from jaxkd.parallel.mesh import FSDP, REPLICATED, Mesh, Placement, Rules, held

__all__ = ["FSDP", "REPLICATED", "Mesh", "Placement", "Rules", "held"]
