"""One tile of `linear_divergence`: its values, and what it adds to gradients.

A tile is some tokens and their logits, as whole rows or in pieces of the
vocabulary. p is the teacher, q the student, D the divergence, T the
temperature, u the logits divided by T.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.losses.divergence import Divergence, exp, per_class
from jaxkd.losses.softmax import LAST, soft_cap

Array = jax.Array


class Net(NamedTuple):
  """What makes logits, or gradients of it: None for what needs none.

  Attributes:
    hidden: [N, d]; of all tokens [N, M, d], whose tiles are [:, m].
    head: [d, V].
    bias: [V], or None.
  """

  hidden: Any
  head: Any
  bias: Any = None


class Given(NamedTuple):
  """What is constant.

  Attributes:
    teacher: the frozen network.
    temperature: [] or [N].
    weights: [N]; tokens at 0 are left out.
  """

  teacher: Net
  temperature: Array
  weights: Array


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known at trace time.

  Attributes:
    divergence: D.
    cap: soft-caps of student and teacher.
    standardize: whether logits are standardized.
    classes: how many are real.
    vocab_chunk: classes in a piece; None for whole rows.
  """

  divergence: Divergence
  cap: tuple[float | None, float | None]
  standardize: bool
  classes: int
  vocab_chunk: int | None


def rows(
  plan: Plan, student: Net, given: Given, gradients: Net
) -> tuple[Array, Net]:
  """T^2 D(p, q) of a tile of whole rows, by the dense form.

  Args:
    plan: the divergence and its options.
    student: with the hidden states of the tile.
    given: of the tile.
    gradients: of the tile's hidden states, and so far of head and bias.

  Returns:
    Values, [N], and the gradients with those of the tile added.
  """
  ours, theirs = _logits(student), _logits(given.teacher)

  def dense(logits):
    return plan.divergence(
      logits,
      theirs,
      temperature=given.temperature,
      soft_cap=plan.cap,
      standardize=plan.standardize,
      vocab_size=plan.classes,
    )

  if not jax.tree.leaves(gradients):
    return dense(ours), gradients
  values, pull = jax.vjp(dense, ours)
  (d_logits,) = pull(given.weights)
  return values, _add(gradients, student, given.weights, d_logits, 0)


def pieces(
  plan: Plan, student: Net, given: Given, gradients: Net
) -> tuple[Array, Net]:
  """T^2 D(p, q) of a tile in pieces of the vocabulary.

    dD/du_c = g_c - q_c sum_k g_k,  g_c = sum_i dD/dS_i dt_ic/d(log q_c)

  with the divergence's sums S_i = sum_c t_ic. One pass finds the softmax's
  mass, the next one S_i and sum_c dt_ic/d(log q_c), the last one the gradient;
  each makes the logits anew.

  Args:
    plan: the divergence and its options.
    student: with the hidden states of the tile.
    given: of the tile.
    gradients: of the tile's hidden states, and so far of head and bias.

  Returns:
    Values, [N], and the gradients with those of the tile added.
  """
  log_probs = _log_probabilities(plan, student, given)

  def terms(number):
    """Terms t_i of a piece and their slopes in log q."""
    log_q, log_p, start, pull = log_probs(number)
    terms, slopes = jax.jvp(
      lambda log_q: plan.divergence.terms(log_p, log_q, None),
      (log_q,),
      (jnp.ones_like(log_q),),
    )
    return terms, slopes, log_q, start, pull

  def tally(state, number):
    sums = jax.tree.map(LAST.sum, terms(number)[:2])
    return jax.tree.map(jnp.add, state, sums), None

  shapes = jax.eval_shape(lambda: jax.tree.map(LAST.sum, terms(0)[:2]))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  sums, slopes = _over_pieces(plan, given, tally, zeros)
  values, pull_value = jax.vjp(
    lambda *sums: given.temperature**2 * plan.divergence.value(*sums)[:, 0],
    *sums,
  )
  if not jax.tree.leaves(gradients):
    return values, gradients
  rates = pull_value(given.weights)
  total = sum(r * s for r, s in zip(rates, slopes, strict=True))

  def add(gradients, number):
    _, slopes, log_q, start, pull = terms(number)
    slope = sum(r * s for r, s in zip(rates, slopes, strict=True))
    (d_logits,) = pull(slope - exp(log_q) * total)
    return _add(gradients, student, given.weights, d_logits, start), None

  return values, _over_pieces(plan, given, add, gradients)


