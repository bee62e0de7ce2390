"""Divergences of hidden states and output heads: no logits of all tokens.

The chunked form of the family of `divergence`, whose notation and options
these are: logits are made, compared and differentiated a tile at a time. The
result is a sum over positions, so that the gradient of a tile is complete up
to the cotangent's factor while its logits are there: it is computed on the
way forward and nothing is computed twice. That costs the matrix products of
the dense form, and one tile instead of all logits.

With `vocab_chunk` a tile is a piece of the vocabulary too. A piece does not
know the softmax, so that logits are made three times (their mass, the sums of
the divergence, the gradient), twice for the value alone; `standardize` and
`AdaptiveKL` need whole rows.

The student's hidden states, head and bias get gradients, those of them that
are asked for; everything else is a constant, the teacher, the temperature and
the weights included. Reverse mode only, and once: a gradient computed on the
way forward has none itself. Matrix products accumulate in float32, and so does
the head's gradient over the tiles.

Under jit on a mesh with the tokens' leading axis over its devices, every
device keeps its own tokens (`token_chunk` counts those of all devices), and
the head's gradient is summed over devices once a tile; inside of `shard_map`
once at the end.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.losses import checks
from jaxkd.losses.divergence import Divergence
from jaxkd.losses.linear_tiles import Given, Net, Plan, pieces, rows, varying
from jaxkd.losses.softmax import Cap, student_and_teacher

Array = jax.Array
NAME = "linear_divergence"


def linear_divergence(
  divergence: Divergence,
  student_hidden: Array,
  student_head: Array,
  teacher_hidden: Array,
  teacher_head: Array,
  *,
  student_bias: Array | None = None,
  teacher_bias: Array | None = None,
  temperature: float | Array = 1.0,
  where: Array | None = None,
  weights: Array | None = None,
  soft_cap: Cap = None,
  standardize: bool = False,
  vocab_size: int | None = None,
  token_chunk: int = 256,
  vocab_chunk: int | None = None,
) -> Array:
  """Sum of T^2 D(p, q) over positions, of logits that are never kept.

    sum_n w_n T^2 D(softmax(teacher_hidden_n W_t / T), softmax(h_n W / T))

  Args:
    divergence: D, such as `kl`.
    student_hidden: [..., d].
    student_head: [d, V]; an embedding [V, d] goes in transposed.
    teacher_hidden: [..., d_t], of the same positions.
    teacher_head: [d_t, V], or another V with `vocab_size`.
    student_bias: [V].
    teacher_bias: [V].
    temperature: this and what follows: see `divergence`.
    where: [...]; tokens that are left out may hold anything.
    weights: w, [...].
    soft_cap: of the logits.
    standardize: whether to standardize the logits.
    vocab_size: real classes.
    token_chunk: tokens in a tile of [token_chunk, V] logits.
    vocab_chunk: classes in a tile; by default all.

  Returns:
    [], nats times T^2; float32 at least.

  Raises:
    ValueError: if shapes do not fit, or `vocab_chunk` meets what needs rows.
  Needs: hidden states, output heads; access white; batch level.
  Checked: property tests only.
  Reference: Hsu et al. (Liger), https://arxiv.org/abs/2410.10989.
  """
  student = Net(student_hidden, student_head, student_bias)
  teacher = Net(teacher_hidden, teacher_head, teacher_bias)
  _check(divergence, student, teacher)
  cap = student_and_teacher(soft_cap)
  classes = _classes(student_head, teacher_head, vocab_size)
  plan = Plan(divergence, cap, standardize, classes, vocab_chunk)
  _check_chunks(plan, token_chunk)
  return _sum(plan, student, teacher, temperature, where, weights, token_chunk)


def _sum(
  plan: Plan,
  student: Net,
  teacher: Net,
  temperature: float | Array,
  where: Array | None,
  weights: Array | None,
  token_chunk: int,
) -> Array:
  """The sum, once tokens are split into tiles."""
  shape = student.hidden.shape[:-1]
  checks.temperature(NAME, temperature, shape)
  weights = _weights(shape, where, weights, _dtype(student, teacher))
  if jnp.ndim(temperature):
    temperature = jnp.where(weights != 0, temperature, 1.0)
  else:
    temperature = jnp.asarray(temperature, weights.dtype)
  split = functools.partial(_split, leading=len(shape), token_chunk=token_chunk)
  student = student._replace(hidden=split(student.hidden))
  teacher = teacher._replace(hidden=split(teacher.hidden))
  given = Given(teacher, split(temperature), split(weights))
  return _total(plan, *varying((student, lax.stop_gradient(given))))


def _check(divergence: Any, student: Net, teacher: Net) -> None:
  if not isinstance(divergence, Divergence):
    raise ValueError(
      f"{NAME}: divergence={divergence!r}; expected a Divergence, such as kl"
    )
  for who, net in (("student", student), ("teacher", teacher)):
    if net.head.ndim != 2 or net.hidden.shape[-1:] != net.head.shape[:1]:
      raise ValueError(
        f"{NAME}: {who} hidden states {net.hidden.shape}, {who} head "
        f"{net.head.shape}; expected [..., d] and [d, V]"
      )
    if net.bias is not None and net.bias.shape != net.head.shape[1:]:
      raise ValueError(
        f"{NAME}: {who} bias {net.bias.shape}; expected {net.head.shape[1:]}, "
        "the classes of its head"
      )
  if student.hidden.shape[:-1] != teacher.hidden.shape[:-1]:
    raise ValueError(
      f"{NAME}: student hidden states {student.hidden.shape}, teacher hidden "
      f"states {teacher.hidden.shape}; expected the same positions"
    )


def _classes(
  student_head: Array, teacher_head: Array, vocab_size: int | None
) -> int:
  """The number of real classes."""
  ours, theirs = student_head.shape[1], teacher_head.shape[1]
  if vocab_size is None:
    if ours != theirs:
      raise ValueError(
        f"{NAME}: {ours} student classes and {theirs} teacher classes; "
        "expected as many (vocab_size= says where padding begins)"
      )
    return ours
  checks.between(NAME, "vocab_size", vocab_size, 1, min(ours, theirs))
  return vocab_size


def _check_chunks(plan: Plan, token_chunk: int) -> None:
  checks.positive(NAME, "token_chunk", token_chunk)
  if plan.vocab_chunk is None:
    return
  checks.positive(NAME, "vocab_chunk", plan.vocab_chunk)
  rows = type(plan.divergence).context is not Divergence.context
  if rows or plan.standardize:
    raise ValueError(
      f"{NAME}: vocab_chunk={plan.vocab_chunk} with {plan.divergence.name}, "
      f"standardize={plan.standardize}; expected vocab_chunk=None where whole "
      "rows are needed (AdaptiveKL, standardized logits)"
    )


def _dtype(student: Net, teacher: Net) -> jnp.dtype:
  """Of logits and values."""
  return jnp.result_type(*student[:2], *teacher[:2], jnp.float32)


def _weights(
  shape: tuple[int, ...],
  where: Array | None,
  weights: Array | None,
  dtype: jnp.dtype,
) -> Array:
  """What every token counts; 0 where it does not."""
  for name, array in (("where", where), ("weights", weights)):
    if array is not None and array.shape != shape:
      raise ValueError(f"{NAME}: {name} {array.shape}; expected {shape}")
  if weights is None:
    weights = jnp.ones(shape, dtype)
  if where is not None:
    weights = jnp.where(where.astype(bool), weights, 0)
  return weights.astype(dtype)


def _split(x: Array, *, leading: int, token_chunk: int) -> Array:
  """Tokens [..., d] as [N, M, d]: part m has the tokens n M + m.

  So the parts of an array whose tokens are sharded are sharded alike.
  """
  if x.ndim < leading:
    return x
  x = x.reshape(-1, *x.shape[leading:])
  tokens = max(len(x), 1)
  parts = -(-tokens // min(token_chunk, tokens))
  even = [m for m in range(parts, 2 * parts) if tokens % m == 0]
  parts = even[0] if even else parts
  size = -(-tokens // parts)
  fill = [(0, size * parts - len(x)), *[(0, 0)] * (x.ndim - 1)]
  return jnp.pad(x, fill).reshape(size, parts, *x.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(plan: Plan, student: Net, given: Given) -> Array:
  """The sum; nothing is differentiated."""
  return _scan(plan, student, given, Net(False, False, False))[0]


def _forward(plan, student, given):
  """The sum and the gradients of what is differentiated."""
  wanted = jax.tree.map(lambda x: x.perturbed, student, is_leaf=_is_primal)
  student, given = jax.tree.map(
    lambda x: x.value, (student, given), is_leaf=_is_primal
  )
  total, gradients = _scan(plan, student, given, wanted)
  kinds = jax.tree.map(lambda x: jnp.zeros((), x.dtype), student)
  return total, (gradients, kinds)


def _is_primal(x: Any) -> bool:
  return hasattr(x, "perturbed")


def _backward(plan, residuals, cotangent):
  """The gradients, scaled."""
  del plan
  gradients, kinds = residuals
  return Net(
    *(
      None if x is None else (cotangent * x).astype(kind.dtype)
      for x, kind in zip(gradients, kinds, strict=True)
    )
  ), None


_total.defvjp(_forward, _backward, symbolic_zeros=True)


def _scan(
  plan: Plan, student: Net, given: Given, wanted: Net
) -> tuple[Array, Net]:
  """The sum over all tiles, and the gradients that are wanted."""
  values_of = rows if plan.vocab_chunk is None else pieces

  def step(carry, part):
    totals, gradients = carry
    at = functools.partial(
      lax.dynamic_index_in_dim, index=part, axis=1, keepdims=False
    )
    tile = Given(
      given.teacher._replace(hidden=at(given.teacher.hidden)),
      at(given.temperature) if given.temperature.ndim else given.temperature,
      at(given.weights),
    )
    counts = tile.weights != 0
    ours, theirs = (
      net._replace(hidden=jnp.where(counts[:, None], net.hidden, 0))
      for net in (student._replace(hidden=at(student.hidden)), tile.teacher)
    )
    values, gradients = values_of(
      plan,
      ours,
      tile._replace(teacher=theirs),
      gradients._replace(hidden=_zeros(ours.hidden, wanted.hidden)),
    )
    values = jnp.where(counts, tile.weights * values, 0)
    return (totals + values, gradients._replace(hidden=None)), gradients.hidden

  # A total for each token of a tile: devices add them up once, at the end.
  carry = (
    jnp.zeros_like(given.weights[:, 0]),
    Net(None, *map(_zeros, student[1:], wanted[1:])),
  )
  parts = jnp.arange(given.weights.shape[1])
  (totals, gradients), hidden = lax.scan(step, varying(carry, given), parts)
  if hidden is not None:
    hidden = jnp.moveaxis(hidden, 0, 1)
  return jnp.sum(totals), gradients._replace(hidden=hidden)


def _zeros(x: Array, wanted: bool | None) -> Array | None:
  """Where gradients are added up, if they are wanted."""
  if not wanted:
    return None
  return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
