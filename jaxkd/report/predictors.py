"""Figures of a study's predictors: combinations of modalities, and rounds."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.evaluation import statistics
from jaxkd.report import load, style, tables

Experiments = Sequence[tuple[str, Mapping[str, Any]]]  # names with metrics
FEWEST_SUBSETS = 3


def save(
  study: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Writes subsets.png and rounds.png, or removes what cannot be drawn.

  Args:
    study: the content of study.json.
    folder: where the files go.

  Returns:
    "subsets" and "rounds", if drawn -> the files.

  Raises:
    RefusedInput: the experiments or their metrics are not what they must be.
    MissingExtra: matplotlib is not installed.
  """
  experiments = _experiments(study)
  metric = str(study.get("metric")).rpartition("/")[2].removeprefix("mean_")
  figures = {
    "subsets": _subsets(experiments, metric),
    "rounds": _rounds(experiments, metric),
  }
  drawn = {}
  for name, figure in figures.items():
    path = folder / f"{name}.png"
    path.unlink(missing_ok=True)
    if figure is not None:
      drawn[name] = style.save(figure, path)
  return drawn


def _experiments(study: Mapping[str, Any]) -> Experiments:
  found = study.get("experiments") or []
  try:
    return [(str(e["name"]), {**(e.get("metrics") or {})}) for e in found]
  except (AttributeError, KeyError, TypeError) as error:
    why = "the study's experiments are no list of names with metrics"
    raise RefusedInput(why) from error


def _predictors(metrics: Mapping[str, Any], metric: str) -> list[str]:
  split = [key.rpartition("/") for key in metrics]
  return [name for name, _, last in split if name and last == metric]


def _interval(metrics: Mapping[str, Any], name: str, metric: str) -> Any:
  """Returns (mean, low, high), nan without values."""
  values = load.numbers(metrics.get(f"{name}/{metric}", []))
  return statistics.mean_interval(values if values.size else [np.nan])


def _subsets(experiments: Experiments, metric: str) -> Any:
  """Returns a heat-map; modalities are what "+" joins in any name."""
  found = [name for _, e in experiments for name in _predictors(e, metric)]
  names = [n for n in dict.fromkeys(found) if n not in ("student", "teacher")]
  parts = {part for n in names if "+" in n for part in n.split("+")}
  columns = [n for n in names if parts.issuperset(n.split("+"))]
  columns.sort(key=lambda n: n.count("+"))
  means = np.array(
    [[_interval(e, n, metric)[0] for n in columns] for _, e in experiments]
  )
  if len(columns) < FEWEST_SUBSETS or not np.isfinite(means).any():
    return None
  return _heat_map([name for name, _ in experiments], columns, means, metric)


def _heat_map(
  names: list[str], columns: list[str], means: np.ndarray, metric: str
) -> Any:
  rows = [style.wrapped(name) for name in names]
  heads = [[style.short(part, 14) for part in n.split("+")] for n in columns]
  margin = max(len(line) for row in rows for line in row.split("\n"))
  widest = max(len(part) for parts in heads for part in parts) + 2
  width = 0.08 * margin + 0.6 + max(0.75, 0.085 * widest) * len(columns)
  figure = style.new_figure(max(width, 5.5), 0.5 * len(rows) + 1.5)
  axes = figure.subplots()
  image = axes.imshow(means, cmap="Blues", aspect="auto")
  axes.grid(visible=False)
  axes.set_xticks(range(len(heads)), ["\n+ ".join(parts) for parts in heads])
  axes.set_yticks(range(len(rows)), rows)
  percent = metric.endswith("accuracy")
  unit = " in percent" if percent else ""
  axes.set_xlabel(f"{style.short(metric)}{unit}, mean over seeds")
  axes.set_title("By combination of modalities")
  for (i, j), mean in np.ndenumerate(means):
    text, light = tables.NONE, 1.0
    if np.isfinite(mean):
      text = f"{100 * mean:.1f}" if percent else f"{mean:.3g}"
      light = np.dot(image.to_rgba(mean)[:3], (0.3, 0.59, 0.11))
    colour = "white" if light < 0.45 else "#222222"
    axes.text(j, i, text, ha="center", va="center", color=colour, size=9)
  return figure


def _rounds(experiments: Experiments, metric: str) -> Any:
  """Returns a line an experiment, where all have a round 0."""
  lines = {name: _line(metrics, metric) for name, metrics in experiments}
  if not lines or not all(points.size for points in lines.values()):
    return None
  labels = {name: style.wrapped(name) for name in lines}
  height = 0.2 * "\n".join(labels.values()).count("\n") + 1.2
  figure = style.new_figure(8.0, max(3.6, height))
  axes = figure.subplots()
  entries = []
  for name, colour in style.colours(list(lines)).items():
    x, mean, low, high = lines[name].T
    axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    axes.plot(x, mean, "-o", color=colour, ms=4.5)
    entries.append(style.line(colour, labels[name], marker="o", ms=4.5))
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set(xlabel="round of queries", ylabel=style.short(metric))
  axes.set_title("Mean and 95% interval over seeds")
  style.legend(axes, entries)
  return figure


def _line(metrics: Mapping[str, Any], metric: str) -> np.ndarray:
  """Returns [rounds, 4] round, mean, low, high; the student is the last."""
  found = _predictors(metrics, metric)
  matches = (re.fullmatch("round_([0-9]{1,4})", role) for role in found)
  rounds = {int(match[1]): match[0] for match in matches if match}
  if 0 not in rounds:
    return np.empty((0, 4))
  if "student" in found:
    rounds[max(rounds) + 1] = "student"
  points = [(i, *_interval(metrics, rounds[i], metric)) for i in sorted(rounds)]
  return np.array(points, np.float64)
