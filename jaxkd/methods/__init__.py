"""Methods: one paper a file, named after the paper."""

from jaxkd.methods.boot import BOOT
from jaxkd.methods.dho import DHO
from jaxkd.methods.distill import Distill
from jaxkd.methods.kd import KD
from jaxkd.methods.m2mkd import M2mKD
from jaxkd.methods.mmanet import MMANet
from jaxkd.methods.mst_distill import MSTDistill
from jaxkd.methods.pcoreset import PCoreSet
from jaxkd.methods.repblend import RepBlend
from jaxkd.methods.supervised import Supervised
from jaxkd.methods.taid import TAID
from jaxkd.methods.tgeo_kd import TGeoKD

__all__ = [
  "BOOT",
  "DHO",
  "KD",
  "TAID",
  "Distill",
  "M2mKD",
  "MMANet",
  "MSTDistill",
  "PCoreSet",
  "RepBlend",
  "Supervised",
  "TGeoKD",
]
