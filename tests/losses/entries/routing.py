"""Losses of a gate that chooses among teachers."""

import jax.numpy as jnp

from jaxkd import losses
from tests.losses.entries import Entry


def _teachers(teacher):
  return jnp.stack([teacher, jnp.roll(teacher, 1, axis=-1)], axis=1)


def _routed(student, teacher, where):
  del where
  chosen = jnp.zeros((len(student), 1), jnp.int32)
  return losses.routed_kl(student, _teachers(teacher), chosen)


def _mixture(student, teacher, where):
  del where
  gate = jnp.zeros((len(student), 2), student.dtype)
  return losses.mixture_kl(student, jnp.stack([teacher] * 2, axis=1), gate)


ENTRIES = {
  "load_balance_cv": Entry(
    call=lambda s, t, w: losses.load_balance_cv(s, where=w),
    best=jnp.zeros_like,
    batch_level=True,
    masks=True,
    absent=False,  # every teacher can be chosen: no gate logit is at -inf
  ),
  "load_balance_kl": Entry(
    call=lambda s, t, w: losses.load_balance_kl(s, where=w),
    best=jnp.zeros_like,
    batch_level=True,
    masks=True,
    absent=False,  # every teacher can be chosen: no gate logit is at -inf
  ),
  "mixture_kl": Entry(call=_mixture),
  "routed_kl": Entry(call=_routed),
  "top_k_teachers": Entry(
    call=lambda s, t, w: losses.top_k_teachers(s, 1)[:, 0],
    differentiable=False,
  ),
}
