"""What every loss asks of its arguments, said in one form at trace time.

`<loss>: <what was given>; <what is expected>`. All checks raise `ValueError`.
"""

import jax
import jax.numpy as jnp

from jaxkd.losses.topk import TopK

Array = jax.Array


def white(loss: str, teacher: Array | TopK) -> None:
  """The loss reads every class: access `white`."""
  if isinstance(teacher, TopK):
    raise ValueError(
      f"{loss}: needs access 'white' to the teacher (its logits of all "
      f"classes); this teacher gives 'topk', k={teacher.ids.shape[-1]}. The "
      "divergences, such as kl, take top-k"
    )


def logits(loss: str, student: Array, teacher: Array, axis: int = -1) -> None:
  """Student and teacher logits agree in shape, class axis included."""
  white(loss, teacher)
  if student.ndim != teacher.ndim or not -student.ndim <= axis < student.ndim:
    raise ValueError(
      f"{loss}: student logits {student.shape}, teacher logits "
      f"{teacher.shape}, class axis {axis}; expected one shape that has the "
      "axis"
    )
  ours, theirs = student.shape[axis], teacher.shape[axis]
  if ours != theirs:
    raise ValueError(
      f"{loss}: {ours} student classes and {theirs} teacher classes on axis "
      f"{axis}; expected as many (divergences take vocab_size= where the "
      "classes beyond it are padding)"
    )
  if student.shape != teacher.shape:
    raise ValueError(
      f"{loss}: student logits {student.shape} and teacher logits "
      f"{teacher.shape}; expected one shape"
    )


def temperature(
  loss: str, value: float | Array, shape: tuple[int, ...] | None = None
) -> None:
  """Temperatures known at trace time are above 0; an array has the shape."""
  positive(loss, "temperature", value)
  if shape is not None and jnp.ndim(value) and jnp.shape(value) != shape:
    raise ValueError(
      f"{loss}: temperature {jnp.shape(value)}; expected a number or one per "
      f"position, {shape}"
    )


def positive(loss: str, name: str, value: float | Array) -> None:
  """A number that is known at trace time is above 0."""
  if isinstance(value, int | float) and not value > 0:
    raise ValueError(f"{loss}: {name}={value}; expected a value above 0")


def between(
  loss: str, name: str, value: float, low: float, high: float
) -> None:
  """A number that is known at trace time lies in [low, high]."""
  if isinstance(value, int | float) and not low <= value <= high:
    raise ValueError(f"{loss}: {name}={value}; expected {low} to {high}")


def labels(loss: str, labels: Array, shape: tuple[int, ...]) -> None:
  """Labels are integers of the logits' shape without the class axis."""
  if labels.shape != shape:
    raise ValueError(
      f"{loss}: labels {labels.shape}; expected the shape of the logits "
      f"without the class axis, {shape}"
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"{loss}: labels are {labels.dtype}; expected integers")


def same(loss: str, **arrays: Array) -> None:
  """Two or more arrays, given by name, have one shape."""
  shapes = {name: array.shape for name, array in arrays.items()}
  if len(set(shapes.values())) > 1:
    given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(f"{loss}: {given}; expected one shape")


def rank(loss: str, name: str, array: Array, dims: str) -> None:
  """An array has the named dimensions, such as `"B H W C"`."""
  if array.ndim != len(dims.split()):
    raise ValueError(
      f"{loss}: {name} {array.shape}; expected [{', '.join(dims.split())}]"
    )


def one_of(loss: str, name: str, value: str, valid: tuple[str, ...]) -> None:
  """An option has one of its values."""
  if value not in valid:
    raise ValueError(
      f"{loss}: {name}={value!r}; expected one of {', '.join(valid)}"
    )


def topk_options(
  loss: str, student: Array, *, axis: int, standardize: bool
) -> None:
  """A top-k teacher has its classes last and cannot be standardized."""
  if axis not in (-1, student.ndim - 1) or standardize:
    raise ValueError(
      f"{loss}: axis={axis}, standardize={standardize} with a top-k teacher; "
      "expected the classes on the last axis, and standardized logits need "
      "access 'white'"
    )


def topk(loss: str, student: Array, teacher: TopK) -> None:
  """A top-k teacher has as many positions as the student, and integer ids."""
  expected = (*student.shape[:-1], teacher.ids.shape[-1])
  if not teacher.ids.shape == teacher.log_probs.shape == expected:
    raise ValueError(
      f"{loss}: student logits {student.shape}, teacher ids "
      f"{teacher.ids.shape}, teacher log_probs {teacher.log_probs.shape}; "
      f"expected ids and log_probs {expected}"
    )
  if expected[-1] > student.shape[-1]:
    raise ValueError(
      f"{loss}: {expected[-1]} classes of the teacher; expected at most "
      f"{student.shape[-1]}, the student's"
    )
  if not jnp.issubdtype(teacher.ids.dtype, jnp.integer):
    raise ValueError(
      f"{loss}: teacher ids are {teacher.ids.dtype}; expected integers"
    )


def classes(
  loss: str, who: str, logits: Array, axis: int, vocab_size: int | None
) -> Array:
  """The logits of the real classes, padding rows cut off."""
  if vocab_size is None or not -logits.ndim <= axis < logits.ndim:
    return logits
  if not 1 <= vocab_size <= logits.shape[axis]:
    raise ValueError(
      f"{loss}: vocab_size={vocab_size}; expected 1 to {logits.shape[axis]}, "
      f"the {who}'s classes"
    )
  return jax.lax.slice_in_dim(logits, 0, vocab_size, axis=axis)


def where(loss: str, given: Array | None, shape: tuple[int, ...]) -> None:
  """A mask, if there is one, has an entry for every position."""
  if given is not None and given.shape != shape:
    _refuse_mask(loss, given, shape)


def _refuse_mask(loss: str, given: Array, shape: tuple[int, ...]) -> None:
  raise ValueError(
    f"{loss}: where {given.shape}; expected {shape}, the shape of the logits "
    "without the class axis"
  )


def masked(loss: str, values: Array, where: Array | None) -> Array:
  """Values [..., C] with 0 where `where` [...] is not true."""
  if where is None:
    return values
  if where.shape != values.shape[:-1]:
    _refuse_mask(loss, where, values.shape[:-1])
  zero = jnp.zeros((), values.dtype)
  return jnp.where(where.astype(bool)[..., None], values, zero)


def features(
  loss: str,
  student: Array,
  teacher: Array,
  where: Array | None = None,
  *,
  channels: bool = True,
) -> None:
  """Features [B, ..., C] agree in axes, examples, and perhaps channels."""
  least = min(student.ndim, teacher.ndim)
  if (
    least < 2
    or student.ndim != teacher.ndim
    or len(student) != len(teacher)
    or (channels and student.shape[-1] != teacher.shape[-1])
  ):
    which = "examples and channels" if channels else "examples"
    raise ValueError(
      f"{loss}: student feature {student.shape}, teacher feature "
      f"{teacher.shape}; expected [B, ..., C] of both, with as many axes and "
      f"{which}"
    )
  if where is not None and where.shape != student.shape[:1]:
    raise ValueError(
      f"{loss}: where {where.shape}; expected {student.shape[:1]}, one entry "
      "per example"
    )
