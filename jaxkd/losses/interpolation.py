"""Targets between the student and the teacher.

Notation: z_S and z_T are the logits of student and teacher, t the teacher's
share of the target, q = softmax(z_S).
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxkd.losses import checks
from jaxkd.losses.divergence import exp
from jaxkd.losses.relative_entropy import kl
from jaxkd.losses.softmax import at_least_float32, log_probabilities

Array = jax.Array


def intermediate_logits(
  student: Array, teacher: Array, *, teacher_share: float | Array
) -> Array:
  """Logits between the student and the teacher.

    (1 - t) stop_gradient(z_S) + t z_T

  The interpolation is of logits, not of probabilities. The student's part is a
  constant: it is a target. A class that a network with a share above 0 has at
  -inf is at -inf.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    teacher_share: t, 0 to 1; a number or an array that broadcasts against the
      logits.

  Returns:
    [..., C], float32 at least.

  Raises:
    ValueError: if the shapes differ or t is out of range.

  Reference: Shing et al. (TAID), https://arxiv.org/abs/2501.16937, Eq. 3.
  """
  checks.logits("intermediate_logits", student, teacher)
  checks.between("intermediate_logits", "teacher_share", teacher_share, 0, 1)
  student = at_least_float32(stop_gradient(student))
  teacher = at_least_float32(teacher)
  return _share(1 - teacher_share, student) + _share(teacher_share, teacher)


def taid(
  student: Array,
  teacher: Array,
  *,
  teacher_share: float | Array,
  where: Array | None = None,
  subtract_entropy: bool = True,
) -> Array:
  """KL divergence to a target between the student and the teacher (TAID).

    KL(p_t || q), p_t = softmax((1 - t) stop_gradient(z_S) + t z_T)

  The gradient with respect to the student's logits is q - p_t: nothing at
  t = 0, that of KL(p || q) at t = 1. The temperature is 1.

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C].
    teacher_share: t, 0 to 1.
    where: [...], entries that are not true give 0 and pass no gradient.
    subtract_entropy: False leaves the entropy of p_t in, the cross entropy
      -sum_c p_t log q: what the released code returns and what its schedule of
      t follows. The student's gradient is the same.

  Returns:
    [...], nats.

  Raises:
    ValueError: if the shapes differ or t is out of range.

  Needs: logits; access white; per example.
  Checked: SakanaAI/TAID@a062892.
  Reference: Shing et al. (TAID), https://arxiv.org/abs/2501.16937, Eq. 4.
  """
  checks.logits("taid", student, teacher)
  student = checks.masked("taid", student, where)
  teacher = checks.masked("taid", teacher, where)
  target = intermediate_logits(student, teacher, teacher_share=teacher_share)
  values = kl(student, target, where=where)
  if subtract_entropy:
    return values
  values = values + _entropy(target)
  return values if where is None else jnp.where(where.astype(bool), values, 0)


def _share(share: float | Array, logits: Array) -> Array:
  """Share times logits, with 0 times -inf = 0."""
  absent = jnp.isneginf(logits)
  scaled = share * jnp.where(absent, 0.0, logits)
  return jnp.where(absent & (jnp.asarray(share) > 0), -jnp.inf, scaled)


def _entropy(logits: Array) -> Array:
  """-sum_c p_c log p_c, with 0 log 0 = 0."""
  log_p = log_probabilities(logits)
  inside = jnp.where(log_p > -jnp.inf, log_p, 0.0)
  return -jnp.sum(exp(log_p) * inside, axis=-1)
