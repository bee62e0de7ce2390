"""Training a grid of runs: steps, validation, each run's record, checkpoints.

Every run gets the record and the outcome that it would have alone. The state
of all of them is one checkpoint; it is kept until each outcome is on disk, so
that a killed population resumes with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import NonFinite, Preempted
from jaxkd.training import files
from jaxkd.training.checkpoint import Checkpoints, Restored
from jaxkd.training.grid import Member, Together
from jaxkd.training.history import History
from jaxkd.training.phase import Trained
from jaxkd.training.progress import Progress
from jaxkd.training.writers import Writers, lines_end

Tree = Any


@dataclasses.dataclass
class Record:
  """What is written of one run.

  Attributes:
    member: the run.
    history: its metrics.
    error: why it ended, None so far.
  """

  member: Member
  history: History
  error: NonFinite | None = None

  def note(
    self, take: Callable[..., Any], *arguments: Any, **options: Any
  ) -> Any:
    """Calls a method of the history, until the run ends."""
    if self.error is None:
      try:
        return take(*arguments, **options)
      except NonFinite as error:
        self.error = error
    return None


class SideBySide:
  """Trains a grid."""

  def __init__(self, together: Together, folder: Path, *, rolled: bool):
    """Compiles nothing yet.

    Args:
      together: the compiled functions of the grid.
      folder: where its state is saved.
      rolled: whether many steps are one loop on the device.
    """
    self._together, self._grid = together, together.grid
    self._work = self._grid.first.work
    self._folder, self._rolled = folder, rolled
    every = self._work.settings.checkpoint_every_steps
    self._longest = min(self._work.steps, self._work.steps_per_epoch, every)

  def train(self) -> dict[str, Trained | NonFinite]:
    """Trains from the newest checkpoint, or from the start.

    Returns:
      What each run left, by name.

    Raises:
      Preempted: the process was asked to stop; the state was saved.
    """
    work, names = self._work, self._names()
    self.place()
    with contextlib.ExitStack() as stack:
      saved = stack.enter_context(
        Checkpoints(self._folder, keep=work.settings.keep_checkpoints)
      )
      found = self._restore(saved)
      first = found.step if found else 0
      self._records = self._open(stack, saved, found)
      label = f"{work.phase.name} ({len(names)} runs)"
      bar = stack.enter_context(work.show(work.steps, label, start=first))
      began = time.monotonic()
      self.compile(bar)
      compiled = time.monotonic()
      for start, stop in self._chunks(first):
        metrics = self.advance(start, stop)
        sums = self._judge(stop)
        self._write(start, stop, metrics, sums, bar)
        self._save(saved, start, stop)
      seconds = time.monotonic() - compiled
      self._end()
      saved.wait()
    timing = {
      "seconds": round(seconds / len(names), 4),
      "compile_seconds": round((compiled - began) / len(names), 4),
      "steps": work.steps - first,
      "population": len(names),
    }
    return {
      record.member.name: record.error or Trained(outcome, timing)
      for record, outcome in zip(self._records, self._outcomes(), strict=True)
    }

  def _names(self) -> list[str]:
    return [member.name for member in self._grid.members]

  def place(self) -> None:
    """Places what does not change, and the state at the start; comes first."""
    grid, put = self._grid, self._together.put
    self._numbers = [put(x, "s") for x in grid.numbers.values()]
    self._frozen = self._together.frozen
    self._state = put(grid.stack(lambda work: work.state), "s")
    self._best = None
    self._validation: list[Tree] = []
    if self._work.best is not None:
      self._best = put(grid.stack(lambda work: work.best), "s")
      batches = zip(
        *(row[0].work.validation() for row in grid.rows), strict=True
      )
      self._validation = [
        put(jax.tree.map(lambda *x: jnp.stack(x), *batch), "s")
        for batch in batches
      ]
    if self._rolled:
      self._data = put(grid.examples, "s")

  def compile(self, bar: Progress) -> None:
    """Compiles steps and validation."""
    together, began = self._together, time.monotonic()
    bar.note(f"compiling phase {self._work.phase.name} ...")
    always = self._numbers, self._state, self._frozen
    if self._rolled:
      run = together.steps(self._longest)
      step = together.jit(run, "ssfstt-", "st", donate_argnums=1)
      order = self._order(0, self._longest)
      self._run = step.lower(*always, self._data, *order, 1).compile()
    else:
      step = together.jit(together.step, "ssfs", "ss", donate_argnums=1)
      self._run = step.lower(*always, self._batch(0)).compile()
    look = together.jit(together.look, "s", "s")
    self._look = look.lower(self._state).compile()
    if self._best is not None:
      judge = together.jit(together.validate, "ssfs", "s")
      keep = together.jit(together.keep_best, "sss", "s", donate_argnums=0)
      self._judged = judge.lower(*always, self._validation[0]).compile()
      loss = self._judged.out_info["loss"]
      self._kept = keep.lower(self._best, self._state, loss).compile()
    bar.note(f"compiled in {time.monotonic() - began:.1f} s")

  def _order(self, start: int, stop: int) -> tuple[Tree, Tree]:
    """Which examples some steps take, placed."""
    order = self._grid.order(range(start, stop), self._longest)
    return tuple(self._together.put(part, "t") for part in order)

  def _batch(self, step: int) -> Tree:
    """The batches of a step, placed."""
    return self._together.put(self._grid.batch(step), "s")

  def _chunks(self, first: int) -> Iterator[tuple[int, int]]:
    """Steps up to the next epoch, checkpoint or the end."""
    every = self._work.settings.checkpoint_every_steps
    while first < self._work.steps:
      ends = (
        (first // length + 1) * length
        for length in (self._work.steps_per_epoch, every)
      )
      stop = min(self._work.steps, *ends)
      yield first, stop
      first = stop

  def advance(self, start: int, stop: int) -> Tree:
    """Makes steps; returns their metrics [T, S, H]."""
    if not self._rolled:
      metrics = []
      for step in range(start, stop):
        self._state, one = self._run(
          self._numbers, self._state, self._frozen, self._batch(step)
        )
        metrics.append(one)
      return jax.tree.map(lambda *x: jnp.stack(x), *metrics)
    order = self._order(start, stop)
    self._state, metrics = self._run(
      self._numbers, self._state, self._frozen, self._data, *order, stop - start
    )
    return metrics

  def _judge(self, stop: int) -> Tree | None:
    """Validates at the end of an epoch; returns the sums [S, H]."""
    ends = stop == self._work.steps or stop % self._work.steps_per_epoch == 0
    if self._best is None or not ends:
      return None
    sums = [
      self._judged(self._numbers, self._state, self._frozen, batch)
      for batch in self._validation
    ]
    sums = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *sums)
    self._best = self._kept(self._best, self._state, sums["loss"])
    return sums

  def _write(self, start, stop, metrics, sums, bar: Progress) -> None:
    """Records what steps and their validation gave, run by run."""
    metrics, sums = jax.device_get((metrics, sums))
    epoch = start // self._work.steps_per_epoch
    last = stop == self._work.steps
    width = len(self._grid.rows[0])
    for n, record in enumerate(self._records):
      at = divmod(n, width)
      own = jax.tree.map(lambda x, at=at: x[: stop - start, *at], metrics)
      record.note(record.history.block, start, stop, epoch, own, last=last)
      if sums is not None:
        own = jax.tree.map(lambda x, at=at: x[at], sums)
        record.note(record.history.validation, stop - 1, epoch, own)
    at = stop - start - 1
    means = {
      name: float(pair[0][at].sum() / max(pair[1][at].sum(), 1e-9))
      for name, pair in metrics.items()
      if name != "finite"
    }
    bar.update(stop, means)

  def _save(self, saved: Checkpoints, start: int, stop: int) -> None:
    """Saves when it is time, at the end, and when asked to stop."""
    work = self._work
    wanted = any([work.stop.due() for _ in range(start, stop)])
    due = stop % work.settings.checkpoint_every_steps == 0
    if not (due or wanted or stop == work.steps):
      return
    sums = [record.note(record.history.drain) or {} for record in self._records]
    self._name_failed()
    for writers in self._writers:
      writers.offset()
    saved.save(
      stop,
      {"state": self._state, "best": self._best},
      meta={"phase": work.phase.name, "sums": sums},
    )
    if wanted and stop < work.steps:
      saved.wait()
      raise Preempted(
        f"stopped after step {stop} of phase {work.phase.name!r} of "
        f"{len(self._records)} runs as asked; their state is saved, the same "
        "command resumes"
      )

  def _restore(self, saved: Checkpoints) -> Restored | None:
    """Takes over a saved state, which may be of more runs than are left."""
    listed = self._folder / "runs.json"
    names = [[member.name for member in row] for row in self._grid.rows]
    old = files.read_json(listed, default=names)
    files.write_json(listed, old)
    like = {"state": self._state, "best": self._best}
    if old == names:
      found = saved.restore(like)
      if found is not None:
        self._state = found.state["state"]
        self._best = found.state["best"]
      return found
    where = {
      name: (s, h) for s, row in enumerate(old) for h, name in enumerate(row)
    }
    if saved.latest == self._work.steps and set(self._names()) <= set(where):
      return self._subset(saved, like, where, (len(old), len(old[0])))
    shutil.rmtree(self._folder)
    self._folder.mkdir(parents=True)
    files.write_json(listed, names)
    return None

  def _subset(self, saved, like, where, shape) -> Restored:
    """The finished state of some of the runs that were saved."""
    wide = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[2:]), x.dtype), like
    )
    found = saved.restore(wide)
    rows, columns = np.array(
      [[where[m.name] for m in row] for row in self._grid.rows]
    ).transpose(2, 0, 1)
    chosen = jax.tree.map(lambda x: x[rows, columns], found.state)
    self._state, self._best = chosen["state"], chosen["best"]
    sums = [
      found.meta["sums"][s * shape[1] + h]
      for s, h in zip(rows.flat, columns.flat, strict=True)
    ]
    return Restored(found.step, chosen, {**found.meta, "sums": sums})

  def _open(
    self,
    stack: contextlib.ExitStack,
    saved: Checkpoints,
    found: Restored | None,
  ) -> list[Record]:
    """Opens the record of every run where the state stands."""
    work, first = self._work, found.step if found else 0
    self._writers, records = [], []
    for n, member in enumerate(self._grid.members):
      own = member.work
      end = lines_end(own.directory, own.offset + first)
      writers = stack.enter_context(
        Writers.resume(own.directory, end, trackers=work.settings.trackers)
      )
      self._writers.append(writers)
      history = History(
        writers,
        Progress(work.steps, own.label, start=first, clock=time.monotonic),
        phase=work.phase.name,
        offset=own.offset,
        every=work.settings.log_every_steps,
        examples=sum(feed.batch_size for feed in own.feeds.values()),
        diagnose=lambda *what, own=own: own.diagnose(saved.latest, *what),
        sums=found.meta["sums"][n] if found else None,
      )
      records.append(Record(member, history))
    return records

  def _name_failed(self) -> None:
    """Names runs by whose parameters or saved state alone it is told."""
    failed = self._look(self._state)
    self._state = self._state.replace(failed=failed)
    steps = jax.device_get(failed).reshape(-1)
    for record, step in zip(self._records, steps, strict=True):
      if record.error is None and step >= 0:
        record.error = record.member.work.diagnose(None, int(step), {})

  def _end(self) -> None:
    """Writes what is left, and names the runs that failed."""
    for record in self._records:
      record.note(record.history.drain)
    self._name_failed()
    for writers in self._writers:
      writers.offset()

  def _outcomes(self) -> Iterator[Tree]:
    final = self._state if self._best is None else self._best
    for s, row in enumerate(self._grid.rows):
      for h, _ in enumerate(row):
        one = jax.tree.map(lambda x, at=(s, h): x[at], final)
        yield {
          "params": one.params,
          "collections": one.collections,
          "memory": one.memory,
        }
