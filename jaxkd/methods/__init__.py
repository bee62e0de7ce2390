"""Methods: one paper a file, named after the paper."""

from jaxkd.methods.distill import Distill
from jaxkd.methods.kd import KD
from jaxkd.methods.mst_distill import MSTDistill
from jaxkd.methods.supervised import Supervised

__all__ = ["KD", "Distill", "MSTDistill", "Supervised"]
