"""Experiments: a method, a task and a budget, over seeds, in a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxkd import identity
from jaxkd.data.source import Task
from jaxkd.errors import ConfigError, Preempted
from jaxkd.evaluation import Classification, Evaluation
from jaxkd.method import Method
from jaxkd.parallel import Frozen, Mesh, Placement, Rules, processes
from jaxkd.result import Result
from jaxkd.runs import MAIN, Runs, cached_splits, train_together
from jaxkd.training import files
from jaxkd.training.environment import environment
from jaxkd.training.phase import Settings, Stop
from jaxkd.training.progress import Progress
from jaxkd.training.progress import progress as make_progress
from jaxkd.training.target_files.folder import open_targets
from jaxkd.training.workdir import Workdir

logger = logging.getLogger("jaxkd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A method on a task, with controls on the same seeds and splits.

  Attributes:
    method: what is studied.
    task: data and classes.
    controls: other methods beside it, by label.
    seeds: each gives a split, an initialisation and an order of examples.
    settings: how runs are executed.
    mesh: on how many devices.
    rules: how a role's arrays are split over the mesh, by role; see
      `Placement.rules`.
    frozen: how a role is kept while it is not trained, by role.
    evaluation: what is measured.
    measured_on: the split; `validation` where settings are still chosen.
    metric: the number that studies compare, such as `student/accuracy`; the
      deployed predictor's, of the evaluation, if not given.
  """

  method: Method
  task: Task
  controls: Mapping[str, Method] = dataclasses.field(default_factory=dict)
  seeds: tuple[int, ...] = (0,)
  settings: Settings = dataclasses.field(default_factory=Settings)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  rules: Mapping[str, Rules] = dataclasses.field(default_factory=dict)
  frozen: Mapping[str, Frozen] = dataclasses.field(default_factory=dict)
  evaluation: Evaluation = dataclasses.field(default_factory=Classification)
  measured_on: Literal["test", "validation"] = "test"
  metric: str | None = None

  def __post_init__(self):
    """Checks the seeds, the labels and the split."""
    if self.measured_on not in ("test", "validation"):
      raise ConfigError(
        f"Experiment.measured_on={self.measured_on!r}: expected test or "
        "validation"
      )
    seeds = tuple(self.seeds)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
      raise ConfigError(
        f"Experiment.seeds={seeds}: expected different numbers from 0 on"
      )
    object.__setattr__(self, "seeds", seeds)
    if MAIN in self.controls:
      raise ConfigError(
        f"Experiment.controls: the label {MAIN!r} is the method's own"
      )

  @property
  def methods(self) -> dict[str, Method]:
    """The method, under the label `main`, and the controls."""
    return {MAIN: self.method, **self.controls}

  @property
  def placement(self) -> Placement:
    """Where batches and roles lie."""
    return Placement(self.mesh, self.rules, self.frozen)

  @property
  def identity(self) -> dict[str, Any]:
    """What a workdir belongs to: all but seeds, devices, the table's metric.

    Of weights that are loaded, the fingerprints too; of cached targets, what
    they show.
    """
    described = {
      field.name: identity.describe(getattr(self, field.name))
      for field in dataclasses.fields(self)
      if field.name not in ("seeds", "mesh", "metric")
    }
    loaded = {
      f"{label}/{role}": network.weights.fingerprint()
      for label, method in self.methods.items()
      for role, network in method.roles.items()
      if network.weights is not None
    }
    described |= {"weights": loaded} if loaded else {}
    targets = open_targets(self.settings.targets)
    return {**described, "targets": targets.shows} if targets else described


def fit(
  method: Method,
  task: Task,
  *,
  workdir: str | Path | None = None,
  **options: Any,
) -> Result:
  """Trains and evaluates a method, and resumes in a workdir that has begun.

  Args:
    method: the method.
    task: the task.
    workdir: the run directory; a new temporary one by default.
    **options: further fields of `Experiment`: controls, seeds, settings, mesh.

  Returns:
    The result.
  """
  if workdir is None:
    workdir = tempfile.mkdtemp(prefix="jaxkd-")
    logger.info("workdir %s", workdir)
  return run(Experiment(method=method, task=task, **options), workdir)


