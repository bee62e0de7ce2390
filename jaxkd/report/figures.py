"""Figures of what happened during training: curves, routing, masks."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.report import load, style

ROUTE = "route/"
MASKS = ("mask_mean/", "mask_std/")
STYLES = {"train": "-", "validation": (0, (4, 2))}
MOST_TERMS = len(style.PALETTE)
MOST_LABELS = 6


def curves(work: load.Workdir) -> style.Plot:
  """Returns loss terms and accuracies over steps.

  Every label has a row of loss terms and, below it, one of accuracies, with a
  panel a phase. All accuracies share one scale.

  Args:
    work: the workdir.
  """
  title = "Training curves"
  terms = [name for name in work.metrics if _is_term(name)]
  accuracies = [n for n in work.metrics if n.split("/")[0] == "accuracy"]
  rows = [
    row
    for label in work.labels[:MOST_LABELS]
    for row in _rows_of(work, label, terms[:MOST_TERMS], accuracies)
  ]
  if not rows:
    return style.skipped("curves", title, "no run has logged a metric yet")
  columns = max(len(row.phases) for row in rows)
  heights = [max(2.1, 0.21 * len(row.names) + 0.4) for row in rows]
  figure = style.new_figure(3.5 * columns + 2.4, sum(heights) + 0.8)
  grid = figure.subplots(
    len(rows), columns, squeeze=False, height_ratios=heights
  )
  term_colours = style.colours(terms[:MOST_TERMS])
  accuracy_colours = style.colours(accuracies)
  limits = []
  for axes, row in zip(grid, rows, strict=True):
    if row.accuracy:
      limits += _draw_row(axes, work, row, accuracy_colours)
    else:
      _draw_row(axes, work, row, term_colours)
  for axes, row in zip(grid, rows, strict=True):
    if row.accuracy and limits:
      low, high = min(limits), max(limits)
      margin = 0.05 * max(high - low, 0.02)
      for panel in axes:
        panel.set_ylim(low - margin, high + margin)
  entries = _split_entries(work) + _seed_entries(work)
  figure.legend(handles=entries, loc="outside lower left", ncols=len(entries))
  text = _curves_text(work, terms, accuracies)
  return style.Plot(name="curves", title=title, figure=figure, text=text)


def routing(work: load.Workdir) -> style.Plot:
  """Returns the share of each specialised teacher over steps.

  Args:
    work: the workdir.
  """
  title = "Routing proportions"
  names = [name for name in work.metrics if name.startswith(ROUTE)]
  labels = [
    label for label in work.labels if any(_has(work, label, n) for n in names)
  ][:MOST_LABELS]
  if not labels:
    return style.skipped(
      "routing", title, f"no run has logged {ROUTE}<teacher>"
    )
  figure = style.new_figure(4.2 * len(labels) + 2.2, 3.2)
  grid = figure.subplots(1, len(labels), squeeze=False, sharey=True)[0]
  colour_of = style.colours(names)
  for axes, label in zip(grid, labels, strict=True):
    for name in names:
      _draw(axes, work, label, name, _split(work, name), None, colour_of[name])
    axes.axhline(1 / len(names), color=style.GREY, lw=1, ls=":")
    axes.set(title=style.short(label), xlabel="step", ylim=(-0.02, 1.02))
  grid[0].set_ylabel("share of examples")
  entries = [
    style.line(colour_of[n], style.short(n.removeprefix(ROUTE))) for n in names
  ]
  uniform = style.line(style.GREY, f"uniform, 1/{len(names)}", ls=":")
  style.legend(grid[-1], [*entries, uniform, *_seed_entries(work)])
  final = "; ".join(
    f"{label}: {_final(work, label, names, ROUTE)}" for label in labels
  )
  text = (
    f"Share of examples sent to each of {len(names)} teachers over steps,"
    f" every seed thin and their mean thick. At the end, mean over seeds:"
    f" {final}."
  )
  return style.Plot(name="routing", title=title, figure=figure, text=text)


def masks(work: load.Workdir) -> style.Plot:
  """Returns the mean and the standard deviation of each mask over steps.

  Args:
    work: the workdir.
  """
  title = "Mask statistics"
  names = [name for name in work.metrics if name.startswith(MASKS)]
  labels = [
    label for label in work.labels if any(_has(work, label, n) for n in names)
  ][:MOST_LABELS]
  if not labels:
    wanted = " or ".join(f"{kind}<name>" for kind in MASKS)
    return style.skipped("masks", title, f"no run has logged {wanted}")
  kinds = [k for k in MASKS if any(n.startswith(k) for n in names)]
  mask_names = list(dict.fromkeys(n.split("/", 1)[1] for n in names))
  colour_of = style.colours(mask_names)
  figure = style.new_figure(
    4.2 * len(labels) + 2.2, 2.4 * max(len(kinds), 1) + 0.3
  )
  grid = figure.subplots(len(kinds), len(labels), squeeze=False, sharey="row")
  for row, kind in zip(grid, kinds, strict=True):
    for axes, label in zip(row, labels, strict=True):
      for mask in mask_names:
        name, colour = kind + mask, colour_of[mask]
        _draw(axes, work, label, name, _split(work, name), None, colour)
    row[0].set_ylabel("mean" if kind == MASKS[0] else "standard deviation")
  for axes, label in zip(grid[0], labels, strict=True):
    axes.set_title(style.short(label))
  for axes in grid[-1]:
    axes.set_xlabel("step")
  entries = [style.line(colour_of[m], style.short(m)) for m in mask_names]
  style.legend(grid[0, -1], [*entries, *_seed_entries(work)])
  text = (
    f"Mean and standard deviation of {len(mask_names)} masks over steps, every"
    f" seed thin and their mean thick. Means at the end, over seeds:"
    f" {_final(work, labels[0], names, MASKS[0])}."
  )
  return style.Plot(name="masks", title=title, figure=figure, text=text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
  """A row of panels: one label's loss terms or accuracies in its phases."""

  label: str
  names: list[str]
  phases: list[str]
  accuracy: bool
  first: bool  # of its label: carries the titles


