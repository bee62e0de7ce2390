"""One jitted training step: any number of updates, exact means, no NaN kept.

`step(state, frozen, batch) -> (state, metrics)` is pure. The state is donated;
the frozen trees are arguments that are never differentiated and never
donated.

A step whose loss, gradients, statistics or memory are not finite changes
nothing, and neither does any after it. What an optimizer makes of finite
gradients is not looked at in the step: `first_failure` looks at the parameters
before they are kept, and a step that meets bad ones is not finite itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.errors import ConfigError
from jaxkd.method import (
  Batch,
  Method,
  Phase,
  Step,
  Update,
)
from jaxkd.params import merge_params, split_params
from jaxkd.roles import Nets, key_of
from jaxkd.targets import Answers, Served, with_targets
from jaxkd.training.proofs import Watch
from jaxkd.training.state import State

Array = jax.Array
Frozen = Mapping[str, Mapping[str, Any]]
Metrics = dict[str, Any]
Move = Callable[[State], State]  # an update of parameters by known gradients
FOLDED = 2**14  # numbers from which on an array is large


def make_step(
  method: Method,
  phase: Phase,
  *,
  steps_per_epoch: int,
  watch: Watch | None = None,
  served: Mapping[str, Served] | None = None,
) -> Callable[[State, Frozen, Batch], tuple[State, Metrics]]:
  """Builds the pure step function of a phase.

  Args:
    method: the method.
    phase: one of its phases.
    steps_per_epoch: how many steps make an epoch.
    watch: notes what tracing the step shows, see `proofs`.
    served: roles whose outputs the batch holds.

  Returns:
    The step function. Metrics are (sum, weight) pairs, and the flag `finite`
    of this step.
  """
  watch = watch or Watch()

  def step(state: State, frozen: Frozen, batch: Batch):
    now = Step(index=state.step, epoch=state.step // steps_per_epoch)
    nets = Nets(
      method.roles,
      frozen["params"],
      frozen["collections"],
      answers=Answers(served or {}, batch),
    )
    batch = with_targets(phase, nets, batch)
    watch.saw(nets)
    metrics: Metrics = {}
    fine = state.failed < 0
    new, moves = state, []
    for update in phase.updates:
      apply = functools.partial(_update, method, update, watch)
      given = (frozen, Answers(served or {}, batch))
      new, reported, sound, move = _apply(apply, update, new, given, now)
      moves.append(move)
      fine = fine & sound
      repeated = set(reported) & set(metrics)
      if repeated:
        raise ConfigError(
          f"phase {phase.name!r}: two updates report the metric "
          f"{sorted(repeated)[0]!r}"
        )
      metrics |= reported
    failed = jnp.where((state.failed < 0) & ~fine, state.step, state.failed)
    kept = _commit(fine, state, new, moves)
    kept = kept.replace(step=state.step + 1, failed=failed)
    return kept, {**metrics, "finite": fine}

  return step


def first_failure(phase: Phase, state: State) -> Array:
  """The first step that was not finite, its trained parameters looked at too.

  Args:
    phase: the state's.
    state: after any step.

  Returns:
    int32, as `State.failed`: the last step if only the parameters tell.
  """
  trained = [split_params(state.params, u.trainable)[0] for u in phase.updates]
  unnoticed = (state.failed < 0) & ~_all_finite(trained)
  return jnp.where(unnoticed, state.step - 1, state.failed)


def _commit(fine: Array, old: State, new: State, moves: list[Move]) -> State:
  """The new state if it is fine, or the old one.

  On a CPU a branch makes it from the old one by the moves once more, so that
  parameters and optimizer states change in place; what was made of them before
  is left to the compiler, which drops it unless another update read it.
  Elsewhere a branch can make the host wait: every number is selected.
  """

  def changed(state):
    state = new.replace(params=state.params, optimizer=state.optimizer)
    for move in moves:
      state = move(state)
    return state

  def branch():
    return jax.lax.cond(fine, changed, lambda state: state, old)

  def select():
    def choose(a, b):
      if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return a
      return jnp.where(fine, b, a)

    return jax.tree.map(choose, old, new)

  return jax.lax.platform_dependent(cpu=branch, default=select)


def _apply(
  apply: Callable[..., tuple[State, Metrics, Array, Move]],
  update: Update,
  state: State,
  given: tuple[Frozen, Answers],
  now: Step,
) -> tuple[State, Metrics, Array, Move]:
  """Makes one update, if it is due at this step."""

  def due(state):
    return apply(state, given, now)

  if update.every == 1:
    return due(state)
  shapes = jax.eval_shape(lambda state: due(state)[1], state)

  def skipped(state):
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return state, zeros, jnp.bool_(True)

  made = jax.lax.cond(
    now.index % update.every == 0, lambda s: due(s)[:3], skipped, state
  )

  def move(state):
    return state.replace(params=made[0].params, optimizer=made[0].optimizer)

  return *made, move


def _update(method, update, watch, state, given, now):
  frozen, answers = given
  trained, rest = split_params(state.params, update.trainable)
  fixed = merge_params(rest, frozen["params"])
  rng = key_of(jax.random.fold_in(state.rng, now.index), update.name)

  def objective(trained, fixed, collections, memory, batch, part):
    params = merge_params(trained, watch.untrained(fixed))
    nets = Nets(
      method.roles,
      params,
      {**frozen["collections"], **collections},
      training=update.trains(tuple(state.params)),
      rng=jax.random.fold_in(rng, part),
      memory=memory,
      answers=dataclasses.replace(answers, batch=batch),
    )
    loss = update.loss(nets, batch, now)
    watch.saw(nets)
    # A mean of one part is that of its loss: no pass over the gradients.
    mean = loss.total / _divisor(loss.weight) if alone else loss.total
    changed = {role: nets.collections[role] for role in collections}
    memory = {**memory, **loss.memory}
    sums = (loss.total, loss.weight)
    return mean, (sums, dict(loss.metrics), changed, memory)

  alone = update.accumulate == 1
  gradient = jax.grad(objective, has_aux=True)
  collections, memory = dict(state.collections), dict(state.memory)
  totals = None
  # Micro-batches are unrolled: a convolution inside lax.scan is slow on CPU.
  for part, micro in enumerate(_split(answers.batch, update.accumulate)):
    found = gradient(trained, fixed, collections, memory, micro, part)
    grads, (sums, metrics, collections, memory) = found
    sums = (sums, grads, metrics)
    totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
  (total, weight), grads, metrics = totals
  if not alone:  # exact means whatever the split
    divisor = _divisor(weight)
    grads = jax.tree.map(lambda g: (g / divisor).astype(g.dtype), grads)
  if update.name in metrics:
    raise ConfigError(
      f"update {update.name!r} reports a metric of its own name, under which "
      "its loss stands"
    )
  metrics = {update.name: (total, weight), **metrics}
  if update.remember is not None:
    memory = _remembered(update.remember, memory, metrics, now)
  move = functools.partial(_moved, update, grads)
  new = move(state).replace(collections=collections, memory=memory)
  sound = _all_finite((total, grads, collections, memory))
  return new, metrics, sound, move


def _moved(update: Update, grads: Any, state: State) -> State:
  """The state after the optimizer's step."""
  trained, rest = split_params(state.params, update.trainable)
  steps, optimizer = update.optimizer.update(
    grads, state.optimizer[update.name], trained
  )
  trained = optax.apply_updates(trained, steps)
  return state.replace(
    params=merge_params(trained, rest),
    optimizer={**state.optimizer, update.name: optimizer},
  )


