"""Runs of one phase side by side: seeds and numbers as leading axes.

Every array of a run gets two axes in front, [S, H, ...]: S seeds and H settings
of the method's numbers. What the settings of a seed have in common, the batches
and the frozen roles, has the first axis alone, so that one forward pass of a
teacher serves all of them; a frozen role that is the same for all seeds has
neither.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.data import pipeline
from jaxkd.method import Method, Phase
from jaxkd.parallel.mesh import AXES
from jaxkd.training import checkpoint
from jaxkd.training.numbers import Path, differing, with_numbers
from jaxkd.training.phase import PhaseRun
from jaxkd.training.program import keep_best, make_validation
from jaxkd.training.state import State
from jaxkd.training.step import first_failure, make_step

Array = jax.Array
Tree = Any


@dataclasses.dataclass(frozen=True)
class Member:
  """A run that wants a phase trained.

  Attributes:
    name: tells runs apart.
    method: its method.
    seed: its seed.
    work: its phase, ready to train.
  """

  name: str
  method: Method
  seed: int
  work: PhaseRun


@dataclasses.dataclass(frozen=True)
class Grid:
  """Members by seed and setting.

  Attributes:
    rows: members, S rows of H.
    numbers: where their methods differ, an array [S, H] by path.
  """

  rows: tuple[tuple[Member, ...], ...]
  numbers: Mapping[Path, np.ndarray]

  @classmethod
  def of(cls, members: Sequence[Member]) -> Grid:
    """Arranges members; as one column where settings share nothing.

    Args:
      members: of one phase, their methods different in numbers alone.
    """
    found = differing([member.method for member in members])
    settings = list(zip(*found.values(), strict=True)) or [()] * len(members)
    seeds = dict.fromkeys(member.seed for member in members)
    distinct = dict.fromkeys(settings)
    at = {(m.seed, s): m for m, s in zip(members, settings, strict=True)}
    rows = [[member] for member in members]
    if len(distinct) > 1 and len(at) == len(seeds) * len(distinct):
      square = [[at[seed, one] for one in distinct] for seed in seeds]
      if all(len(set(map(_given, row))) == 1 for row in square):
        rows = square
    order = {member.name: n for n, member in enumerate(members)}
    where = np.array([[order[member.name] for member in row] for row in rows])
    numbers = {
      path: np.asarray(values, np.float32)[where]
      for path, values in found.items()
    }
    return cls(tuple(map(tuple, rows)), numbers)

  @property
  def first(self) -> Member:
    """Stands for all in what they have in common."""
    return self.rows[0][0]

  @property
  def members(self) -> list[Member]:
    """All of them, row by row."""
    return [member for row in self.rows for member in row]

  def stack(self, of: Callable[[PhaseRun], Tree]) -> Tree:
    """Arrays [S, H, ...] of a tree that every member has."""
    rows = [_stack([of(m.work) for m in row]) for row in self.rows]
    return _stack(rows)

  def stack_seeds(self, of: Callable[[PhaseRun], Tree]) -> Tree:
    """Arrays [S, ...] of a tree that the settings of a seed share."""
    return _stack([of(row[0].work) for row in self.rows])

  @functools.cached_property
  def one_for_all(self) -> dict[str, bool]:
    """By frozen role, whether it is the same for all seeds."""
    trees = [row[0].work.frozen for row in self.rows]
    return {
      role: len({checkpoint.tree_digest(_role(tree, role)) for tree in trees})
      == 1
      for role in trees[0]["params"]
    }

  @property
  def examples(self) -> dict[str, Tree]:
    """All examples that it reads, [S, N, ...] by feed and entry."""
    return self.stack_seeds(
      lambda work: {
        name: feed.source.take(np.arange(len(feed.source)))
        for name, feed in work.feeds.items()
      }
    )

  @property
  def example_bytes(self) -> int:
    """Their size."""
    return sum(
      len(feed.source) * sum(x.nbytes for x in feed.source.take([0]).values())
      for row in self.rows
      for feed in row[0].work.feeds.values()
    )

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Batch number `step` of every seed, [S, B, ...] by entry."""
    batch = {}
    for name in self.first.work.feeds:
      parts = [row[0].work.feeds[name].batch(step) for row in self.rows]
      for entry in parts[0]:
        key = f"{name}/{entry}" if name else entry
        batch[key] = np.stack([part[entry] for part in parts])
    return batch

  def order(
    self, steps: range, length: int
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Example numbers and masks [T, S, B] by feed, filled up to a length."""
    rows, masks = {}, {}
    for name in self.first.work.feeds:
      seeds = [
        [row[0].work.feeds[name].rows(step) for step in steps]
        for row in self.rows
      ]
      rows[name], masks[name] = (
        np.stack([[pair[kind] for pair in pairs] for pairs in seeds], axis=1)
        for kind in (0, 1)
      )
    missing = length - len(steps)
    return jax.tree.map(
      lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)),
      (rows, masks),
    )


@dataclasses.dataclass(frozen=True)
class Together:
  """The compiled functions of a grid.

  Attributes:
    grid: the runs.
    sharded: whether the seeds are split over the devices of the mesh.
  """

  grid: Grid
  sharded: bool

  @property
  def _work(self) -> PhaseRun:
    return self.grid.first.work

  def _bound(self, numbers: Sequence[Array]) -> tuple[Method, Phase]:
    """The method and the phase with numbers that may be traced."""
    if not numbers:
      return self.grid.first.method, self._work.phase
    given = dict(zip(self.grid.numbers, numbers, strict=True))
    method = with_numbers(self.grid.first.method, given)
    named = {phase.name: phase for phase in method.lasting_phases}
    phase = named[self._work.phase.name].planned(self._work.steps_per_epoch)
    return method, phase

  @property
  def frozen_axes(self) -> Tree:
    """Over seeds, for every frozen role."""
    axes = {r: None if same else 0 for r, same in self.grid.one_for_all.items()}
    frozen = self._work.frozen
    return {kind: {r: axes[r] for r in frozen[kind]} for kind in frozen}

  def _over(self, function: Callable[..., Tree]) -> Callable[..., Tree]:
    """`(numbers, state, frozen, batch)` of one run -> of the grid."""
    settings = jax.vmap(function, in_axes=(0, 0, None, None))
    return jax.vmap(settings, in_axes=(0, 0, self.frozen_axes, 0))

  @property
  def step(self) -> Callable[..., Tree]:
    """`(numbers, state, frozen, batch) -> (state, metrics)`."""

    def one(numbers, state, frozen, batch):
      epoch = self._work.steps_per_epoch
      step = make_step(*self._bound(numbers), steps_per_epoch=epoch)
      return step(state, frozen, batch)

    return self._over(one)

  @property
  def validate(self) -> Callable[..., Tree]:
    """`(numbers, state, frozen, batch) -> metrics`."""

    def one(numbers, state, frozen, batch):
      return make_validation(*self._bound(numbers))(state, frozen, batch)

    return self._over(one)

  def steps(self, length: int) -> Callable[..., Tree]:
    """Many steps in one loop on the device, on data that lie there.

    Args:
      length: at most so many steps.

    Returns:
      `(numbers, state, frozen, data, rows, masks, count) -> (state, metrics)`:
      data [S, N, ...] by feed and entry, rows and masks [T, S, B] by feed;
      metrics [T, S, H], of which the first `count` are filled.
    """
    step = jax.jit(self.step)  # traced once for its shapes and for the loop

    def run(numbers, state, frozen, data, rows, masks, count):
      def batch_at(t):
        return gathered(
          data,
          {name: x[t] for name, x in rows.items()},
          {name: x[t] for name, x in masks.items()},
        )

      shapes = jax.eval_shape(step, numbers, state, frozen, batch_at(0))[1]
      empty = jax.tree.map(
        lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes
      )

      def body(t, carry):
        state, kept = carry
        state, metrics = step(numbers, state, frozen, batch_at(t))
        return state, jax.tree.map(lambda k, x: k.at[t].set(x), kept, metrics)

      return jax.lax.fori_loop(0, count, body, (state, empty))

    return run

  def jit(
    self,
    function: Callable[..., Tree],
    arguments: str,
    results: str,
    **options: Any,
  ) -> Callable[..., Tree]:
    """Compiles a function, over all devices if the seeds are split.

    Args:
      function: of the grid.
      arguments: a letter each: `s` has the seeds in front, `t` steps and then
        the seeds, `f` is the frozen trees, `-` has no seeds.
      results: likewise.
      **options: of `jax.jit`.
    """
    if self.sharded:
      one = results if len(results) == 1 else None
      function = jax.shard_map(
        function,
        mesh=self._work.placement.mesh.devices,
        in_specs=tuple(map(self._spec, arguments)),
        out_specs=self._spec(one) if one else tuple(map(self._spec, results)),
        check_vma=False,
      )
    return jax.jit(function, **options)

  def _spec(self, letter: str) -> Tree:
    if letter == "f":
      return jax.tree.map(
        lambda axis: self._spec("-" if axis is None else "s"),
        self.frozen_axes,
        is_leaf=lambda x: x is None,
      )
    return {
      "s": PartitionSpec(AXES),
      "t": PartitionSpec(None, AXES),
      "-": PartitionSpec(),
    }[letter]

  def put(self, tree: Tree, letter: str) -> Tree:
    """Places arrays for an argument of `jit`."""
    mesh = self._work.placement.mesh.devices
    specs = self._spec(letter) if self.sharded else PartitionSpec()
    shardings = jax.tree.map(
      lambda spec: NamedSharding(mesh, spec),
      specs,
      is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
    return jax.device_put(tree, shardings)

  @property
  def frozen(self) -> Tree:
    """The frozen trees, each with the axis that `frozen_axes` says."""
    axes, one = self.frozen_axes, self._work.frozen
    stacked = {
      kind: {
        role: tree
        if axes[kind][role] is None
        else self.grid.stack_seeds(lambda w, k=kind, r=role: w.frozen[k][r])
        for role, tree in trees.items()
      }
      for kind, trees in one.items()
    }
    return self.put(stacked, "f")

  @property
  def look(self) -> Callable[[State], jax.Array]:
    """`(state) -> failed`."""
    look = functools.partial(first_failure, self._work.phase)
    return jax.vmap(jax.vmap(look))

  @property
  def keep_best(self) -> Callable[..., Tree]:
    """`(best, state, loss) -> best`."""
    return jax.vmap(jax.vmap(keep_best))


def gathered(
  data: Mapping[str, Mapping[str, Array]],
  rows: Mapping[str, Array],
  masks: Mapping[str, Array],
) -> dict[str, Array]:
  """The batches of all seeds, as `pipeline.stream` names their entries.

  Args:
    data: [S, N, ...] by feed and entry.
    rows: example numbers [S, B] by feed.
    masks: [S, B] by feed.

  Returns:
    [S, B, ...] by entry.
  """
  batch = {}
  for feed, entries in data.items():
    start = f"{feed}/" if feed else ""
    for name, values in entries.items():
      batch[start + name] = jax.vmap(lambda x, i: x[i])(values, rows[feed])
    batch[f"{start}mask"] = masks[feed]
  return batch


def _stack(trees: Sequence[Tree]) -> Tree:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _role(frozen: Tree, role: str) -> Tree:
  return {kind: trees[role] for kind, trees in frozen.items() if role in trees}


def _given(member: Member) -> str:
  """Digest of what settings have to share."""
  feeds = sorted(member.work.feeds.items())
  parts = [
    (name, pipeline.fingerprint(feed.source), feed.seed, feed.batch_size)
    for name, feed in feeds
  ]
  return repr((parts, checkpoint.tree_digest(member.work.frozen)))