def _rows_of(
  work: load.Workdir, label: str, terms: list[str], accuracies: list[str]
) -> list[_Row]:
  """Returns the rows of a label, without those that would be empty."""
  used = [
    [name for name in names if _has(work, label, name)]
    for names in (terms, accuracies)
  ]
  seen = {
    row["phase"]
    for run in work.of(label)
    for row in run.rows
    if not row["metrics"].keys().isdisjoint([*used[0], *used[1]])
  }
  shown = [i for i in (0, 1) if used[i]]
  return [
    _Row(
      label=label,
      names=used[i],
      phases=[phase for phase in work.phases if phase in seen],
      accuracy=bool(i),
      first=i == shown[0],
    )
    for i in shown
  ]


def _draw_row(
  axes: Sequence[Any],
  work: load.Workdir,
  row: _Row,
  colour_of: Mapping[str, str],
) -> list[float]:
  """Draws the panels of a row; returns the extremes of their values."""
  limits = []
  for panel, phase in zip(axes, row.phases, strict=False):
    values = np.concatenate(
      [
        _draw(panel, work, row.label, name, split, phase, colour_of[name])
        for name in row.names
        for split in STYLES
      ]
    )
    if row.first:
      panel.set_title(f"{style.short(row.label, 20)}: {style.short(phase, 20)}")
    if not values.size:
      panel.set_axis_off()
      continue
    panel.set_xlabel("step")
    low, high = float(values.min()), float(values.max())
    limits += [low, high]
    if not row.accuracy and low > 0 and high > 100 * low:
      panel.set_yscale("log")
      panel.yaxis.set_major_formatter("{x:g}")
      panel.yaxis.set_minor_formatter("")
  for panel in axes[len(row.phases) :]:
    panel.set_axis_off()
  drawn = [panel for panel in axes if panel.axison]
  if drawn:
    drawn[0].set_ylabel("accuracy" if row.accuracy else "loss terms")
  entries = [style.line(colour_of[n], style.short(n)) for n in row.names]
  if len(axes) > len(row.phases):
    style.legend(axes[len(row.phases)], entries, inside=True)
  else:
    style.legend(axes[-1], entries)
  return limits


