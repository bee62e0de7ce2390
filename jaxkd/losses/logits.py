"""Losses of logits against labels, one value per example."""

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(
  student: Array,
  labels: Array,
  *,
  axis: int = -1,
  where: Array | None = None,
) -> Array:
  """Cross entropy of integer labels: -log softmax(student)[label].

  Args:
    student: logits, [..., C].
    labels: integers in 0..C-1, [...]; values where `where` is not true are
      not read.
    axis: the class axis.
    where: [...], entries that are not true give 0 and pass no gradient.

  Returns:
    [...], nats.

  Raises:
    ValueError: if the labels' shape is not that of the logits without the
      class axis, or they are not integers.
  """
  student = jnp.moveaxis(student, axis, -1).astype(jnp.float32)
  if labels.shape != student.shape[:-1]:
    raise ValueError(
      f"labels {labels.shape} must have the shape of the logits without the "
      f"class axis, {student.shape[:-1]}"
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels are {labels.dtype}, expected integers")
  if where is not None:
    student = jnp.where(where.astype(bool)[..., None], student, 0.0)
    labels = jnp.where(where.astype(bool), labels, 0)
  log_q = jax.nn.log_softmax(student, -1)
  picked = jnp.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]
  return -picked if where is None else jnp.where(where.astype(bool), -picked, 0)
