"""The phases of a method in shapes: what a run compiles, without an array.

A phase is lowered from the shapes of what it would be given, in their places
on the mesh, by the functions that a run calls with arrays. So the program is
the run's own, and as it was compiled it lies in the compilation cache.

One thing only a run knows: which rows of a split a stream has picked by what
the method remembers. All rows count here, which changes the length of an
epoch, and with it constants of the program, but no shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data import pipeline
from jaxkd.data.pipeline import Feed
from jaxkd.data.source import Splits
from jaxkd.errors import ConfigError
from jaxkd.method import Batch, Method, Phase
from jaxkd.parallel import Placement, held
from jaxkd.roles import Usage
from jaxkd.training.feeds import MAIN, check_batches, feeds, stays
from jaxkd.training.phase import Settings
from jaxkd.training.program import Program, Programs, build
from jaxkd.training.proofs import Watch
from jaxkd.training.state import Best, State, first, frozen
from jaxkd.training.targets import make_targets

Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outline:
  """A phase before it is trained; all trees are shapes with shardings.

  Attributes:
    phase: the phase.
    steps: its length.
    program: its functions, lowered.
    watch: what tracing the step showed.
    inputs: shapes of the batch entries that each role is given.
    state: what the step changes.
    best: the best snapshot; None without validation.
    frozen: parameters and collections by role that the step only reads.
    batch: what a step is given of all streams, cached targets too.
    validation_bytes: bytes of the validation batches that stay on a device.
  """

  phase: Phase
  steps: int
  program: Program
  watch: Watch
  inputs: Mapping[str, Batch]
  state: State
  best: Best | None
  frozen: Mapping[str, Mapping[str, Tree]]
  batch: Mapping[str, jax.ShapeDtypeStruct]
  validation_bytes: int


def shapes(
  method: Method, inputs: Mapping[str, Batch]
) -> tuple[dict[str, Tree], dict[str, Tree]]:
  """The shapes of what `roles.initialise` returns; draws and loads nothing.

  Of a network whose weights have a `dtype` all floating-point leaves count in
  it, those too that the weights do not hold.

  Args:
    method: the method.
    inputs: shapes of what each role is given, from `roles.usage`.

  Returns:
    Parameters and collections by role, as `jax.ShapeDtypeStruct`s.
  """
  params, collections = {}, {}
  for role, given in inputs.items():
    network = method.roles[role]
    drawn = dict(jax.eval_shape(network.init, jax.random.key(0), dict(given)))
    dtype = getattr(network.weights, "dtype", None)
    if dtype is not None:
      drawn = jax.tree.map(functools.partial(_in_dtype, dtype), drawn)
    params[role] = drawn.pop("params")
    collections[role] = drawn
  return params, collections


def _in_dtype(dtype: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  return leaf.update(dtype=jnp.dtype(dtype)) if floating else leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outliner:
  """Makes outlines of the phases of one method.

  Attributes:
    method: the method.
    splits: the data, of which only shapes and lengths count.
    batch_size: examples in a step, over all devices.
    settings: how a run would be executed.
    placement: on which devices.
  """

  method: Method
  splits: Splits
  batch_size: int
  settings: Settings
  placement: Placement

  def outlines(self) -> Iterator[Outline]:
    """Lowers one phase after the other.

    Raises:
      ConfigError: networks, batches and mesh do not fit each other, or the
        teacher is not to be run.
    """
    if self.settings.targets is not None:
      raise ConfigError(
        f"a plan with Settings.targets={self.settings.targets!r}: expected "
        "None; plans are of runs with their teachers"
      )
    sizes = (self.batch_size, *self.settings.batch_sizes)
    check_batches(self.placement.mesh, self.method, sizes)
    used = Programs(self.method).usage(self.splits, self.batch_size)
    variables = shapes(self.method, used.inputs)
    memory = jax.eval_shape(
      lambda: jax.tree.map(jnp.copy, dict(self.method.memory))
    )
    for phase in self.method.lasting_phases:
      yield self._outline(phase, variables, memory, used)

  def _outline(
    self,
    phase: Phase,
    variables: tuple[Mapping[str, Tree], Mapping[str, Tree]],
    memory: Mapping[str, Tree],
    used: Usage,
  ) -> Outline:
    key, watch = jax.random.key(0), Watch()
    run = used.roles[phase.name]
    given = frozen(self.method, phase, variables, used=run)
    given = self.placement.keep(given)
    streams = feeds(phase, self.splits, self.batch_size, key)
    main = streams[MAIN]
    epoch = pipeline.steps_per_epoch(main.source, main.batch_size)
    phase = phase.planned(epoch)
    steps = phase.length(epoch)
    state, best = self.placement.put(
      jax.eval_shape(
        lambda variables, memory: first(
          self.method, phase, variables, rng=key, memory=memory
        ),
        variables,
        memory,
      )
    )
    batch = self._batch(phase, self.placement.put(given), streams)
    validation, held_bytes = self._validation()
    program = build(
      self.method,
      phase,
      state=state,
      best=best,
      frozen=given,
      batch=batch,
      validation_batch=validation,
      steps_per_epoch=epoch,
      placement=self.placement,
      watch=watch,
    )
    return Outline(
      phase=phase,
      steps=min(steps, self.settings.max_steps or steps),
      program=program,
      watch=watch,
      inputs=used.inputs,
      state=state,
      best=best,
      frozen=given,
      batch=batch,
      validation_bytes=held_bytes if best else 0,
    )

  def _batch(
    self, phase: Phase, given: Tree, streams: Mapping[str, Feed]
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What a step is given of all streams together."""
    batch, targets = {}, make_targets(self.method, phase, Watch())
    for name, feed in streams.items():
      rows = jax.eval_shape(dict, feed.batch(0))
      if phase.targets and self.settings.cache_targets:
        rows |= jax.eval_shape(targets, given, rows)
      start = "" if name == MAIN else f"{name}/"
      batch |= {start + entry: value for entry, value in rows.items()}
    return self.placement.put_batch(batch)

  def _validation(self) -> tuple[dict[str, jax.ShapeDtypeStruct], int]:
    """A validation batch, and the bytes of those that stay on a device."""
    source, size = self.splits.validation, self.settings.evaluation_batch_size
    batch = jax.eval_shape(dict, next(pipeline.batches(source, size)))
    batch = self.placement.put_batch(batch)
    count = pipeline.steps_per_epoch(source, size) if stays(source) else 1
    return batch, count * held(batch)
