"""Tables of results as Markdown and in the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

NONE = "-"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows as a Markdown table, padded to be read as it is.

  Args:
    rows: one mapping a row; the keys of the first are the header. Cells are
      escaped: a name cannot break the table or become a link or an element.

  Returns:
    The table with a final newline, or "" without rows.
  """
  if not rows:
    return ""
  names = list(rows[0])
  lines = [[_markdown(name) for name in names]]
  lines += [[_markdown(cell(row.get(name))) for name in names] for row in rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
  lines.insert(1, ["-" * max(width, 3) for width in widths])
  return "".join(
    "| "
    + " | ".join(
      text.ljust(width) for text, width in zip(line, widths, strict=True)
    )
    + " |\n"
    for line in lines
  )


def print_table(
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str | None = None,
  console: Any = None,
) -> None:
  """Prints rows as a table in the terminal.

  Args:
    rows: one mapping a row; the keys of the first are the header.
    title: a line above the table.
    console: a `rich.console.Console`; by default standard output.
  """
  from rich import console as rich_console
  from rich import table as rich_table
  from rich import text

  shown = rich_table.Table(title=None if title is None else text.Text(title))
  for name in rows[0] if rows else ():
    shown.add_column(text.Text(str(name)), overflow="fold")
  for row in rows:
    shown.add_row(*(text.Text(cell(row.get(name))) for name in rows[0]))
  (console or rich_console.Console()).print(shown)


def cell(value: Any) -> str:
  """Returns a value as the text of a cell: floats with four digits."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return NONE
  if isinstance(value, bool):
    return "yes" if value else "no"
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def interval(
  mean: float, low: float, high: float, *, signed: bool = False
) -> str:
  """Returns "mean [low, high]" with the digits that the interval supports.

  Args:
    mean: the mean.
    low: the lower end of its interval; nan leaves the interval out.
    high: the upper end.
    signed: whether a positive number gets its plus.

  Returns:
    Two significant digits of the half-width decide the decimals.
  """
  sign = "+" if signed else ""
  if math.isnan(mean):
    return NONE
  half = (high - low) / 2
  if not math.isfinite(half):
    return f"{mean:{sign}.4g}"
  places = 4
  if half > 0:
    places = min(max(1 - math.floor(math.log10(half)), 0), 6)
  form = f"{sign}.{places}f"
  return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _markdown(value: str) -> str:
  text = "".join(c if c.isprintable() else " " for c in str(value))
  for special, escaped in (
    ("\\", "\\\\"),
    ("&", "&amp;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ("|", "\\|"),
    ("`", "\\`"),
    ("*", "\\*"),
    ("](", "\\]("),
  ):
    text = text.replace(special, escaped)
  return text
