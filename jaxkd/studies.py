"""Studies: several experiments on the same seeds and splits, in one table."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxkd import identity, report
from jaxkd.errors import ConfigError, NonFinite, did_you_mean
from jaxkd.evaluation import statistics
from jaxkd.experiment import Experiment, opened, run
from jaxkd.result import Result
from jaxkd.runs import MAIN, cached_splits, train_together
from jaxkd.training import files
from jaxkd.training.environment import environment
from jaxkd.training.phase import Stop
from jaxkd.training.progress import Progress
from jaxkd.training.progress import progress as make_progress
from jaxkd.training.workdir import Workdir


def study(
  experiments: Mapping[str, Experiment],
  workdir: str | Path,
  *,
  seeds: Sequence[int],
  show: Callable[..., Progress] = make_progress,
  texts: Mapping[str, str] = MappingProxyType({}),
  drop_diverged: bool = False,
  population: bool = False,
) -> dict[str, Any]:
  """Runs or resumes experiments on the same seeds and compares them.

  A phase that several experiments have in common, such as the training of a
  teacher, is trained once for each seed.

  Args:
    experiments: by name; the first is the baseline of paired differences. All
      have one task; their controls are not run.
    workdir: the study's folder; each experiment has a workdir in it.
    seeds: for all experiments.
    show: makes the progress of a phase.
    texts: operative gin texts by name.
    drop_diverged: leaves an experiment with a step that is not finite out of
      the table and names it under `diverged`, in place of an error.
    population: trains all seeds of all experiments side by side, see
      `training.population`; the table is the same.

  Returns:
    The content of study.json; study.md and study.png lie beside it.

  Raises:
    ConfigError: if the experiments' tasks differ.
    NonFinite: a step was not finite; if all diverged, with `drop_diverged`.
  """
  began = time.monotonic()
  experiments = {
    name: dataclasses.replace(one, controls={}, seeds=tuple(seeds))
    for name, one in experiments.items()
  }
  _same_task(experiments)
  described = {name: one.identity for name, one in experiments.items()}
  with Workdir.open(
    workdir, kind="study", digest=identity.digest(described), describe=described
  ) as opened:
    run_all = _run_together if population else _run_all
    results, diverged = run_all(
      experiments, opened.root, texts=texts, show=show, skip=drop_diverged
    )
    path = opened.root / "study.json"
    previous = files.read_json(path, default={})
    seconds = previous.get("wall_seconds", 0.0) + time.monotonic() - began
    content = _content(experiments, results, seconds)
    content |= {"diverged": diverged} if diverged else {}
    if files.same_results(previous, content):
      content = previous
    else:
      files.write_json(path, content)
    report.study_report(opened.root)
  return content


def _run_all(
  experiments: Mapping[str, Experiment],
  root: Path,
  *,
  texts: Mapping[str, str],
  show: Callable[..., Progress],
  skip: bool,
) -> tuple[dict[str, Result], dict[str, str]]:
  """Results, and with `skip` the errors of those that diverged."""
  results, diverged = {}, {}
  for name, experiment in experiments.items():
    try:
      results[name] = run(
        experiment,
        root / name,
        config_text=texts.get(name, ""),
        store=root / "shared",
        show=show,
      )
    except NonFinite as error:
      if not skip or len(diverged) + 1 == len(experiments):
        raise
      diverged[name] = str(error)
  return results, diverged


def _run_together(
  experiments: Mapping[str, Experiment],
  root: Path,
  *,
  texts: Mapping[str, str],
  show: Callable[..., Progress],
  skip: bool,
) -> tuple[dict[str, Result], dict[str, str]]:
  """The same, all runs trained side by side."""
  first = next(iter(experiments.values()))
  options = {
    "store": root / "shared",
    "show": show,
    "stop": Stop(),
    "splits": cached_splits(first, len(first.seeds)),
  }
  with contextlib.ExitStack() as stack:
    many = [
      stack.enter_context(
        opened(one, root / name, config_text=texts.get(name, ""), **options)
      )
      for name, one in experiments.items()
    ]
    failed = train_together(many, skip=skip)
    if len(failed) == len(many):
      raise failed[0]
    results, diverged = {}, {}
    for n, (name, (runs, workdir)) in enumerate(
      zip(experiments, many, strict=True)
    ):
      if n in failed:
        diverged[name] = str(failed[n])
      else:
        results[name] = runs.finish(workdir)
  return results, diverged


def choose(
  candidates: Mapping[str, Mapping[str, Experiment]],
  workdir: str | Path,
  *,
  seeds: Sequence[int],
  show: Callable[..., Progress] = make_progress,
  population: bool = False,
) -> dict[str, Any]:
  """Chooses settings by the validation split; the test split is not read.

  Args:
    candidates: by name, the same experiment with different settings, by what
      tells them apart. All names have as many, so that none is favoured.
    workdir: the study's folder.
    seeds: for all experiments.
    show: makes the progress of a phase.
    population: as for `study`.

  Returns:
    The content of tune.json: the compared number, the number of candidates
    of each name, their means and what was chosen. A candidate that diverges
    has no mean and is not chosen.

  Raises:
    ConfigError: if the numbers of candidates differ.
    NonFinite: if all candidates of a name diverge.
  """
  count = _same_count(candidates)
  held_out = {
    f"{name},{setting}": dataclasses.replace(one, measured_on="validation")
    for name, group in candidates.items()
    for setting, one in group.items()
  }
  content = study(
    held_out,
    workdir,
    seeds=seeds,
    show=show,
    drop_diverged=True,
    population=population,
  )
  found = {row["name"]: row["mean"] for row in content["rows"]}
  means = {
    name: {s: found[key] for s in group if (key := f"{name},{s}") in found}
    for name, group in candidates.items()
  }
  higher = next(iter(held_out.values())).evaluation.higher
  chosen = {
    "metric": content["metric"],
    "split": "validation",
    "seeds": list(seeds),
    "candidates": count,
    "means": means,
    "chosen": {
      name: _pick(name, group, candidates[name], higher)
      for name, group in means.items()
    },
  }
  files.write_json(Path(workdir) / "tune.json", chosen)
  return chosen


def _same_count(candidates: Mapping[str, Mapping[str, Any]]) -> int:
  counts = {name: len(group) for name, group in candidates.items()}
  if len(set(counts.values())) != 1:
    raise ConfigError(f"candidates {counts}: expected as many of each")
  return next(iter(counts.values()))


def _pick(name: str, means: Mapping[str, float], tried, higher: bool) -> str:
  """The setting with the best mean."""
  if not means:
    raise NonFinite(f"{name}: none of {', '.join(tried)} is finite")
  return (max if higher else min)(means, key=means.get)


def _same_task(experiments: Mapping[str, Experiment]) -> None:
  (first, reference), *others = experiments.items()
  for name, experiment in others:
    if experiment.task != reference.task:
      changes = identity.difference(
        identity.describe(reference.task), identity.describe(experiment.task)
      )
      raise ConfigError(
        f"{name} has another task than {first}: " + "; ".join(changes)
      )


def _content(experiments, results: Mapping[str, Result], seconds: float):
  described, first = environment(), experiments[next(iter(results))]
  metric = first.metric or f"student/{first.evaluation.metric}"
  return {
    "experiments": [
      {
        "name": name,
        **{
          key: result.summary[key]
          for key in ("method", "task", "seeds", "metrics", "params")
        },
      }
      for name, result in results.items()
    ],
    "metric": metric,
    "rows": rows(
      {
        name: _numbers(result.summary["metrics"], metric, name)
        for name, result in results.items()
      }
    ),
    "step_ms": {
      name: ms
      for name, result in results.items()
      if (ms := _step_ms(experiments[name], result)) is not None
    },
    "versions": described["versions"],
    "commit": described["commit"],
    "machine": f"{platform.machine()}, {described['devices']}",
    "wall_seconds": round(seconds, 1),
  }


def _numbers(metrics, metric: str, name: str) -> Sequence[float]:
  """The compared number of every seed."""
  if metric not in metrics:
    raise ConfigError(
      f"{name}: Experiment.metric={metric!r} was not measured"
      + did_you_mean(metric, metrics)
      + f" (has {', '.join(metrics)})"
    )
  return metrics[metric]


def _step_ms(experiment: Experiment, result: Result) -> float | None:
  """Median over seeds of the time of a step of the last phase, validation in.

  Runs whose last phase was not trained here do not count.
  """
  phase, opened = (
    experiment.method.lasting_phases[-1].name,
    Workdir.read(result.workdir),
  )
  timings = [
    files.read_json(opened.run(MAIN, seed).timing, default={}).get(phase, {})
    for seed in experiment.seeds
  ]
  measured = [1e3 * t["seconds"] / t["steps"] for t in timings if "steps" in t]
  return round(float(np.median(measured)), 2) if measured else None


def rows(values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
  """Means, 95% intervals and paired differences to the first.

  Args:
    values: one number a seed, by name; the same seeds in the same order.

  Returns:
    One row a name, as in study.json.
  """
  baseline = next(iter(values.values()))
  table = []
  for name, numbers in values.items():
    mean, low, high = statistics.mean_interval(numbers)
    paired = statistics.paired_difference(numbers, baseline)
    table.append(
      {
        "name": name,
        "mean": mean,
        "low": low,
        "high": high,
        "values": list(numbers),
        "difference": paired.mean,
        "difference_low": paired.low,
        "difference_high": paired.high,
      }
    )
  return table