def _draw(
  axes: Any,
  work: load.Workdir,
  label: str,
  name: str,
  split: str,
  phase: str | None,
  colour: str,
) -> np.ndarray:
  """Draws each seed thin and the mean thick; returns the finite values."""
  series = [run.series(name, split, phase) for run in work.of(label)]
  series = [points for points in series if points]
  look = {"color": colour, "ls": STYLES.get(split, "-")}
  for points in series:
    alpha = 0.3 if len(series) > 1 else 1.0
    axes.plot(points.keys(), points.values(), lw=0.8, alpha=alpha, **look)
  common = sorted(set.intersection(*map(set, series))) if series else []
  if len(series) > 1 and common:
    mean = [np.mean([points[step] for points in series]) for step in common]
    axes.plot(common, mean, lw=1.9, **look)
  elif len(series) == 1 and len(common) == 1:
    axes.plot(common, series[0].values(), "o", color=colour, ms=4)
  values = np.asarray([v for points in series for v in points.values()])
  return values[np.isfinite(values)]


def _is_term(name: str) -> bool:
  head = name.split("/")[0] + "/"
  return head != "accuracy/" and not head.startswith((ROUTE, *MASKS))


def _has(work: load.Workdir, label: str, name: str) -> bool:
  return any(
    name in row["metrics"] and row["split"] in STYLES
    for run in work.of(label)
    for row in run.rows
  )


def _split(work: load.Workdir, name: str) -> str:
  """Returns "train" if the metric was logged there, else "validation"."""
  trained = any(run.series(name, "train") for run in work.runs)
  return "train" if trained else "validation"


def _seed_entries(work: load.Workdir) -> list[Any]:
  seeds = max(len(work.of(label)) for label in work.labels)
  if seeds < 2:
    return []
  return [
    style.line(style.GREY, f"mean of {seeds} seeds", lw=1.9),
    style.line(style.GREY, "one seed", lw=0.8, alpha=0.5),
  ]


def _split_entries(work: load.Workdir) -> list[Any]:
  splits = {row["split"] for run in work.runs for row in run.rows}
  entries = [
    style.line(style.GREY, split, ls=ls)
    for split, ls in STYLES.items()
    if split in splits
  ]
  return entries


def _last(work: load.Workdir, label: str, name: str, split: str) -> float:
  """Returns the mean over seeds of the last value of a metric."""
  series = [run.series(name, split) for run in work.of(label)]
  last = [points[max(points)] for points in series if points]
  return float(np.mean(last)) if last else float("nan")


def _final(
  work: load.Workdir, label: str, names: Iterable[str], prefix: str
) -> str:
  return ", ".join(
    f"{name.removeprefix(prefix)}"
    f" {_last(work, label, name, _split(work, name)):.3g}"
    for name in names
    if name.startswith(prefix) and _has(work, label, name)
  )


def _curves_text(
  work: load.Workdir, terms: Sequence[str], accuracies: Sequence[str]
) -> str:
  labels = work.labels[:MOST_LABELS]
  final = ", ".join(
    f"{label} {name} {_last(work, label, name, 'validation'):.3g}"
    for label in labels
    for name in accuracies
    if any(run.series(name, "validation") for run in work.of(label))
  )
  parts = [
    f"Loss terms ({', '.join(terms[:MOST_TERMS]) or 'none'}) and accuracy over"
    f" steps in {len(work.phases)} phases, every seed thin and their mean"
    " thick; validation dashed."
  ]
  if final:
    parts.append(f"Last on validation, mean over seeds: {final}.")
  if left := [*terms[MOST_TERMS:], *work.labels[MOST_LABELS:]]:
    parts.append(f"Not drawn: {', '.join(left)}.")
  return " ".join(parts)
