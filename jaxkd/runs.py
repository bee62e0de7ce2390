"""The runs of an experiment: trained, evaluated, summed up."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxkd.data.source import Splits
from jaxkd.errors import ConfigError, NonFinite
from jaxkd.evaluation import statistics
from jaxkd.parallel import processes
from jaxkd.result import Result
from jaxkd.roles import count_params
from jaxkd.training import files, population
from jaxkd.training.environment import environment
from jaxkd.training.loop import Fitted, Trainer
from jaxkd.training.phase import Stop
from jaxkd.training.predictor import Predictor
from jaxkd.training.program import Programs
from jaxkd.training.progress import Progress
from jaxkd.training.progress import progress as make_progress
from jaxkd.training.target_files.folder import TargetFolder
from jaxkd.training.workdir import Workdir

if TYPE_CHECKING:
  from jaxkd.experiment import Experiment

MAIN = "main"


class Runs:
  """The runs of an experiment: every method with every seed."""

  def __init__(
    self,
    experiment: Experiment,
    *,
    targets: TargetFolder | None = None,
    store: Path | None = None,
    show: Callable[..., Progress] = make_progress,
    stop: Stop | None = None,
    splits: Callable[[int], Splits] | None = None,
  ):
    """Traces and trains nothing yet.

    Args:
      experiment: what is run.
      targets: what frozen roles showed, of roles that are not run.
      store: folder of finished phases that several experiments share.
      show: makes the progress of a phase.
      stop: what asks for a stop.
      splits: the data by seed, where experiments share them.
    """
    self._experiment = experiment
    self._splits = splits or cached_splits(experiment, 1)
    self._began = time.monotonic()
    self.stop = stop or Stop()
    self.fitted: dict[tuple[str, int], Fitted] = {}
    placement = experiment.placement
    self._options = {
      "batch_size": experiment.task.batch_size,
      "settings": experiment.settings,
      "placement": placement,
      "store": store,
      "show": show,
      "stop": self.stop,
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
    self.targets = targets
    self._programs = {
      label: Programs.answered(method, targets)
      for label, method in experiment.methods.items()
    }

  @property
  def all(self) -> list[tuple[str, int]]:
    """Label and seed of every run."""
    seeds = self._experiment.seeds
    return [(label, seed) for label in self._programs for seed in seeds]

  def check(self) -> None:
    """Traces every method before anything is written.

    Raises:
      ConfigError: paths, batch entries or sizes do not fit.
      RefusedInput: targets are asked for that are not in their folder.
    """
    mesh = self._experiment.mesh
    mesh.check_batch(self._experiment.task.batch_size)
    for size in self._experiment.settings.batch_sizes:
      mesh.check_batch(size)
    _ = mesh.devices
    experiment = self._experiment
    placement = self._options["placement"]
    placement.check_roles(
      dict.fromkeys(r for m in experiment.methods.values() for r in m.roles)
    )
    splits = self._splits(experiment.seeds[0])
    for programs in self._programs.values():
      usage = programs.usage(splits, experiment.task.batch_size)
      try:
        experiment.evaluation.check(usage.outputs, experiment.task)
        placement.check(usage.params)
      except ConfigError as error:
        name = type(programs.method).__name__
        raise ConfigError(f"{name}: {error}") from error
    if self.targets is not None:
      seeds = {seed: experiment.task.splits(seed) for seed in experiment.seeds}
      size = experiment.task.batch_size
      self.targets.check(self._programs.values(), seeds, size)

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

  def trainer(self, workdir: Workdir, label: str, seed: int) -> Trainer:
    """What trains one method with one seed."""
    return Trainer(
      method=self._experiment.methods[label],
      splits=self._splits(seed),
      seed=seed,
      run=workdir.run(label, seed),
      programs=self._programs[label],
      **self._options,
    )

  def evaluation(
    self, workdir: Workdir, label: str, seed: int
  ) -> dict[str, Any]:
    """The stored evaluation, made first if it is not there."""
    path = workdir.run(label, seed).evaluation
    if not processes.decide(path.exists):
      measured = self.measured(workdir, label, seed)
      if processes.is_main():
        files.write_json(path, measured)
    return processes.decide(lambda: files.read_json(path))

  def measured(
    self, workdir: Workdir, label: str, seed: int, *, train: bool = True
  ) -> dict[str, Any]:
    """Trains what is not trained yet and evaluates it."""
    trainer = self.trainer(workdir, label, seed)
    fitted = self.fitted.pop((label, seed), None) or trainer.fit(train=train)
    source = trainer.splits.part(self._experiment.measured_on)
    return measure(self._predictors[label], fitted, source, self._experiment)

  def finish(self, workdir: Workdir) -> Result:
    """Trains and evaluates what is left, and writes the summary."""
    metrics = self.metrics(functools.partial(self.evaluation, workdir))

    def summarise() -> dict[str, Any]:
      old = files.read_json(workdir.summary, default={})
      seconds = old.get("wall_seconds", 0.0) + time.monotonic() - self._began
      summary = self.summary(metrics, seconds)
      if files.same_results(old, summary):
        return old
      files.write_json(workdir.summary, summary)
      return summary

    return Result(workdir.root, processes.decide(summarise))

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


def cached_splits(
  experiment: Experiment, count: int
) -> Callable[[int], Splits]:
  """The data by seed, of which the last ones are kept.

  Args:
    experiment: has the task.
    count: how many.
  """
  return functools.lru_cache(maxsize=count)(experiment.task.splits)


def train_together(
  many: Sequence[tuple[Runs, Workdir]], *, skip: bool = False
) -> dict[int, NonFinite]:
  """Trains all runs of some experiments side by side, see `population`.

  Args:
    many: runs of experiments of one task, and where they are.
    skip: whether a run that is not finite is only named.

  Returns:
    With `skip` an error of every experiment that has one, by position.

  Raises:
    ConfigError: an experiment reads cached targets.
    NonFinite: a run was not finite; the others are trained.
  """
  for runs, _ in many:
    if runs.targets is not None:
      raise ConfigError(
        f"runs side by side with the targets in {runs.targets.folder}: "
        "expected Settings.targets=None, or runs one after the other (without "
        "--population)"
      )
  wanted = {
    f"{n}/{label}/{seed}": (n, label, seed)
    for n, (runs, workdir) in enumerate(many)
    for label, seed in runs.all
    if not workdir.run(label, seed).evaluation.exists()
  }
  trainers = {
    name: many[n][0].trainer(many[n][1], label, seed)
    for name, (n, label, seed) in wanted.items()
  }
  first, workdir = many[0]
  ended = population.fit(trainers, workdir.root / "population", stop=first.stop)
  failed: dict[int, NonFinite] = {}
  for name, result in ended.items():
    n, label, seed = wanted[name]
    if isinstance(result, NonFinite):
      failed.setdefault(n, result)
    else:
      many[n][0].fitted[label, seed] = result
  if failed and not skip:
    raise next(iter(failed.values()))
  return failed
