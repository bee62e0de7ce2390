"""A folder of finished phases that several methods share.

A phase is a pure function of its compiled program, the variables it starts
from and its streams; the digest of all of them names its outcome. The lines of
metrics travel with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

from jaxkd.data import pipeline
from jaxkd.data.source import ArraySource
from jaxkd.training import checkpoint, files
from jaxkd.training.history import record
from jaxkd.training.phase import PhaseRun
from jaxkd.training.workdir import Run
from jaxkd.training.writers import lines_end


def key_of_phase(work: PhaseRun, validation: ArraySource) -> str:
  """Digest of everything that decides a phase's outcome and record."""
  parts = (
    work.phase.name,
    work.program.fingerprint,
    checkpoint.tree_digest({"state": work.state, "frozen": work.frozen}),
    [
      (
        name,
        pipeline.fingerprint(feed.source),
        feed.batch_size,
        feed.seed,
        feed.replace,
      )
      for name, feed in work.feeds.items()
    ],
    pipeline.fingerprint(validation),
    (work.steps, work.steps_per_epoch),
    work.settings.evaluation_batch_size,
    work.settings.log_every_steps,
  )
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Shared:
  """The place of one phase's outcome, and the run that takes or gives it.

  Attributes:
    folder: in the store.
    run: the run.
    offset: steps that the run made in earlier phases.
  """

  folder: Path
  run: Run
  offset: int

  def exists(self) -> bool:
    """Whether a method has made the outcome."""
    return self.folder.exists()

  def take(self, stage: Path) -> None:
    """Copies the outcome and its lines into the run."""
    with record(self.run.root, self.offset) as writers:
      for line in files.read_json(self.folder / "lines.json"):
        writers.write(**{**line, "step": line["step"] + self.offset})
      writers.offset()
    files.copy_folder(self.folder / "outcome", stage)

  def give(self, stage: Path) -> None:
    """Copies the run's outcome and its lines into the store."""
    lines: list[dict[str, Any]] = files.read_lines(
      self.run.metrics, start=lines_end(self.run.root, self.offset)
    )
    building = self.folder.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    files.copy_folder(stage, building / "outcome")
    files.write_json(
      building / "lines.json",
      [{**line, "step": line["step"] - self.offset} for line in lines],
    )
    building.rename(self.folder)
