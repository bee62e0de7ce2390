"""One phase at work: steps, validation, record and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.data.pipeline import Feed
from jaxkd.errors import ConfigError, NonFinite, Preempted, StorageError
from jaxkd.method import Phase
from jaxkd.parallel import Placement, processes
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.feeds import join
from jaxkd.training.history import History, record
from jaxkd.training.program import Program
from jaxkd.training.progress import Progress
from jaxkd.training.state import Best, State

Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How a run is executed; none of it changes the method.

  Attributes:
    log_every_steps: steps averaged into one line of metrics.
    checkpoint_every_steps: steps between checkpoints inside a phase.
    keep_checkpoints: checkpoints kept of the running phase.
    evaluation_batch_size: examples in a batch of validation and test.
    target_batch_size: examples in a batch when targets are cached; small
      ones hold the inside of several teachers at once.
    cache_targets: whether a phase's targets are computed once per example and
      kept in host memory, or at every step.
    targets: a folder of `jaxkd cache-targets`: the roles whose outputs are
      there are not run while phases train, see `jaxkd.targets`.
    max_steps: at most so many steps in a phase; None for no limit.
    trackers: further places for metrics, see `training.writers`.
  """

  log_every_steps: int = 10
  checkpoint_every_steps: int = 500
  keep_checkpoints: int = 2
  evaluation_batch_size: int = 256
  target_batch_size: int = 32
  cache_targets: bool = True
  targets: str | None = None
  max_steps: int | None = None
  trackers: tuple[str, ...] = ()

  def __post_init__(self):
    """Checks the numbers."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type.startswith("int") and value is not None and value < 1:
        raise ConfigError(f"Settings.{field.name}={value}: expected at least 1")

  @property
  def batch_sizes(self) -> tuple[int, int]:
    """All sizes of batches beside that of training."""
    return self.evaluation_batch_size, self.target_batch_size


class Stop:
  """Remembers a request to stop; a second one takes effect at once.

  With several processes it is enough to ask one: all stop after one step.

  Attributes:
    requested: whether a signal has asked for it.
  """

  def __init__(self, after: int | None = None):
    """Listens from `__enter__` on.

    Args:
      after: also stop after so many steps, to rehearse a preemption.
    """
    self.requested = self._rehearsed = False
    self._left = after
    self._old: dict[int, Any] = {}

  def due(self) -> bool:
    """Counts a step; returns whether to stop after it."""
    if self._left is not None:
      self._left -= 1
      self._rehearsed |= self._left == 0
    return processes.stopping(self.requested) or self._rehearsed

  def __enter__(self) -> Stop:
    for number in (signal.SIGTERM, signal.SIGINT):
      try:
        self._old[number] = signal.signal(number, self._handle)
      except ValueError:  # only the main thread may
        break
    return self

  def _handle(self, number, frame) -> None:
    del frame
    self.requested = True
    signal.signal(number, self._old[number])

  def __exit__(self, *_: object) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class Trained:
  """What training a phase left.

  Attributes:
    outcome: `params` and `collections` of the trained roles, and `memory`.
    timing: seconds and rates by name.
  """

  outcome: Tree
  timing: Mapping[str, Any]


@dataclasses.dataclass(kw_only=True)
class PhaseRun:
  """What one phase needs to train.

  Attributes:
    phase: the phase.
    label: shown beside the progress.
    program: its compiled functions.
    state: where it starts, placed.
    best: the snapshot before any validation, placed; None without one.
    frozen: trees of the frozen roles, as they are kept.
    feeds: the streams of examples, cached targets among their entries.
    validation: makes one pass over the placed validation batches.
    after_epoch: `(state, epoch) -> state`, the method's host function.
    steps: length.
    steps_per_epoch: steps between validations.
    offset: steps made in earlier phases.
    directory: of the run's record.
    checkpoints: folder of the phase's checkpoints.
    settings: how it is executed.
    placement: on which devices.
    show: makes the progress.
    stop: whether the process was asked to stop.
    key: names the outcome among methods that share it; None if none do.
  """

  phase: Phase
  label: str
  program: Program
  state: State
  best: Best | None
  frozen: Tree
  feeds: Mapping[str, Feed]
  validation: Callable[[], Iterable[Mapping[str, jax.Array]]]
  after_epoch: Callable[[State, int], State]
  steps: int
  steps_per_epoch: int
  offset: int
  directory: Path
  checkpoints: Path
  settings: Settings
  placement: Placement
  show: Callable[..., Progress]
  stop: Stop
  key: str | None = None

  def train(self) -> Trained:
    """Trains from the newest checkpoint, or from the start."""
    settings = self.settings
    self._stream = join(self.feeds, self.placement.part)
    with Checkpoints(
      self.checkpoints, keep=settings.keep_checkpoints
    ) as self._saved:
      first, sums = self._restore()
      with (
        record(
          self.directory, self.offset + first, settings.trackers
        ) as self._writers,
        self.show(self.steps, self.label, start=first) as bar,
      ):
        self._compile(bar)
        self._history = History(
          self._writers,
          bar,
          phase=self.phase.name,
          offset=self.offset,
          every=settings.log_every_steps,
          examples=self._batch_size,
          diagnose=self._diagnose,
          sums=sums,
        )
        began = time.monotonic()
        for step in range(first, self.steps):
          self._step(step)
        self._drain()
        seconds = time.monotonic() - began
        self._writers.offset()
    steps = self.steps - first
    timing = {
      "seconds": round(seconds, 3),
      "compile_seconds": round(self.program.seconds, 3),
      "steps": steps,
      "examples_per_second": round(steps * self._batch_size / seconds, 1),
    }
    return Trained(self._outcome(), timing)

  @property
  def _batch_size(self) -> int:
    return sum(feed.batch_size for feed in self.feeds.values())

  def _restore(self) -> tuple[int, Any]:
    restored = self._saved.restore(
      {"state": self.state, "best": self.best}, stream=self._stream
    )
    if restored is None:
      return 0, None
    self.state, self.best = restored.state["state"], restored.state["best"]
    return restored.step, restored.meta["sums"]

  def _compile(self, bar: Progress) -> None:
    if not self.program.seconds:
      bar.note(f"compiling phase {self.phase.name} ...")
      self.program.compile()
      seconds = self.program.seconds
      bar.note(f"compiled in {seconds:.1f} s", seconds=seconds)

  def _step(self, step: int) -> None:
    """One step and what falls due after it."""
    epoch, last = step // self.steps_per_epoch, step == self.steps - 1
    batch = self.placement.put_batch(next(self._stream))
    self.state, metrics = self.program.step(self.state, self.frozen, batch)
    self._history.train(step, epoch, metrics, last=last)
    ends = last or (step + 1) % self.steps_per_epoch == 0
    if ends and self.phase.after_epoch is not None:
      self.state = self.after_epoch(self.state, epoch)
    if ends and self.best is not None:
      sums = self._validate()
      self._history.validation(step, epoch, sums)
      self.best = self.program.keep_best(self.best, self.state, sums["loss"])
    due = (step + 1) % self.settings.checkpoint_every_steps == 0
    stop = self.stop.due()
    if (due or stop) and not last:
      self._save(step + 1)
      if stop:
        processes.decide(self._saved.wait)
        raise Preempted(
          f"stopped after step {step + 1} of phase {self.phase.name!r} as "
          "asked; its state is saved, the same command resumes"
        )

  def _validate(self) -> Any:
    """Sums of the validation loss and metrics, left on the device."""
    sums = [
      self.program.validate(self.state, self.frozen, batch)
      for batch in self.validation()
    ]
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *sums)

  def _save(self, step: int) -> None:
    sums = self._drain()
    self._writers.offset()  # the record is on disk before the state
    self._saved.save(
      step,
      {"state": self.state, "best": self.best},
      stream=self._stream,
      meta={"phase": self.phase.name, "sums": sums},
    )

  def _drain(self) -> Any:
    """Sums of the record's unfinished line, if all so far is finite."""
    sums = self._history.drain()
    failed = int(self.program.look(self.state))
    if failed >= 0:
      raise self._diagnose(failed, {})
    return sums

  def _outcome(self) -> Tree:
    final = self.state if self.best is None else self.best
    return {
      "params": final.params,
      "collections": final.collections,
      "memory": final.memory,
    }

  def _diagnose(self, step: int, means: Mapping[str, float]) -> NonFinite:
    with contextlib.suppress(StorageError):
      self._saved.wait()
    return self.diagnose(self._saved.latest, step, means)

  def diagnose(
    self, saved: int | None, step: int, means: Mapping[str, float]
  ) -> NonFinite:
    """The error that names what was not finite at a step.

    Args:
      saved: the step of the last checkpoint.
      step: 0-based step of this phase.
      means: its metrics.
    """
    stream = join(self.feeds)
    batch = next(b for n, b in enumerate(stream) if n == step)
    found = []
    for name, rows in batch.items():
      if np.issubdtype(rows.dtype, np.inexact):
        bad = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if bad.any():
          ids = ", ".join(str(i) for i in batch["index"][bad][:5])
          found.append(f"batch entry {name!r} of training example {ids}")
    terms = ", ".join(f"{k}={v:g}" for k, v in sorted(means.items()))
    return NonFinite(
      f"phase {self.phase.name!r}, step {step}: "
      + ("; ".join(found) + " not finite" if found else "a loss or parameter")
      + (" is" if found else " is not finite, though the data are")
      + (f". Metrics of the step: {terms}" if terms else "")
      + ". Nothing of it was saved; last "
      + f"checkpoint: {f'step {saved} of this phase' if saved else 'none'}"
    )