def varying(tree: Any, like: Any = None) -> Any:
  """Arrays that all vary over the axes of any of them, in `shard_map`.

  So the gradient of what is one on all devices is summed over them once,
  behind this cast; f(x) = x for the values.

  Args:
    tree: the arrays.
    like: more arrays whose axes count.

  Returns:
    The tree.
  """
  axes = {a for x in jax.tree.leaves((tree, like)) for a in _axes(x)}

  def cast(x):
    missing = tuple(sorted(axes - _axes(x)))
    if not missing:
      return x
    if hasattr(lax, "pcast"):
      return lax.pcast(x, missing, to="varying")
    return lax.pvary(x, missing)

  return jax.tree.map(cast, tree)


def _axes(x: Array) -> frozenset[str]:
  """The axes of a `shard_map` that an array varies over."""
  kind = jax.typeof(x)
  kind = getattr(kind, "manual_axis_type", kind)  # since jax 0.10
  return getattr(kind, "varying", getattr(kind, "vma", frozenset()))


def _over_pieces(plan: Plan, given: Given, step: Callable, start: Any) -> Any:
  """The state after a step for each piece."""
  numbers = jnp.arange(-(-plan.classes // plan.vocab_chunk))
  return lax.scan(step, varying(start, given), numbers)[0]


def _log_probabilities(plan: Plan, student: Net, given: Given) -> Callable:
  """Number of a piece -> its log q, log p, first class, and pull-back to z.

  The last piece ends with the last class; classes that it shares with the one
  before are at -inf.
  """
  size = min(plan.vocab_chunk, plan.classes)
  temperature = per_class(given.temperature)

  def piece(number):
    start = jnp.minimum(number * size, plan.classes - size)
    new = (start + jnp.arange(size) >= number * size)[None]

    def scores(z, cap):
      return jnp.where(new, soft_cap(z, cap) / temperature, -jnp.inf)

    z, z_teacher = (
      _logits(_columns(net, start, size)) for net in (student, given.teacher)
    )
    ours, pull = jax.vjp(functools.partial(scores, cap=plan.cap[0]), z)
    return ours, scores(z_teacher, plan.cap[1]), start, pull

  def mass(state, number):
    """Largest u so far and sum of e^(u - largest), of both networks."""
    more = []
    for (largest, total), u in zip(state, piece(number)[:2], strict=True):
      raised = jnp.maximum(largest, LAST.max(u))
      base = _finite(raised)
      new = total * jnp.exp(largest - base) + LAST.sum(jnp.exp(u - base))
      more.append((raised, new))
    return tuple(more), None

  nothing = jnp.zeros_like(given.weights[:, None])
  empty = (jnp.full_like(nothing, -jnp.inf), nothing)
  log_masses = [
    _finite(largest) + jnp.log(jnp.where(total > 0, total, 1.0))
    for largest, total in _over_pieces(plan, given, mass, (empty, empty))
  ]

  def log_probabilities(number):
    ours, theirs, start, pull = piece(number)
    return ours - log_masses[0], theirs - log_masses[1], start, pull

  return log_probabilities


def _finite(x: Array) -> Array:
  return jnp.where(jnp.isneginf(x), 0.0, x)


def _columns(net: Net, start: Array | int, size: int) -> Net:
  """The network that makes the logits of `size` classes from `start` on."""
  bias = net.bias
  if bias is not None:
    bias = lax.dynamic_slice_in_dim(bias, start, size)
  head = lax.dynamic_slice_in_dim(net.head, start, size, 1)
  return Net(net.hidden, head, bias)


def _logits(net: Net) -> Array:
  """[N, V], in float32 at least."""
  logits = _product(net.hidden, net.head)
  return logits if net.bias is None else logits + net.bias[None]


def _product(a: Array, b: Array) -> Array:
  dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
  return jnp.matmul(a, b, preferred_element_type=dtype)


def _add(
  gradients: Net, net: Net, weights: Array, d_logits: Array, start: Array | int
) -> Net:
  """Adds the gradients of a tile's logits, those of classes from `start` on.

  Like the logits they are multiplied in bfloat16 if the network is.
  """
  counts = (weights != 0)[:, None]
  d_logits = jnp.where(counts, d_logits, 0.0)
  size = d_logits.shape[1]
  narrow = jnp.result_type(net.hidden, net.head)
  d = d_logits.astype(narrow) if narrow == jnp.bfloat16 else d_logits
  head = _columns(net, start, size).head

  def added(x, change, axis):
    old = lax.dynamic_slice_in_dim(x, start, size, axis)
    new = old + change.astype(x.dtype)
    return lax.dynamic_update_slice_in_dim(x, new, start, axis)

  hidden, d_head, d_bias = gradients
  if hidden is not None:
    hidden = hidden + _product(d, head.T).astype(hidden.dtype)
  if d_head is not None:
    d_head = added(d_head, _product(net.hidden.T, d), 1)
  if d_bias is not None:
    d_bias = added(d_bias, jnp.sum(d_logits, 0), 0)
  return Net(hidden, d_head, d_bias)
