"""From the device to the record: metrics leave it in windows, never singly.

A window of steps is fetched when the next one is complete, so that fetching
waits for nothing that the device still works on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.errors import NonFinite
from jaxkd.parallel import processes
from jaxkd.training.progress import Progress
from jaxkd.training.writers import Writers, lines_end

Sums = dict[str, list[float]]
Diagnose = Callable[[int, Mapping[str, float]], NonFinite]


class _Silent(Writers):
  """What processes other than 0 have: it writes nothing."""

  def __init__(self):
    pass

  def write(self, *args: Any, **kwargs: Any) -> None:
    pass

  def flush(self) -> None:
    pass

  def offset(self) -> int:
    return 0

  def close(self) -> None:
    pass


def record(directory: Path, step: int, trackers: Sequence[str] = ()) -> Writers:
  """Continues a run's record after the lines of its first steps.

  Args:
    directory: the folder of the run.
    step: steps over all phases that count.
    trackers: as for `Writers`.

  Returns:
    Writers; on processes other than 0 they write nothing.

  Raises:
    StorageError: the file cannot be read or written.
  """
  if not processes.is_main():
    return _Silent()
  return Writers.resume(directory, lines_end(directory, step), trackers)


@dataclasses.dataclass
class _Entry:
  """Metrics that become one line."""

  split: str
  step: int  # the last step, over all phases
  epoch: int
  sums: Sums  # of steps made before a restart
  metrics: list[tuple[int, Any]] = dataclasses.field(default_factory=list)
  complete: bool = False


class History:
  """Collects the metrics of a phase and writes them as lines."""

  def __init__(
    self,
    writers: Writers,
    progress: Progress,
    *,
    phase: str,
    offset: int,
    every: int,
    examples: int,
    diagnose: Diagnose,
    sums: Sums | None = None,
  ):
    """Starts a record.

    Args:
      writers: where lines go.
      progress: what shows them.
      phase: the phase's name.
      offset: steps made in earlier phases.
      every: steps to a line.
      examples: examples in a step.
      diagnose: makes the error for a step of this phase that was not finite.
      sums: an unfinished line from a checkpoint, see `drain`.
    """
    self._writers, self._progress = writers, progress
    self._phase, self._offset, self._every = phase, offset, every
    self._examples, self._diagnose = examples, diagnose
    self._carried: Sums = sums or {}
    self._shown = progress.step
    self._queue: list[_Entry] = []

  def train(self, step: int, epoch: int, metrics: Any, *, last: bool) -> None:
    """Takes the metrics of one step.

    Args:
      step: 0-based step of this phase.
      epoch: its 0-based epoch.
      metrics: (sum, weight) pairs on the device, `finite` among them.
      last: whether it is the phase's last step.
    """
    self._take(step, step + 1, epoch, metrics, last)

  def block(
    self, first: int, stop: int, epoch: int, metrics: Any, *, last: bool
  ) -> None:
    """Takes the metrics of steps that were fetched together.

    Args:
      first: 0-based step of this phase.
      stop: the step after the last one.
      epoch: their 0-based epoch.
      metrics: as for `train`, each with a leading axis of steps.
      last: whether they end with the phase's last step.
    """
    for start in range(first, stop):
      if start == first or start % self._every == 0:
        end = min(stop, (start // self._every + 1) * self._every)
        part = slice(start - first, end - first)
        window = jax.tree.map(lambda x, part=part: x[part], metrics)
        self._take(start, end, epoch, window, last and end == stop)

  def _take(self, first: int, stop: int, epoch: int, metrics: Any, last: bool):
    entry = self._open_entry()
    entry.metrics.append((first, metrics))
    entry.step, entry.epoch = self._offset + stop, epoch
    if last or stop % self._every == 0:
      entry.complete = True
      self._write(keep=1)

  def validation(self, step: int, epoch: int, metrics: Any) -> None:
    """Takes the validation metrics after a 0-based step."""
    entry = _Entry("validation", self._offset + step + 1, epoch, {})
    entry.metrics.append((step, metrics))
    entry.complete = True
    self._queue.insert(self._before_open(), entry)

  def drain(self) -> Sums:
    """Writes all that is complete and checks all that was taken.

    Returns:
      Sums of the line that is not complete yet, for a checkpoint.

    Raises:
      NonFinite: if a step was not finite.
    """
    self._write(keep=0)
    if not self._queue:
      return self._carried
    (entry,) = self._queue
    self._fold(entry)
    return {name: list(pair) for name, pair in entry.sums.items()}

  def _open_entry(self) -> _Entry:
    if not self._queue or self._queue[-1].complete:
      self._queue.append(_Entry("train", 0, 0, self._carried))
      self._carried = {}
    return self._queue[-1]

  def _before_open(self) -> int:
    """Where a line goes that comes before the unfinished one."""
    if self._queue and not self._queue[-1].complete:
      return len(self._queue) - 1
    return len(self._queue)

  def _write(self, keep: int) -> None:
    complete = [entry for entry in self._queue if entry.complete]
    for entry in complete[: len(complete) - keep]:
      self._queue.remove(entry)
      self._fold(entry)
      values = {
        name: total / weight if weight else math.nan
        for name, (total, weight) in entry.sums.items()
      }
      self._writers.write(
        self._phase, entry.step, entry.epoch, entry.split, values
      )
      if entry.split == "train":
        done = entry.step - self._offset
        self._progress.update(
          done, values, examples=(done - self._shown) * self._examples
        )
        self._shown = done

  def _fold(self, entry: _Entry) -> None:
    """Fetches an entry's metrics and adds them up in float64."""
    fetched = jax.device_get([metrics for _, metrics in entry.metrics])
    firsts = [first for first, _ in entry.metrics]
    entry.metrics = []
    for first, metrics in zip(firsts, fetched, strict=True):
      finite = np.atleast_1d(metrics.pop("finite", True))
      if not finite.all():
        bad = int(np.argmin(finite))
        pairs = jax.tree.map(lambda x, bad=bad: np.atleast_1d(x)[bad], metrics)
        means = {k: float(s / w) for k, (s, w) in pairs.items() if w}
        raise self._diagnose(first + bad, means)
      for name, (total, weight) in metrics.items():
        pair = entry.sums.setdefault(name, [0.0, 0.0])
        pair[0] += float(np.sum(total, dtype=np.float64))
        pair[1] += float(np.sum(weight, dtype=np.float64))
