"""Losses: arrays in, loss out; no parameters, no state, no config.

Student first, teacher second, everything else by keyword. Values are per
example unless a docstring says batch-level.
"""

from jaxkd.losses.divergence import kl
from jaxkd.losses.logits import cross_entropy
from jaxkd.losses.routing import (
  load_balance_cv,
  load_balance_kl,
  mixture_kl,
  routed_kl,
  top_k_teachers,
)

__all__ = [
  "cross_entropy",
  "kl",
  "load_balance_cv",
  "load_balance_kl",
  "mixture_kl",
  "routed_kl",
  "top_k_teachers",
]
