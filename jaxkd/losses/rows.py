"""Batches as rows of numbers: what relations between examples are made of.

Everything here has a finite gradient at zero rows and at equal ones. Rows that
do not count are zeros from the start, so that nothing in them is read.
"""

import jax
import jax.numpy as jnp

from jaxkd.losses import checks
from jaxkd.losses.softmax import at_least_float32

Array = jax.Array


def counted(loss: str, where: Array | None, count: int) -> Array:
  """Which rows count, float32 [B] of 0 and 1."""
  if where is None:
    return jnp.ones(count)
  if where.shape != (count,):
    raise ValueError(
      f"{loss}: where {where.shape}; expected [B], one entry for each of the "
      f"{count} examples"
    )
  return where.astype(bool).astype(jnp.float32)


def flat(x: Array, keep: Array) -> Array:
  """Examples as rows, [B, ...] -> [B, D]; those that do not count are 0."""
  x = at_least_float32(x.reshape(len(x), -1))
  return jnp.where(keep[:, None] > 0, x, 0.0)


def both(
  loss: str, student: Array, teacher: Array, where: Array | None
) -> tuple[Array, Array, Array]:
  """Student and teacher as rows, and which of them count.

  Args:
    loss: how errors call it.
    student: [B, ...].
    teacher: [B, ...]; the sizes behind B may differ.
    where: [B] or None.

  Returns:
    [B, D], [B, D'] and [B].

  Raises:
    ValueError: if there is no feature axis or the batches differ.
  """
  if min(student.ndim, teacher.ndim) < 2 or len(student) != len(teacher):
    raise ValueError(
      f"{loss}: student {student.shape}, teacher {teacher.shape}; expected "
      "[B, ...] with as many examples in both and at least one more axis"
    )
  keep = counted(loss, where, len(student))
  return flat(student, keep), flat(teacher, keep), keep


def pair(
  loss: str, student: Array, teacher: Array, where: Array | None
) -> tuple[Array, Array, Array]:
  """As `both`, for formulas that need student and teacher in one space."""
  student, teacher, keep = both(loss, student, teacher, where)
  checks.same(loss, student=student, teacher=teacher)
  return student, teacher, keep


def root(x: Array) -> Array:
  """The square root, with gradient 0 at 0."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def over(numerator: Array, denominator: Array) -> Array:
  """A quotient that is 0 where the denominator is 0."""
  real = denominator != 0
  return jnp.where(real, numerator / jnp.where(real, denominator, 1.0), 0.0)


def unit(x: Array, axis: int = -1) -> Array:
  """Vectors of length 1 along an axis; a zero vector stays one."""
  return over(x, root(jnp.sum(x * x, axis=axis, keepdims=True)))


def squared_distances(x: Array) -> Array:
  """|x_i - x_j|^2 of rows, [B, D] -> [B, B]; exactly 0 on the diagonal.

  From differences: the form with a Gram matrix loses small distances. A row
  less itself need not be 0 in a compiled program, which may compute the row
  twice and round in two ways.
  """
  square = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
  return jnp.where(jnp.eye(len(x), dtype=bool), 0.0, square)


def pairs(keep: Array) -> Array:
  """1 for pairs (i, j) in which both count and i is not j, [B, B]."""
  together = keep[:, None] * keep[None]
  return together * (1 - jnp.eye(len(keep)))


def unit_gram(x: Array, columns: Array | None = None) -> Array:
  """Inner products of rows, [B, B]; each row of the result has length 1.

  Args:
    x: [B, D].
    columns: [B], 1 for the columns that take part; the others are 0.

  Returns:
    [B, B].
  """
  products = x @ x.T
  if columns is not None:
    products = products * columns[None]
  return unit(products)


def mean(values: Array, weights: Array) -> Array:
  """Mean of the values that count; 0 if none does."""
  return over(jnp.sum(weights * values), jnp.sum(weights))


def compacted(keep: Array) -> Array:
  """Order in which the rows that count come first, as they were, [B]."""
  return jnp.argsort(keep <= 0, stable=True)
