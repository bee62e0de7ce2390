"""How all figures look: one palette, readable text, nothing interpreted."""

import contextlib
import dataclasses
import math
import pathlib
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import extras
from jaxkd.evaluation import statistics

# Okabe and Ito's colours without yellow, then some of Tol's: told apart with
# every common colour blindness, on white.
PALETTE = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#332288",
  "#000000",
  "#882255",
  "#999933",
  "#7A4A1E",
)
GREY = "#666666"

_RC = {
  "axes.axisbelow": True,
  "axes.edgecolor": "#999999",
  "axes.grid": True,
  "axes.labelsize": 10,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlesize": 11,
  "figure.dpi": 130,
  "font.family": "DejaVu Sans",
  "font.size": 10,
  "grid.color": "#e6e6e6",
  "legend.frameon": False,
  "legend.fontsize": 9,
  "text.parse_math": False,  # "$" in a name is a dollar
  "xtick.labelsize": 9,
  "ytick.labelsize": 9,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
  """A figure of the report, or the reason why there is none.

  Attributes:
    name: the file's stem, such as "curves".
    title: its heading.
    figure: a matplotlib figure, None when skipped.
    text: what it shows in words, or why it was skipped.
  """

  name: str
  title: str
  figure: Any
  text: str


def skipped(name: str, title: str, why: str) -> Plot:
  """Returns a plot that says why it is not there."""
  return Plot(name=name, title=title, figure=None, text=f"Not drawn: {why}.")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
  """Sets the style while figures are made and saved.

  Raises:
    MissingExtra: matplotlib is not installed.
  """
  matplotlib = extras.need("matplotlib", extra="report")
  with matplotlib.rc_context(_RC), warnings.catch_warnings():
    # A name may hold letters that the font lacks; they show as boxes.
    warnings.filterwarnings("ignore", message="Glyph")
    warnings.filterwarnings("ignore", message="Matplotlib currently does not")
    yield


def new_figure(width: float, height: float) -> Any:
  """Returns an empty figure of a size in inches, apart from pyplot."""
  figure = extras.need("matplotlib.figure", extra="report")
  empty = figure.Figure(figsize=(width, height))
  empty.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
  return empty


def save(figure: Any, path: pathlib.Path) -> pathlib.Path:
  """Writes a figure as PNG without a date or a version in it."""
  figure.savefig(path, format="png", metadata={"Software": None})
  return path


def colours(names: Sequence[str]) -> dict[str, str]:
  """Returns name -> colour, in order: the palette, or a scale if too short."""
  if len(names) <= len(PALETTE):
    return dict(zip(names, PALETTE, strict=False))
  matplotlib = extras.need("matplotlib", extra="report")
  scale = matplotlib.colormaps["viridis"].resampled(len(names) + 1)  # no yellow
  to_hex = extras.need("matplotlib.colors", extra="report").to_hex
  return {name: to_hex(scale(i)) for i, name in enumerate(names)}


def short(name: str, width: int = 30) -> str:
  """Returns a name fit for a legend: printable, at most `width` letters."""
  text = "".join(c if c.isprintable() else " " for c in name).strip()
  text = text if len(text) <= width else text[: width - 1] + "…"
  return f" {text}" if text.startswith("_") else text or "(no name)"


def wrapped(name: str, width: int = 26) -> str:
  """Returns a name in at most three lines, for a tick label."""
  text = short(name, 3 * width)
  return "\n".join(textwrap.wrap(text, width) or [text])


def line(colour: str, label: str, **options: Any) -> Any:
  """Returns an entry for a legend."""
  lines = extras.need("matplotlib.lines", extra="report")
  return lines.Line2D([], [], color=colour, label=label, **options)


def legend(axes: Any, entries: Sequence[Any], *, inside: bool = False) -> None:
  """Puts a legend off the data.

  Args:
    axes: matplotlib axes.
    entries: what `line` returns.
    inside: the axes are empty and hold the legend; else it goes to their right.
  """
  axes.legend(
    handles=entries,
    loc="upper left",
    bbox_to_anchor=(-0.12 if inside else 1.02, 1.0),
    borderaxespad=0.0,
    handlelength=2.4,
  )


def intervals(
  axes: Any,
  entries: Mapping[str, Sequence[float]],
  colour_of: Mapping[str, str],
) -> None:
  """Draws one row a name: seeds as rings, the mean and its 95% interval.

  Args:
    axes: matplotlib axes.
    entries: name -> one value a seed; values that are not finite are left out.
    colour_of: name -> colour.
  """
  for row, (name, values) in enumerate(entries.items()):
    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    if not x.size:
      continue
    mean, low, high = statistics.mean_interval(x)
    point(axes, row, mean, low, high, colour_of[name])
    axes.plot(
      x, np.full(x.shape, row + 0.22), "o", mec=GREY, mfc="none", ms=4.5
    )
  rows(axes, list(entries))


def point(
  axes: Any, row: int, mean: float, low: float, high: float, colour: str
) -> None:
  """Draws a mean and, where finite, its interval on a row."""
  if math.isfinite(low) and math.isfinite(high):
    axes.plot(
      [low, high], [row, row], color=colour, lw=2.4, solid_capstyle="butt"
    )
    for end in (low, high):
      axes.plot([end, end], [row - 0.12, row + 0.12], color=colour, lw=1.6)
  axes.plot([mean], [row], "o", color=colour, ms=7)


def rows(axes: Any, names: Sequence[str]) -> None:
  """Labels the rows of an interval plot, the first on top."""
  axes.set_yticks(range(len(names)), [wrapped(name) for name in names])
  axes.set_ylim(len(names) - 0.4, -0.6)
  axes.grid(axis="y", visible=False)
  axes.margins(x=0.08)
