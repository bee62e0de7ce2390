"""Targets between the student and the teacher.

Notation: z_S and z_T are the logits of student and teacher, t the teacher's
share of the target, q = softmax(z_S).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct
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


@struct.dataclass
class TeacherShare:
  """How far a target has gone to the teacher: scalars, kept between steps.

  Attributes:
    share: t, float32.
    momentum: m, of the relative fall of the loss, float32.
    previous_loss: of the step before, float32; not read before the first.
    ready: whether there was a step, bool.
  """

  share: Array
  momentum: Array
  previous_loss: Array
  ready: Array

  @classmethod
  def create(cls, start: float) -> TeacherShare:
    """The state before the first step, at a share from 0 to 1.

    Raises:
      ValueError: if the share is out of range.
    """
    checks.between("TeacherShare", "start", start, 0, 1)
    zero = jnp.zeros((), jnp.float32)
    share = jnp.asarray(start, jnp.float32)
    return cls(share, zero, zero, jnp.zeros((), bool))


def advance_share(
  state: TeacherShare,
  loss: Array,
  *,
  progress: float | Array,
  start: float,
  end: float = 1.0,
  rate: float = 5e-4,
  decay: float = 0.99,
  adaptive: bool = True,
) -> TeacherShare:
  """The teacher's share after a step: linear, or ahead of it by the loss.

    m <- decay m + (1 - decay) (previous - loss) / previous
    t <- min(end, max(linear, t + rate sigmoid(m) (1 - t)))
    linear = start + (end - start) progress

  The first step only keeps its loss. A step is made with the share before it.

  Args:
    state: before the step.
    loss: of the step, a scalar, the mean over everything that the step read;
      above 0. It passes no gradient.
    progress: the part of all steps that is finished, 0 to 1.
    start: the least share at progress 0, that of `TeacherShare.create`.
    end: the largest share, and the least at progress 1.
    rate: alpha, at least 0; 5e-4 is for some 10^4 steps.
    decay: beta, of the momentum, 0 to 1.
    adaptive: False sets t to the line.

  Returns:
    The state after the step. With losses above 0 and growing progress the
    share never falls.

  Raises:
    ValueError: if a number is out of range, or end is below start.

  Reference: Shing et al. (TAID), https://arxiv.org/abs/2501.16937, Alg. 1.
  """
  name = "advance_share"
  checks.between(name, "start", start, 0, 1)
  checks.between(name, "end", end, start, 1)
  checks.between(name, "decay", decay, 0, 1)
  checks.between(name, "rate", rate, 0, math.inf)
  loss = stop_gradient(jnp.asarray(loss, jnp.float32))
  previous = jnp.where(state.ready, state.previous_loss, loss)
  fall = (previous - loss) / (previous + 1e-15)
  momentum = decay * state.momentum + (1 - decay) * fall
  share = jnp.asarray(start + (end - start) * progress, jnp.float32)
  if adaptive:
    step = rate * jax.nn.sigmoid(momentum) * (1 - state.share)
    share = jnp.minimum(end, jnp.maximum(share, state.share + step))
  return TeacherShare(
    share=jnp.where(state.ready, share, state.share),
    momentum=jnp.where(state.ready, momentum, state.momentum),
    previous_loss=loss,
    ready=jnp.ones((), bool),
  )


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
