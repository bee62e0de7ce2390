"""Populations: runs that train side by side, and leave what each leaves alone.

`fit` drives many trainers at once. Runs of one phase whose methods differ in
numbers alone become one program (`grid`): by `vmap`, or with the seeds split
over the devices of the mesh. What cannot be joined, or is slower joined, runs
one by one; the reason is told. A run that is not finite ends alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, NonFinite
from jaxkd.training.grid import Grid, Member, Together
from jaxkd.training.loop import Fitted, Trainer
from jaxkd.training.numbers import differing, name_of
from jaxkd.training.phase import PhaseRun, Stop, Trained
from jaxkd.training.side_by_side import SideBySide

Result = Trained | NonFinite
TRIAL_STEPS = 3
ROLLED_BYTES = 2**30  # data up to this size lie on the device
_logger = logging.getLogger("jaxkd")


@dataclasses.dataclass(frozen=True)
class Way:
  """How the members of a grid are trained.

  Attributes:
    name: `vmap`, `sharded`, or `loop` for one by one.
    reason: why.
    rolled: whether many steps are one loop on the device.
  """

  name: str
  reason: str
  rolled: bool = False


def fit(
  trainers: Mapping[str, Trainer], folder: Path, *, stop: Stop
) -> dict[str, Fitted | NonFinite]:
  """Trains or resumes runs side by side.

  Args:
    trainers: by name.
    folder: where unfinished phases are saved.
    stop: what asks for a stop.

  Returns:
    What each left, or why it ended early; that touches no other run.

  Raises:
    Preempted: the process was asked to stop; the state was saved.
    StorageError: files could not be read or written.
  """
  running = {name: trainer.phases() for name, trainer in trainers.items()}
  waiting: dict[str, PhaseRun] = {}
  ended: dict[str, Fitted | NonFinite] = {}
  sent: dict[str, Trained | None] = dict.fromkeys(running)
  with stop:
    while running:
      for name in [name for name in running if name in sent]:
        try:
          waiting[name] = running[name].send(sent.pop(name))
        except StopIteration as finished:
          ended[name] = finished.value
          del running[name]
      if not waiting:
        continue
      now = _earliest(waiting, trainers)
      for name, result in _train(now, folder).items():
        del waiting[name]
        if isinstance(result, NonFinite):
          ended[name] = result
          running.pop(name).close()
        else:
          sent[name] = result
  shutil.rmtree(folder, ignore_errors=True)  # every outcome is on disk
  return ended


def _earliest(
  waiting: Mapping[str, PhaseRun], trainers: Mapping[str, Trainer]
) -> list[Member]:
  """Those of the least phase, so that runs catch up with each other."""

  def place(name):
    names = [phase.name for phase in trainers[name].method.lasting_phases]
    return names.index(waiting[name].phase.name)

  least = min(map(place, waiting))
  return [
    Member(name, trainers[name].method, trainers[name].seed, work)
    for name, work in waiting.items()
    if place(name) == least
  ]


def _train(members: Sequence[Member], folder: Path) -> dict[str, Result | None]:
  """Results by name; None for those that the store has an outcome for."""
  leaders = {member.work.key or member.name: member for member in members[::-1]}
  results: dict[str, Result | None] = {}
  first = [m for m in members if leaders[m.work.key or m.name] is m]
  for grid in grids(first):
    results |= _train_grid(grid, folder)
  for member in members:
    if member.name not in results:
      result = results[leaders[member.work.key].name]
      results[member.name] = result if isinstance(result, NonFinite) else None
  return results


def grids(members: Sequence[Member]) -> list[Grid]:
  """Arranges members into as few grids as possible.

  Args:
    members: of any phases.
  """
  found: dict[str, list[list[Member]]] = {}
  for member in members:
    groups = found.setdefault(_signature(member.work), [])
    for group in groups:
      if _joins(group, member):
        group.append(member)
        break
    else:
      groups.append([member])
  return [
    part
    for groups in found.values()
    for group in groups
    for part in _traceable(Grid.of(group))
  ]


def _joins(group: Sequence[Member], member: Member) -> bool:
  """Whether a member's method differs from the others in numbers alone."""
  try:
    differing([group[0].method, member.method])
  except ConfigError:
    return False
  return True