def _divisor(weight: Array) -> Array:
  """What a sum of this weight is divided by; 1 if nothing counts."""
  return jax.lax.stop_gradient(jnp.where(weight > 0, weight, 1.0))


def _remembered(remember, memory, metrics, now):
  means = {
    name: total / _divisor(weight)
    for name, (total, weight) in jax.lax.stop_gradient(metrics).items()
  }
  return {**memory, **remember(memory, means, now)}


def _split(batch: Batch, parts: int) -> list[Batch]:
  sizes = {name: len(jax.tree.leaves(rows)[0]) for name, rows in batch.items()}
  for size in set(sizes.values()):  # of every stream
    if size % parts:
      raise ConfigError(
        f"accumulate={parts}: the batch of {size} cannot be split evenly"
      )
  if parts == 1:
    return [batch]

  def rows(name, n):
    width = sizes[name] // parts
    return jax.tree.map(lambda x: x[n * width : (n + 1) * width], batch[name])

  return [{name: rows(name, n) for name in batch} for n in range(parts)]


def _all_finite(tree: Any) -> Array:
  """Whether no entry of any array is infinite or NaN."""
  leaves = [
    leaf
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]

  def every(found):
    flags = [jnp.all(jnp.isfinite(x)) for x in found]
    return functools.reduce(jnp.logical_and, flags, jnp.bool_(True))

  return jax.lax.platform_dependent(
    cpu=lambda: every([_folded(x) for x in leaves]),
    default=lambda: every(leaves),
  )


def _folded(x: Array) -> Array:
  """Of a large array the sum of its rows, finite if and only if it is.

  Looking at every entry is slow on a CPU, a product is quick. The rows are
  scaled so that no sum of finite entries overflows.
  """
  if x.ndim < 2 or x.size < FOLDED or jnp.finfo(x.dtype).maxexp < 128:
    return x
  rows = x.reshape(-1, x.shape[-1])
  scale = jnp.full(len(rows), 2.0**-64, x.dtype)
  kind = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.dot(scale, rows, preferred_element_type=kind)
