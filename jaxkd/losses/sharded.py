"""Divergences over a vocabulary that lies on several devices.

`sharded_divergence` takes arrays of a mesh, whose axes it takes as automatic
ones, those of `jit`. Where the types of arrays carry shardings (explicit axes)
it gives values and no gradients.

Inside of one's own `shard_map`
(with its default `check_vma=True`, without which the gradients of sums over
devices are counted once per device) the same is written

  over = over_axis("tensor")
  log_q, log_p = (
    log_probabilities(logits, temperature, over=over)
    for logits in (student, teacher)
  )
  value = temperature**2 * losses.kl.evaluate(log_p, log_q, over)[..., 0]
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxkd.losses import checks
from jaxkd.losses.divergence import Divergence, per_class, scaled
from jaxkd.losses.softmax import (
  Cap,
  Reduction,
  log_probabilities,
  student_and_teacher,
)

Array = jax.Array


def over_axis(axis_name: str) -> Reduction:
  """Sum and maximum over classes of which every device holds a slice.

  Args:
    axis_name: the mesh axis that the slices lie on.

  Returns:
    The reduction, for use inside of `shard_map`.
  """
  return Reduction(
    sum=lambda x: jax.lax.psum(jnp.sum(x, -1, keepdims=True), axis_name),
    max=lambda x: jax.lax.pmax(jnp.max(x, -1, keepdims=True), axis_name),
  )


def sharded_divergence(
  divergence: Divergence,
  student: Array,
  teacher: Array,
  *,
  mesh: Mesh,
  axis_name: str = "tensor",
  temperature: float | Array = 1.0,
  where: Array | None = None,
  soft_cap: Cap = None,
  standardize: bool = False,
  vocab_size: int | None = None,
) -> Array:
  """T^2 D(p, q) of classes that are sharded over a mesh axis.

    log q = z - m - log sum_devices sum_slice e^(z - m), m = max over devices

  The dense form, term by term, with every device at work on its own slice of
  the classes: what travels are one maximum and the sums of a position, never
  logits. Other mesh axes, such as that of the batch, stay as they are.

  Args:
    divergence: D, such as `kl`.
    student: logits, [..., C], the last axis sharded over `axis_name`. A C that
      the axis does not divide is filled up with classes at -inf.
    teacher: logits, [..., C]. With `vocab_size` given, student and teacher may
      have unequal numbers of padding classes; the narrower one is then moved.
    mesh: the devices.
    axis_name: the mesh axis of the classes.
    temperature: this and what follows: see `divergence`.
    where: [...].
    soft_cap: of the logits.
    standardize: whether to standardize the logits.
    vocab_size: real classes.

  Returns:
    [...], nats times T^2, the same on every device of the axis.

  Raises:
    ValueError: if shapes, a number or the axis do not fit.

  Needs: logits; access white; per example.
  Checked: property tests only.
  Reference: Shoeybi et al., https://arxiv.org/abs/1909.08053, Sec. 3.
  """
  _check(divergence.name, student, teacher, mesh, axis_name, vocab_size)
  checks.temperature(divergence.name, temperature, student.shape[:-1])
  slices = PartitionSpec(*[None] * (student.ndim - 1), axis_name)
  caps, over = student_and_teacher(soft_cap), over_axis(axis_name)
  body = functools.partial(_of_slices, divergence, caps, standardize, over)
  logits = _padded(student, teacher, mesh.shape[axis_name], vocab_size)
  run = jax.shard_map(
    body,
    mesh=Mesh(mesh.devices, mesh.axis_names),  # of automatic axes
    in_specs=(slices, slices, PartitionSpec()),
    out_specs=PartitionSpec(),
    axis_names={axis_name},
  )
  logits = (checks.masked(divergence.name, z, where) for z in logits)
  values = run(*logits, jnp.asarray(per_class(temperature)))
  return scaled(values, temperature, where)


def _check(name, student, teacher, mesh, axis_name, vocab_size):
  """The real classes of both are as many, and the mesh has the axis."""
  checks.one_of(name, "axis_name", axis_name, tuple(mesh.shape))
  real = (
    jax.eval_shape(
      lambda x, who=who: checks.classes(name, who, x, -1, vocab_size), logits
    )
    for who, logits in (("student", student), ("teacher", teacher))
  )
  checks.logits(name, *real)


def _of_slices(
  divergence, caps, standardized, over, student, teacher, temperature
):
  """D of one device's slices."""
  log_q, log_p = (
    log_probabilities(
      logits, temperature, cap=cap, standardized=standardized, over=over
    )
    for logits, cap in zip((student, teacher), caps, strict=True)
  )
  return divergence.evaluate(log_p, log_q, over)[..., 0]


def _padded(
  student: Array, teacher: Array, parts: int, vocab_size: int | None
) -> list[Array]:
  """Logits of one width that the parts divide, at -inf behind the real ones."""
  width = -(-max(student.shape[-1], teacher.shape[-1]) // parts) * parts
  return [_widened(logits, width, vocab_size) for logits in (student, teacher)]


def _widened(logits: Array, width: int, vocab_size: int | None) -> Array:
  classes = logits.shape[-1]
  if width > classes:
    pad = [(0, 0)] * (logits.ndim - 1) + [(0, width - classes)]
    logits = jnp.pad(logits, pad, constant_values=-jnp.inf)
  if vocab_size is None:
    return logits
  number = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return jnp.where(number < vocab_size, logits, -jnp.inf)
