"""The table and the figure of a study: experiments over the same seeds."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd.errors import RefusedInput
from jaxkd.report import load, predictors, style, tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One experiment of a study.

  Attributes:
    name: the experiment.
    values: [n] the metric, one value a seed.
    mean: their mean, with `low` and `high`, its 95% interval.
    low: see `mean`.
    high: see `mean`.
    difference: the mean paired difference to the first experiment, nan for the
      first, with `difference_low` and `difference_high`.
    difference_low: see `difference`.
    difference_high: see `difference`.
  """

  name: str
  values: np.ndarray
  mean: float
  low: float
  high: float
  difference: float
  difference_low: float
  difference_high: float

  @property
  def clear(self) -> bool:
    """Whether the interval of the difference lies on one side of zero."""
    return self.difference_low > 0.0 or self.difference_high < 0.0


def study_report(workdir: str | os.PathLike) -> dict[str, pathlib.Path]:
  """Writes study.md and study.png beside a study's study.json.

  Where the metrics allow it, subsets.png shows them by combination of
  modalities and rounds.png by round of queries.

  Args:
    workdir: the study's folder.

  Returns:
    "table", "figure" and, if drawn, "subsets" and "rounds" -> the files.

  Raises:
    RefusedInput: the folder is not a workdir, or study.json is absent or is
      not what it must be.
    MissingExtra: matplotlib is not installed.
  """
  folder = pathlib.Path(workdir)
  load.check_marker(folder)
  study = load.read_json(folder / "study.json")
  rows = _rows(folder / "study.json", study)
  metric = str(study.get("metric", "metric"))
  page = folder / "study.md"
  page.write_text(_markdown(study, metric, rows), encoding="utf-8")
  with style.drawing():
    path = style.save(_figure(metric, rows), folder / "study.png")
    more = predictors.save(study, folder)
  return {"table": page, "figure": path, **more}


def study_table(path: str | os.PathLike) -> str:
  """Returns the Markdown table of a study, as study.md has it.

  Args:
    path: its study.json.

  Raises:
    RefusedInput: the file is absent or is not what it must be.
  """
  path = pathlib.Path(path)
  study = load.read_json(path)
  return tables.table(study_rows(_rows(path, study), _step_ms(study)))


def study_rows(
  rows: list[Row], step_ms: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
  """Returns the rows of the table of a study, the first as the baseline.

  Args:
    rows: the experiments.
    step_ms: milliseconds of a training step by experiment, if measured.
  """
  out = []
  for i, row in enumerate(rows):
    difference = tables.interval(
      row.difference, row.difference_low, row.difference_high, signed=True
    )
    out.append(
      {
        "experiment": row.name,
        "mean [95% CI]": tables.interval(row.mean, row.low, row.high),
        "seeds": len(row.values),
        "difference to the first [95% CI]": difference if i else tables.NONE,
        "clear of zero": row.clear if i else tables.NONE,
        **({"ms per step": step_ms.get(row.name)} if step_ms else {}),
      }
    )
  return out


def _rows(path: pathlib.Path, study: dict[str, Any]) -> list[Row]:
  rows = study.get("rows")
  if not isinstance(rows, list) or not rows:
    raise RefusedInput(f"{path} has no rows, expected one an experiment")
  fields = [field.name for field in dataclasses.fields(Row)][2:]
  out = []
  for row in rows:
    if not isinstance(row, dict) or "name" not in row or "values" not in row:
      raise RefusedInput(f"a row of {path} has no name or no values")
    out.append(
      Row(
        name=str(row["name"]),
        values=load.numbers(row["values"]),
        **{field: load.number(row.get(field)) for field in fields},
      )
    )
  return out


def _markdown(study: dict[str, Any], metric: str, rows: list[Row]) -> str:
  facts = {
    "metric": metric,
    "machine": study.get("machine"),
    "commit": study.get("commit"),
    "versions": study.get("versions"),
    "wall seconds": study.get("wall_seconds"),
  }
  told = [
    {"fact": name, "value": _text(value)}
    for name, value in facts.items()
    if value is not None
  ]
  return (
    "# Study\n\n"
    + tables.table(study_rows(rows, _step_ms(study)))
    + "\nIntervals are Student t over seeds. Differences are paired by seed"
    " with the first\nexperiment; one is clear of zero when its interval does"
    " not hold zero.\n\n" + tables.table(told)
  )


def _step_ms(study: dict[str, Any]) -> dict[str, float]:
  """Returns the times of a step; {} where the study has none."""
  times = study.get("step_ms")
  if not isinstance(times, dict):
    return {}
  return {str(name): load.number(value) for name, value in times.items()}


def _text(value: Any) -> str:
  if isinstance(value, dict):
    return ", ".join(f"{name} {item}" for name, item in value.items())
  if isinstance(value, str | float | int):
    return tables.cell(value)
  return json.dumps(value)


def _figure(metric: str, rows: list[Row]) -> Any:
  """Returns means on the left, differences to the first on the right."""
  others = len(rows) > 1
  figure = style.new_figure(11.0 if others else 6.5, 0.56 * len(rows) + 1.5)
  left, *right = figure.subplots(1, 2 if others else 1, squeeze=False)[0]
  for i, row in enumerate(rows):
    colour = style.GREY if i == 0 and others else style.PALETTE[0]
    if np.isfinite(row.mean):
      style.point(left, i, row.mean, row.low, row.high, colour)
    x = row.values[np.isfinite(row.values)]
    left.plot(
      x, np.full(x.shape, i + 0.24), "o", mec="#999999", mfc="none", ms=4
    )
  style.rows(left, [row.name for row in rows])
  left.grid(axis="y", visible=True)
  left.set(xlabel=style.short(metric), title="Mean and 95% interval")
  entries = [
    style.line("#999999", "one seed", marker="o", mfc="none", ls="", ms=4)
  ]
  if others:
    _differences(right[0], rows)
    entries += [
      style.line(style.PALETTE[2], "clearly higher", marker="o"),
      style.line(style.PALETTE[1], "clearly lower", marker="o"),
      style.line(style.GREY, "not clear of zero", marker="o"),
    ]
  style.legend(right[0] if others else left, entries)
  return figure


def _differences(axes: Any, rows: list[Row]) -> None:
  axes.axvline(0.0, color="#333333", lw=1)
  for i, row in enumerate(rows[1:], start=1):
    colour = style.GREY
    if row.clear:
      colour = style.PALETTE[2 if row.difference > 0 else 1]
    if np.isfinite(row.difference):
      ends = row.difference_low, row.difference_high
      style.point(axes, i, row.difference, *ends, colour)
  style.rows(axes, [row.name for row in rows])
  axes.grid(axis="y", visible=True)
  axes.set_yticklabels(["(baseline)", *[""] * (len(rows) - 1)])
  axes.set(
    xlabel=f"difference to {style.short(rows[0].name)}",
    title="Paired difference and 95% interval",
  )