def run(
  experiment: Experiment,
  workdir: str | Path,
  *,
  config_text: str = "",
  command: str = "",
  store: Path | None = None,
  show: Callable[..., Progress] = make_progress,
  stop: Stop | None = None,
  population: bool = False,
) -> Result:
  """Runs or resumes an experiment.

  Args:
    experiment: what to run.
    workdir: the run directory; absent, empty, or this experiment's.
    config_text: the operative gin text, kept in the workdir.
    command: the command line, kept in the workdir.
    store: folder of finished phases that several experiments share.
    show: makes the progress of a phase.
    stop: what asks for a stop.
    population: trains seeds and controls side by side, see
      `training.population`.

  Returns:
    The result, as in summary.json.

  With several processes, see `jaxkd.parallel.processes`, each calls this.

  Raises:
    JaxkdError: see `jaxkd.errors`; the workdir can be resumed.
  """
  if population and processes.count() > 1:
    raise ConfigError(
      f"population: trained by one process, there are {processes.count()}"
    )
  kept = len(experiment.seeds) if population else 1
  with opened(
    experiment,
    workdir,
    config_text=config_text,
    command=command,
    store=store,
    show=show,
    stop=stop,
    splits=cached_splits(experiment, kept),
  ) as (runs, found):
    if population:
      train_together([(runs, found)])
    return runs.finish(found)


@contextlib.contextmanager
def opened(
  experiment: Experiment,
  workdir: str | Path,
  *,
  config_text: str = "",
  command: str = "",
  **options: Any,
) -> Iterator[tuple[Runs, Workdir]]:
  """Opens a workdir for an experiment, checked before anything is written.

  Args:
    experiment: what to run.
    workdir: as for `run`.
    config_text: likewise.
    command: likewise.
    **options: store, show, stop, likewise; splits: the data by seed.

  Yields:
    The runs, and where they are.
  """
  described = experiment.identity
  targets = open_targets(experiment.settings.targets)
  runs = Runs(experiment, targets=targets, **options)
  runs.check()
  with Workdir.open(
    workdir,
    kind="experiment",
    digest=identity.digest(described),
    describe=described,
  ) as found:
    if processes.is_main() and not found.environment.exists():
      files.write_text(found.config, config_text)
      files.write_text(found.command, command + "\n")
      files.write_json(found.environment, environment())
    yield runs, found


def evaluate(experiment: Experiment, workdir: str | Path) -> Result:
  """Evaluates the networks of a finished run again; writes nothing.

  Args:
    experiment: what was run.
    workdir: its run directory.

  Returns:
    The result, its metrics measured now.

  Raises:
    RefusedInput: the folder is no workdir, or a phase is not finished.
  """
  opened = Workdir.read(workdir)
  runs = Runs(experiment)
  metrics = runs.metrics(functools.partial(runs.measured, opened, train=False))
  summary = files.read_json(opened.summary)
  return Result(opened.root, {**summary, "metrics": metrics})


def smoke(experiment: Experiment, workdir: str | Path) -> Result:
  """Rehearses an experiment: three steps of every phase, all of the rest.

  The first seed is stopped after two steps and resumed from its checkpoint.

  Args:
    experiment: what to rehearse.
    workdir: a new run directory.

  Returns:
    The result of the short run.
  """
  settings = dataclasses.replace(
    experiment.settings, max_steps=3, checkpoint_every_steps=2
  )
  short = dataclasses.replace(
    experiment, settings=settings, seeds=experiment.seeds[:1]
  )
  with contextlib.suppress(Preempted):
    run(short, workdir, stop=Stop(after=2))
  logger.warning("stopped after 2 steps as rehearsed, resuming")
  return run(short, workdir)
