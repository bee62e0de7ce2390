"""Divergences of probabilities and of their powers.

Notation as in `divergence`: p is the teacher, q the student, T the
temperature.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.divergence import Divergence, exp

Array = jax.Array
SATURATION = 80.0  # exponents stop here, below overflow


@dataclasses.dataclass(frozen=True)
class TotalVariation(Divergence):
  """Total variation distance, between 0 and 1 (times T^2).

    T^2 (1/2) sum_c |p_c - q_c|

  Needs: logits; access topk; per example.
  Checked: Fantasyele/LLaVA-KD@aad2802; MANGA-UOFA/fdistill@8e2ff7c;
    SakanaAI/TAID@a062892; jongwooko/distillm@d47e77f.
  Reference: Wen et al., https://arxiv.org/abs/2307.15190, Sec. 3.
  """

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """Half of the absolute differences."""
    del context
    return (0.5 * jnp.abs(exp(log_p) - exp(log_q)),)


@dataclasses.dataclass(frozen=True)
class AlphaDivergence(Divergence):
  """Alpha divergence (Amari's family in Cichocki's form).

    T^2 [sum_c p_c^alpha q_c^(1 - alpha) - 1] / (alpha (alpha - 1))

  Tends to KL(p || q) as alpha -> 1 and to KL(q || p) as alpha -> 0; 1/2 is four
  times the squared Hellinger distance, 2 half of Pearson's chi-square. Outside
  of 0 to 1 a class's term saturates at e^80.

  Needs: logits; access topk; per example.
  Checked: property tests only.
  Reference: Cichocki and Amari, Entropy 12 (2010), Eq. 4.
  """

  alpha: float = 0.5

  def __post_init__(self):
    """Checks alpha."""
    _not_zero_or_one(self)

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """Bregman terms, each at least 0; the linear part sums to nothing."""
    del context
    return (_power_terms(log_p, log_q, self.alpha),)


@dataclasses.dataclass(frozen=True)
class RenyiDivergence(Divergence):
  """Renyi divergence of order alpha.

    T^2 log(sum_c p_c^alpha q_c^(1 - alpha)) / (alpha - 1)

  Tends to KL(p || q) as alpha -> 1. The sum saturates at e^-80 from below, and
  each of its terms at e^80 from above.

  Needs: logits; access topk; per example.
  Checked: property tests only.
  Reference: van Erven and Harremoes, https://arxiv.org/abs/1206.2459, Eq. 8.
  """

  alpha: float = 0.5  # above 0, not 1

  def __post_init__(self):
    """Checks alpha."""
    _not_zero_or_one(self)
    checks.positive(self.name, "alpha", self.alpha)

  def terms(
    self, log_p: Array, log_q: Array, context: Any
  ) -> tuple[Array, ...]:
    """Terms of the alpha divergence, and of the sum itself."""
    del context
    a = self.alpha
    return _power_terms(log_p, log_q, a), _powers(log_p, log_q, a)

  def value(self, *sums: Array) -> Array:
    """The logarithm of the sum, which is 1 + `excess`, by what is exact."""
    divergence, power = sums
    excess = self.alpha * (self.alpha - 1) * divergence
    near = jnp.abs(excess) < 0.5
    small = jnp.log1p(jnp.where(near, excess, 0.0))
    far = jnp.where(near, 1.0, jnp.maximum(power, math.exp(-SATURATION)))
    return jnp.where(near, small, jnp.log(far)) / (self.alpha - 1)


def _not_zero_or_one(divergence: Divergence) -> None:
  if divergence.alpha in (0, 1):
    raise ValueError(
      f"{divergence.name}: alpha={divergence.alpha}; expected another value "
      "(the limits are KL at 1 and ReverseKL at 0)"
    )


def _powers(log_p: Array, log_q: Array, alpha: float) -> Array:
  """p^a q^(1-a), saturated; 0 where p is, and infinite where only q is 0."""
  in_p, in_q = log_p > -jnp.inf, log_q > -jnp.inf
  both = in_p & in_q
  log_p, log_q = jnp.where(both, log_p, 0.0), jnp.where(both, log_q, 0.0)
  power = jnp.exp(jnp.minimum(alpha * log_p + (1 - alpha) * log_q, SATURATION))
  lone = jnp.where(in_p & (exp(log_p) > 0) & (alpha > 1), jnp.inf, 0.0)
  return jnp.where(both, power, lone)


def _power_terms(log_p: Array, log_q: Array, alpha: float) -> Array:
  """(p^a q^(1-a) - a p - (1 - a) q) / (a (a - 1)), each at least 0."""
  in_p, in_q = log_p > -jnp.inf, log_q > -jnp.inf
  p, q = exp(log_p), exp(log_q)
  both = in_p & in_q
  ratio = jnp.where(both, log_p, 0.0) - jnp.where(both, log_q, 0.0)
  near = jnp.abs(ratio) < 0.5
  close = jnp.where(near, ratio, 0.0)
  # q times [e^(a r) - 1 - a (e^r - 1)], which cancels less.
  small = q * (jnp.expm1(alpha * close) - alpha * jnp.expm1(close))
  log_q, far = jnp.where(both, log_q, 0.0), jnp.where(near, 0.0, ratio)
  power = jnp.exp(jnp.minimum(alpha * far + log_q, SATURATION))
  large = power - alpha * p - (1 - alpha) * q
  terms = jnp.where(near, small, large) / (alpha * (alpha - 1))
  # Where only one has mass: p / (1 - a) or q / a, or no finite value.
  p, q = jnp.where(both, 0.0, p), jnp.where(both, 0.0, q)
  lone_p = p / (1 - alpha) if alpha < 1 else jnp.where(p > 0, jnp.inf, 0.0)
  lone_q = q / alpha if alpha > 0 else jnp.where(q > 0, jnp.inf, 0.0)
  return jnp.where(both, terms, lone_p + lone_q)
