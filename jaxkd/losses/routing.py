"""Losses of a gate that chooses among several teachers.

Notation: W teachers, P = softmax(gate logits) of shape [B, W], k choices per
example. Routing is per example: two examples of one batch may learn from
different teachers.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from jaxkd.losses import checks
from jaxkd.losses.relative_entropy import kl

Array = jax.Array


def _check(student: Array, teachers: Array) -> None:
  if teachers.shape[:1] + teachers.shape[2:] != student.shape:
    raise ValueError(
      f"teacher logits {teachers.shape} must have the shape of the student "
      f"logits {student.shape} with an axis of teachers after the first"
    )


def routed_kl(
  student: Array,
  teachers: Array,
  chosen: Array,
  *,
  temperature: float = 1.0,
  weights: Array | None = None,
) -> Array:
  """Mean KL of the student to the teachers chosen for each example.

    (T^2 / k) sum_r KL(softmax(t_{i_r} / T) || softmax(s / T))

  Dense logits are averaged over their positions.

  Args:
    student: logits, [B, ..., C].
    teachers: logits of all teachers, [B, W, ..., C].
    chosen: integers in 0..W-1, [B, k], e.g. from `top_k_teachers`.
    temperature: T, above 0.
    weights: [B, k], factors of the chosen teachers' terms; 1 if not given.

  Returns:
    [B], nats times T^2.

  Raises:
    ValueError: if k exceeds W, or the shapes do not fit.

  Needs: logits of all teachers, choices; access white; per example.
  Checked: property tests only.
  Reference: MST-Distill, https://arxiv.org/abs/2507.07015, stage 3.
  """
  _check(student, teachers)
  ways, k = teachers.shape[1], chosen.shape[1]
  if k > ways:
    raise ValueError(f"k={k} teachers chosen, but there are only {ways}")
  index = chosen.reshape(chosen.shape + (1,) * (teachers.ndim - 2))
  picked = jnp.take_along_axis(teachers, index, axis=1)  # [B, k, ..., C]
  values = kl(
    jnp.broadcast_to(student[:, None], picked.shape),
    picked,
    temperature=temperature,
  )
  values = values.reshape(*chosen.shape, -1).mean(-1)  # [B, k]
  return jnp.mean(values if weights is None else weights * values, axis=1)


def top_k_teachers(gate_logits: Array, k: int) -> Array:
  """The k most probable teachers of each example, best first.

  Args:
    gate_logits: [B, W].
    k: 1..W.

  Returns:
    int32 [B, k].

  Raises:
    ValueError: if k is not in 1..W.

  Reference: MST-Distill, https://arxiv.org/abs/2507.07015, stage 3.
  """
  ways = gate_logits.shape[-1]
  if not 1 <= k <= ways:
    raise ValueError(f"k={k}: expected 1 to {ways}, the number of teachers")
  return jax.lax.top_k(gate_logits, k)[1]


def mixture_kl(
  student: Array,
  teachers: Array,
  gate_logits: Array,
  *,
  temperature: float = 1.0,
) -> Array:
  """KL of the student to the gate-weighted mean of the teachers' logits.

    T^2 KL(softmax(sum_w P_w t_w / T) || softmax(s / T))

  Args:
    student: logits, [B, ..., C].
    teachers: logits, [B, W, ..., C].
    gate_logits: [B, W].
    temperature: T, above 0.

  Returns:
    [B], nats times T^2, averaged over dense positions.

  Raises:
    ValueError: if the teachers' shape does not fit the student's.

  Needs: logits of all teachers, gate logits; access white; per example.
  Checked: property tests only.
  Reference: MST-Distill, https://arxiv.org/abs/2507.07015, stage 3.
  """
  _check(student, teachers)
  weights = jax.nn.softmax(gate_logits.astype(jnp.float32), axis=-1)
  mixed = jnp.einsum("bw,bw...->b...", weights, teachers.astype(jnp.float32))
  values = kl(student, mixed, temperature=temperature)
  return jnp.mean(values.reshape(len(values), -1), axis=1)


def _log_shares(loss: str, gate_logits: Array, where: Array | None) -> Array:
  """Logarithm of the mean choice m, [W]; uniform if no example counts."""
  checks.where(loss, where, gate_logits.shape[:-1])
  keep = jnp.ones(len(gate_logits)) if where is None else where
  keep = keep.astype(jnp.float32)[:, None]
  gate_logits = jnp.where(keep > 0, gate_logits.astype(jnp.float32), 0.0)
  keep = jnp.where(jnp.sum(keep) > 0, keep, 1.0)
  log_p = jax.nn.log_softmax(gate_logits, axis=-1)
  return logsumexp(log_p, axis=0, b=keep) - jnp.log(jnp.sum(keep))


def load_balance_kl(gate_logits: Array, *, where: Array | None = None) -> Array:
  """Divergence of the uniform choice U to the mean choice of a gate.

    KL(U || m), m = mean_b P_b

  The released MST-Distill code has an extra factor 1/W.

  Args:
    gate_logits: [B, W].
    where: [B], examples that count.

  Returns:
    Scalar, nats.

  Needs: gate logits; access text; batch level.
  Checked: property tests only.
  Reference: MST-Distill, https://arxiv.org/abs/2507.07015, stage 3.
  """
  log_m = _log_shares("load_balance_kl", gate_logits, where)
  return -jnp.mean(log_m) - jnp.log(gate_logits.shape[-1])


def load_balance_cv(gate_logits: Array, *, where: Array | None = None) -> Array:
  """Coefficient of variation of the teachers' total gate probabilities.

    std(s) / mean(s), s = sum_b P_b

  The standard deviation is the unbiased one.

  Args:
    gate_logits: [B, W].
    where: [B], examples that count.

  Returns:
    Scalar, without unit.

  Needs: gate logits; access text; batch level.
  Checked: property tests only.
  Reference: MST-Distill, https://arxiv.org/abs/2507.07015, stage 3.
  """
  share = jnp.exp(_log_shares("load_balance_cv", gate_logits, where))
  mean = jnp.mean(share)
  variance = jnp.sum((share - mean) ** 2) / max(len(share) - 1, 1)
  # The square root has no gradient at 0, where all shares are equal.
  spread = variance > 0
  return jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1.0)), 0) / mean
