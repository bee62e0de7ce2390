"""Figures of what came out: confusion, calibration, agreement."""

import math
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.evaluation import statistics
from jaxkd.report import load, style, tables

MOST_PANELS = 8
MOST_NAMED_CLASSES = 12  # more classes get neither numbers nor all ticks


def confusion(work: load.Workdir) -> style.Plot:
  """Returns the confusion matrices on the test split, mean over seeds.

  Every row of a matrix is divided by its examples, so that a cell is the share
  of the true class that is predicted so.

  Args:
    work: the workdir.
  """
  title = "Confusion on the test split"
  found = {
    key: np.mean([_shares(x) for x in matrices], axis=0)
    for key, matrices in _matrices(work).items()
  }
  if not found:
    why = "no evaluation.json holds a confusion matrix"
    return style.skipped("confusion", title, why)
  shown = dict(list(found.items())[:MOST_PANELS])
  columns = math.ceil(math.sqrt(len(shown)))
  lines = math.ceil(len(shown) / columns)
  figure = style.new_figure(3.7 * columns + 0.9, 3.7 * lines)
  grid = figure.subplots(lines, columns, squeeze=False)
  for axes in grid.flat[len(shown) :]:
    axes.set_axis_off()
  used = list(grid.flat[: len(shown)])
  for axes, (key, shares) in zip(used, shown.items(), strict=True):
    image = _draw_matrix(axes, shares)
    axes.set_title("\n".join(style.short(part) for part in key))
  bar = figure.colorbar(image, ax=used, shrink=0.8, aspect=30)
  bar.set_label("share of the true class")
  bar.outline.set_visible(False)
  right = ", ".join(
    f"{label} {role} {np.trace(shares) / len(shares):.3g}"
    for (label, role), shares in shown.items()
  )
  text = (
    "Confusion matrices, true class down and predicted class across, mean over"
    f" seeds. Mean share of each class that is right: {right}."
  )
  return style.Plot(name="confusion", title=title, figure=figure, text=text)


def calibration(work: load.Workdir) -> style.Plot:
  """Returns the expected calibration error of every role.

  Args:
    work: the workdir.
  """
  return _dots(
    work,
    name="calibration",
    title="Calibration on the test split",
    keys={"ece": "expected calibration error (lower is better)"},
  )


def agreement(work: load.Workdir) -> style.Plot:
  """Returns how closely students follow their teachers.

  Args:
    work: the workdir.
  """
  return _dots(
    work,
    name="agreement",
    title="Agreement with the teacher on the test split",
    keys={
      "agreement": "share of equal predictions (higher follows more)",
      "mean_kl": "KL to the teacher in nats (lower follows more)",
    },
  )


def _dots(
  work: load.Workdir, *, name: str, title: str, keys: dict[str, str]
) -> style.Plot:
  """Returns a panel a key: a row a role, seeds, mean and interval."""
  panels = {key: _values(work, key) for key in keys}
  panels = {key: values for key, values in panels.items() if values}
  if not panels:
    why = f"no evaluation.json holds {' or '.join(keys)}"
    return style.skipped(name, title, why)
  height = max(len(values) for values in panels.values())
  figure = style.new_figure(4.9 * len(panels) + 1.2, 0.52 * height + 1.0)
  grid = figure.subplots(1, len(panels), squeeze=False)[0]
  colour_of = style.colours(work.labels)
  texts = []
  for axes, (key, values) in zip(grid, panels.items(), strict=True):
    rows = {_row_name(k): v for k, v in values.items()}
    of_row = {_row_name(k): colour_of[k[0]] for k in values}
    style.intervals(axes, rows, of_row)
    axes.set_xlabel(keys[key])
    means = ", ".join(
      f"{row} {tables.interval(*statistics.mean_interval(v))}"
      for row, v in rows.items()
    )
    texts.append(f"{keys[key]}: {means}.")
  text = (
    "Rings are seeds, a dot and bar their mean and 95% interval. "
    + " ".join(texts)
  )
  return style.Plot(name=name, title=title, figure=figure, text=text)


def _row_name(key: tuple[str, str]) -> str:
  return f"{key[0]}: {key[1]}"


def _roles(work: load.Workdir) -> list[tuple[tuple[str, str], dict]]:
  """Returns ((label, role), numbers) of every evaluation."""
  return [
    ((run.label, role), values)
    for run in work.runs
    for role, values in run.evaluation.items()
    if isinstance(values, dict)
  ]


def _values(work: load.Workdir, key: str) -> dict[tuple[str, str], list]:
  found: dict[tuple[str, str], list[float]] = {}
  for name, values in _roles(work):
    if key in values:
      found.setdefault(name, []).append(load.number(values[key]))
  return found


def _matrices(work: load.Workdir) -> dict[tuple[str, str], list]:
  found: dict[tuple[str, str], list[np.ndarray]] = {}
  for name, values in _roles(work):
    if "confusion" in values:
      matrix = _matrix(name, values["confusion"])
      found.setdefault(name, []).append(matrix)
      if found[name][0].shape != matrix.shape:
        raise RefusedInput(
          f"the confusion matrices of {_row_name(name)} differ in size between"
          " seeds"
        )
  return found


def _matrix(name: tuple[str, str], rows: Any) -> np.ndarray:
  """Returns [C, C] counts; the row is the true class."""
  if isinstance(rows, list) and rows:
    lines = [load.numbers(row) for row in rows]
    if all(len(line) == len(rows) for line in lines):
      return np.stack(lines)
  raise RefusedInput(
    f"the confusion of {_row_name(name)} is not a square list of numbers"
  )


def _shares(counts: np.ndarray) -> np.ndarray:
  return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)


def _draw_matrix(axes: Any, shares: np.ndarray) -> Any:
  image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
  classes = len(shares)
  axes.grid(visible=False)
  axes.set(xlabel="predicted class", ylabel="true class")
  if classes > MOST_NAMED_CLASSES:
    return image
  axes.set_xticks(range(classes))
  axes.set_yticks(range(classes))
  for i, j in np.ndindex(shares.shape):
    if shares[i, j] >= 0.005:
      colour = "white" if shares[i, j] > 0.55 else "#222222"
      text = f"{100 * shares[i, j]:.0f}"
      axes.text(j, i, text, ha="center", va="center", color=colour, size=7.5)
  return image