def _signature(work: PhaseRun) -> str:
  """All but the values of what a phase is given."""
  given = (
    work.state,
    work.frozen,
    {name: dict(feed.source[0]) for name, feed in work.feeds.items()},
    list(work.validation()) if work.best is not None else [],
  )
  leaves, structure = jax.tree.flatten(given)
  feeds = {n: (len(f.source), f.batch_size) for n, f in work.feeds.items()}
  shapes = [(x.shape, str(x.dtype)) for x in leaves]
  length = work.steps, work.steps_per_epoch, work.offset
  parts = work.phase.name, structure, shapes, feeds, length, work.settings
  return hashlib.sha256(repr(parts).encode()).hexdigest()


def _traceable(grid: Grid) -> list[Grid]:
  """The grid, or one for every setting if a number decides the program."""
  if not grid.numbers:
    return [grid]
  try:
    together = Together(grid, sharded=False)
    jax.eval_shape(together.step, *_example(together))
  except jax.errors.ConcretizationTypeError:
    names = ", ".join(map(name_of, grid.numbers))
    _logger.warning("%s decide the program: a program for every setting", names)
    by_setting: dict[Any, list[Member]] = {}
    order = {m.name: n for n, m in enumerate(grid.members)}
    values = [x.reshape(-1) for x in grid.numbers.values()]
    for member in grid.members:
      key = tuple(float(x[order[member.name]]) for x in values)
      by_setting.setdefault(key, []).append(member)
    return [Grid.of(group) for group in by_setting.values()]
  return [grid]


def _example(together: Together) -> tuple[Any, ...]:
  grid = together.grid
  batch = jax.tree.map(jnp.asarray, grid.batch(0))
  numbers = [jnp.asarray(x) for x in grid.numbers.values()]
  return numbers, grid.stack(lambda w: w.state), together.frozen, batch


def _train_grid(grid: Grid, folder: Path) -> dict[str, Result]:
  """Trains the members of one grid, in the way that is chosen."""
  work = grid.first.work
  folder = folder / work.phase.name / _signature(work)[:16]
  way = choose(grid)
  seeds, settings = len(grid.rows), len(grid.rows[0])
  _logger.warning(
    "phase %s: %d runs (%d x %d) by %s: %s",
    work.phase.name,
    seeds * settings,
    seeds,
    settings,
    way.name,
    way.reason,
  )
  if way.name != "loop":
    together = Together(grid, sharded=way.name == "sharded")
    return SideBySide(together, folder, rolled=way.rolled).train()
  results: dict[str, Result] = {}
  for member in grid.members:
    try:
      results[member.name] = member.work.train()
    except NonFinite as error:
      results[member.name] = error
  return results


def choose(grid: Grid) -> Way:
  """Chooses how a grid is trained.

  Args:
    grid: the runs.
  """
  work, seeds = grid.first.work, len(grid.rows)
  devices = work.placement.mesh.devices.size
  if len(grid.members) == 1:
    return Way("loop", "there is one")
  if work.phase.after_epoch is not None:
    return Way("loop", "a host function follows every epoch")
  if jax.process_count() > 1:
    return Way("loop", "a population lives in one process")
  if devices > 1 and seeds % devices:
    return Way("loop", f"{seeds} seeds cannot be split over {devices} devices")
  convolution = "convolution" in work.program.step.lowered.as_text()
  slow = convolution and jax.default_backend() == "cpu"
  rolled = not slow and grid.example_bytes <= ROLLED_BYTES
  if devices > 1:
    return Way("sharded", f"{seeds} seeds over {devices} devices", rolled)
  if not slow:
    return Way("vmap", "no convolution on a CPU", rolled)
  joined, alone = _trial(grid)
  reason = f"{joined:.1f} ms a step of all, {alone:.1f} ms one by one"
  return Way("vmap" if joined < alone else "loop", reason)


def _trial(grid: Grid) -> tuple[float, float]:
  """Milliseconds of a step of all members, joined and one by one."""
  together, work = Together(grid, sharded=False), grid.first.work
  numbers, state, frozen, batch = _example(together)
  step = jax.jit(together.step, donate_argnums=1)
  joined = _timed(lambda s: step(numbers, s, frozen, batch)[0], state)
  one = work.placement.put_batch(jax.tree.map(lambda x: x[0], batch))
  alone = _timed(
    lambda s: work.program.step(s, work.frozen, one)[0],
    jax.tree.map(jnp.copy, work.state),
  )
  return joined, alone * len(grid.members)


def _timed(step: Callable[[Any], Any], state: Any) -> float:
  state = jax.block_until_ready(step(state))
  began = time.perf_counter()
  for _ in range(TRIAL_STEPS):
    state = step(state)
  jax.block_until_ready(state)
  return 1e3 * (time.perf_counter() - began) / TRIAL_STEPS
