"""Experiments: a method, a task and a budget, over seeds, in a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxkd import identity
from jaxkd.data.source import Task
from jaxkd.errors import ConfigError, Preempted
from jaxkd.evaluation import Classification, Evaluation, statistics
from jaxkd.method import Method
from jaxkd.parallel import Mesh, Placement, Rules
from jaxkd.result import Result
from jaxkd.roles import count_params
from jaxkd.training import files
from jaxkd.training.environment import environment
from jaxkd.training.loop import Trainer
from jaxkd.training.phase import Settings, Stop
from jaxkd.training.predictor import Predictor
from jaxkd.training.program import Programs
from jaxkd.training.progress import Progress
from jaxkd.training.progress import progress as make_progress
from jaxkd.training.workdir import Workdir

MAIN = "main"
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
    return Placement(self.mesh, self.rules)

  @property
  def identity(self) -> dict[str, Any]:
    """What a workdir belongs to: all but the seeds and the table's metric.

    Of weights that are loaded, the fingerprints too.
    """
    described = {
      field.name: identity.describe(getattr(self, field.name))
      for field in dataclasses.fields(self)
      if field.name not in ("seeds", "metric")
    }
    loaded = {
      f"{label}/{role}": network.weights.fingerprint()
      for label, method in self.methods.items()
      for role, network in method.roles.items()
      if network.weights is not None
    }
    return {**described, "weights": loaded} if loaded else described


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

  Returns:
    The result, as in summary.json.

  Raises:
    JaxkdError: see `jaxkd.errors`; the workdir can be resumed.
  """
  began = time.monotonic()
  described = experiment.identity
  runs = _Runs(experiment, store=store, show=show, stop=stop)
  runs.check()
  with Workdir.open(
    workdir,
    kind="experiment",
    digest=identity.digest(described),
    describe=described,
  ) as opened:
    if not opened.environment.exists():
      files.write_text(opened.config, config_text)
      files.write_text(opened.command, command + "\n")
      files.write_json(opened.environment, environment())
    metrics = runs.metrics(functools.partial(runs.evaluation, opened))
    previous = files.read_json(opened.summary, default={})
    seconds = previous.get("wall_seconds", 0.0) + time.monotonic() - began
    summary = runs.summary(metrics, seconds)
    if files.same_results(previous, summary):
      summary = previous
    else:
      files.write_json(opened.summary, summary)
    return Result(opened.root, summary)


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
  runs = _Runs(experiment)
  metrics = runs.metrics(functools.partial(runs.measured, opened, train=False))
  summary = files.read_json(opened.summary)
  return Result(opened.root, {**summary, "metrics": metrics})


class _Runs:
  """The runs of an experiment: every method with every seed."""

  def __init__(
    self,
    experiment: Experiment,
    *,
    store: Path | None = None,
    show: Callable[..., Progress] = make_progress,
    stop: Stop | None = None,
  ):
    self._experiment = experiment
    self._splits = functools.lru_cache(maxsize=1)(experiment.task.splits)
    placement = experiment.placement
    self._options = {
      "batch_size": experiment.task.batch_size,
      "settings": experiment.settings,
      "placement": placement,
      "store": store,
      "show": show,
      "stop": stop or Stop(),
    }
    self._predictors = {
      label: Predictor(
        method,
        placement,
        experiment.settings.evaluation_batch_size,
        experiment.evaluation.of,
      )
      for label, method in experiment.methods.items()
    }
    self._programs = {
      label: Programs(method) for label, method in experiment.methods.items()
    }

  def check(self) -> None:
    """Traces every method before anything is written.

    Raises:
      ConfigError: paths, batch entries or sizes do not fit.
    """
    mesh = self._experiment.mesh
    mesh.check_batch(self._experiment.task.batch_size)
    for size in self._experiment.settings.batch_sizes:
      mesh.check_batch(size)
    _ = mesh.devices
    experiment = self._experiment
    splits = self._splits(experiment.seeds[0])
    for programs in self._programs.values():
      usage = programs.usage(splits, experiment.task.batch_size)
      try:
        experiment.evaluation.check(usage.outputs, experiment.task)
      except ConfigError as error:
        name = type(programs.method).__name__
        raise ConfigError(f"{name}: {error}") from error

  def metrics(
    self, evaluation: Callable[[str, int], dict[str, Any]]
  ) -> dict[str, list[float]]:
    """Flat metrics over seeds, from the evaluation of a label and seed."""
    metrics: dict[str, list[float]] = {}
    for label in self._predictors:
      prefix = "" if label == MAIN else f"{label}/"
      for seed in self._experiment.seeds:
        for name, value in _flat(evaluation(label, seed)).items():
          metrics.setdefault(prefix + name, []).append(value)
    return metrics

  def evaluation(
    self, workdir: Workdir, label: str, seed: int
  ) -> dict[str, Any]:
    """The stored evaluation, made first if it is not there."""
    path = workdir.run(label, seed).evaluation
    if not path.exists():
      files.write_json(path, self.measured(workdir, label, seed))
    return files.read_json(path)

  def measured(
    self, workdir: Workdir, label: str, seed: int, *, train: bool = True
  ) -> dict[str, Any]:
    """Trains what is not trained yet and evaluates it."""
    splits = self._splits(seed)
    fitted = Trainer(
      method=self._experiment.methods[label],
      splits=splits,
      seed=seed,
      run=workdir.run(label, seed),
      programs=self._programs[label],
      **self._options,
    ).fit(train=train)
    source = splits.part(self._experiment.measured_on)
    return measure(self._predictors[label], fitted, source, self._experiment)

  def summary(
    self, metrics: Mapping[str, list[float]], seconds: float
  ) -> dict[str, Any]:
    """The content of summary.json."""
    experiment, described = self._experiment, environment()
    splits = self._splits(experiment.seeds[0])
    return {
      "method": type(experiment.method).__name__,
      "task": experiment.task.name,
      "seeds": list(experiment.seeds),
      "metrics": metrics,
      "params": count_params(
        experiment.method.roles,
        self._programs[MAIN].usage(splits, experiment.task.batch_size).inputs,
      ),
      "inputs": {
        name if label == MAIN else f"{label}/{name}": list(network.inputs)
        for label, method in experiment.methods.items()
        for name, network in method.roles.items()
      },
      "wall_seconds": round(seconds, 1),
      "versions": described["versions"],
      "commit": described["commit"],
    }


def measure(
  predictor: Predictor, fitted: Any, source: Any, experiment: Experiment
) -> dict[str, Any]:
  """Evaluates all predictors of a method on one split.

  Args:
    predictor: the method's predictors.
    fitted: its variables.
    source: the split.
    experiment: has the task and what is measured.

  Returns:
    The evaluation's numbers by predictor; under `measures` the method's own.
  """
  kept, measures = predictor(fitted, source)
  rows = source.take(np.arange(len(source)))
  evaluation = experiment.evaluation(kept, rows, experiment.task)
  evaluation["measures"] = {
    name: statistics.mean(*(value if isinstance(value, tuple) else (value,)))
    for name, value in measures.items()
  }
  return evaluation


def _flat(evaluation: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of an evaluation by flat name."""
  flat = dict(evaluation["measures"])
  for predictor, values in evaluation.items():
    if predictor != "measures":
      flat |= {
        f"{predictor}/{name}": value
        for name, value in values.items()
        if isinstance(value, float)
      }
  return flat


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
