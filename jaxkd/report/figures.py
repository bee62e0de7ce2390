"""Figures of what happened during training: curves, routing, masks."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxkd.report import load, style

ROUTE = "route/"
MASKS = ("mask_mean/", "mask_std/")
STYLES = {"train": "-", "validation": (0, (4, 2))}
MOST_TERMS = len(style.PALETTE)
MOST_LABELS = 6


def curves(work: load.Workdir) -> style.Plot:
  """Returns loss terms and accuracy over steps, a column a phase.

  A row a label holds its loss terms; then a row an accuracy metric compares
  the labels.

  Args:
    work: the workdir.
  """
  title = "Training curves"
  terms = [name for name in work.metrics if _is_term(name)]
  accuracies = [n for n in work.metrics if n.split("/")[0] == "accuracy"]
  if not terms and not accuracies:
    return style.skipped("curves", title, "no run has logged a metric yet")
  shown, labels = terms[:MOST_TERMS], work.labels[:MOST_LABELS]
  loss_labels = [
    label for label in labels if any(_has(work, label, t) for t in shown)
  ]
  phases, accuracies = work.phases, accuracies[:4]
  height = len(loss_labels) + len(accuracies)
  figure = style.new_figure(3.4 * len(phases) + 2.6, 2.3 * height + 0.3)
  grid = figure.subplots(height, len(phases), squeeze=False)
  for axes, label in zip(grid, loss_labels, strict=False):
    _loss_row(axes, work, label, shown, phases)
  for axes, name in zip(grid[len(loss_labels) :], accuracies, strict=True):
    _accuracy_row(axes, work, name, labels, phases)
  for axes, phase in zip(grid[0], phases, strict=True):
    axes.set_title(f"phase {style.short(phase)}")
  for axes in grid[-1]:
    axes.set_xlabel("step")
  text = _curves_text(work, terms, accuracies, labels)
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


def _loss_row(
  axes: Sequence[Any],
  work: load.Workdir,
  label: str,
  terms: Sequence[str],
  phases: Sequence[str],
) -> None:
  colour_of = style.colours(terms)
  used = [term for term in terms if _has(work, label, term)]
  for panel, phase in zip(axes, phases, strict=True):
    drawn = [
      _draw(panel, work, label, term, split, phase, colour_of[term])
      for term in used
      for split in STYLES
    ]
    values = np.concatenate([np.ravel(x) for x in drawn] or [np.empty(0)])
    if not values.size:
      panel.set_axis_off()
    elif values.min() > 0 and values.max() > 100 * values.min():
      panel.set_yscale("log")
      panel.yaxis.set_major_formatter("{x:g}")
      panel.yaxis.set_minor_formatter("")
  _ylabel(axes, f"{style.short(label, 22)}\nloss terms")
  entries = [style.line(colour_of[t], style.short(t)) for t in used]
  style.legend(axes[-1], [*entries, *_split_entries(work)])


def _accuracy_row(
  axes: Sequence[Any],
  work: load.Workdir,
  name: str,
  labels: Sequence[str],
  phases: Sequence[str],
) -> None:
  colour_of = style.colours(work.labels)
  used = [label for label in labels if _has(work, label, name)]
  low, high = 1.0, 0.0
  for panel, phase in zip(axes, phases, strict=True):
    drawn = [
      _draw(panel, work, label, name, split, phase, colour_of[label])
      for label in used
      for split in STYLES
    ]
    values = np.concatenate([np.ravel(x) for x in drawn] or [np.empty(0)])
    if values.size:
      low, high = min(low, values.min()), max(high, values.max())
    else:
      panel.set_axis_off()
  margin = 0.05 * max(high - low, 0.02)
  for panel in axes:
    panel.set_ylim(low - margin, high + margin)
  _ylabel(axes, style.wrapped(name, 22))
  entries = [style.line(colour_of[x], style.short(x)) for x in used]
  style.legend(axes[-1], [*entries, *_split_entries(work)])


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


def _ylabel(axes: Sequence[Any], text: str) -> None:
  """Names the row at its first panel that shows data."""
  for panel in axes:
    if panel.axison:
      panel.set_ylabel(text)
      return


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
  return entries + _seed_entries(work)[1:]


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
  work: load.Workdir,
  terms: Sequence[str],
  accuracies: Sequence[str],
  labels: Sequence[str],
) -> str:
  final = ", ".join(
    f"{label} {_last(work, label, name, 'validation'):.3g} ({name})"
    for name in accuracies
    for label in labels
    if any(run.series(name, "validation") for run in work.of(label))
  )
  parts = [
    f"Loss terms ({', '.join(terms[:MOST_TERMS]) or 'none'}) and accuracy over"
    f" steps in {len(work.phases)} phases, every seed thin and their mean"
    " thick; validation dashed."
  ]
  if final:
    parts.append(f"Last validation accuracy, mean over seeds: {final}.")
  if len(terms) > MOST_TERMS:
    parts.append(f"Not drawn: {', '.join(terms[MOST_TERMS:])}.")
  if len(work.labels) > MOST_LABELS:
    parts.append(f"Not drawn: {', '.join(work.labels[MOST_LABELS:])}.")
  return " ".join(parts)
