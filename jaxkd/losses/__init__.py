"""Losses: arrays in, loss out; no parameters, no state, no config.

Student first, teacher second, everything else by keyword. Values are per
example unless a docstring says batch-level.
"""

from jaxkd.losses.divergence import kl
from jaxkd.losses.logits import cross_entropy
from jaxkd.losses.routing import load_balance_cv
from jaxkd.losses.routing import load_balance_kl
from jaxkd.losses.routing import mixture_kl
from jaxkd.losses.routing import routed_kl
from jaxkd.losses.routing import top_k_teachers

__all__ = [
  "cross_entropy",
  "kl",
  "load_balance_cv",
  "load_balance_kl",
  "mixture_kl",
  "routed_kl",
  "top_k_teachers",
]
