"""Divergences between two categorical distributions given by logits.

Notation: q is the student, p the teacher, T the temperature, C the classes on
`axis`. Every function takes the student first and the teacher second, returns
one value per example (the shape without `axis`), carries the factor T^2 that
keeps gradients of the order of those at T = 1, computes in float32 and stops
no gradient: the caller decides.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def _log_softmax(logits: Array, temperature: float, axis: int) -> Array:
  return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis)


def _check(student: Array, teacher: Array, temperature: float) -> None:
  if student.shape != teacher.shape:
    raise ValueError(
      f"student logits {student.shape} and teacher logits {teacher.shape} "
      "must have one shape"
    )
  if not isinstance(temperature, jax.core.Tracer) and temperature <= 0:
    raise ValueError(f"temperature={temperature}: expected a value above 0")


def kl(
  student: Array,
  teacher: Array,
  *,
  temperature: float = 1.0,
  axis: int = -1,
  where: Array | None = None,
) -> Array:
  """Kullback-Leibler divergence from the student to the teacher.

  T^2 sum_c p_c (log p_c - log q_c), p = softmax(teacher / T),
  q = softmax(student / T).

  Args:
    student: logits, [..., C].
    teacher: logits, [..., C]. A class at -inf has p = 0 and adds nothing.
    temperature: T, above 0.
    axis: the class axis.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats times T^2.

  Raises:
    ValueError: if the shapes differ or the temperature is not positive.

  Reference: Hinton et al., https://arxiv.org/abs/1503.02531, Sec. 2.
  """
  _check(student, teacher, temperature)
  if where is not None:
    keep = jnp.expand_dims(where.astype(bool), axis)
    student = jnp.where(keep, student, 0.0)
    teacher = jnp.where(keep, teacher, 0.0)
  log_q = _log_softmax(student, temperature, axis)
  log_p = _log_softmax(teacher, temperature, axis)
  support = log_p > -jnp.inf
  ratio = jnp.where(support, log_p, 0.0) - jnp.where(support, log_q, 0.0)
  return temperature**2 * jnp.sum(jnp.exp(log_p) * ratio, axis)
