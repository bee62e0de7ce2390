"""Tables as Markdown and in the terminal."""

import io
import math

import pytest
from rich import console

from jaxkd import report
from jaxkd.report import tables


def test_markdown_table_is_padded_and_takes_keys_as_header():
  text = report.table(
    [{"name": "a", "value": 1.0}, {"name": "long", "value": 2}]
  )
  assert text == (
    "| name | value |\n| ---- | ----- |\n| a    | 1     |\n| long | 2     |\n"
  )


def test_markdown_table_of_no_rows_is_empty():
  assert report.table([]) == ""


@pytest.mark.parametrize(
  ("value", "text"),
  [(None, "-"), (math.nan, "-"), (True, "yes"), (0.123456, "0.1235"), (7, "7")],
)
def test_cells_are_short(value, text):
  assert tables.cell(value) == text


@pytest.mark.parametrize(
  ("numbers", "text"),
  [
    ((0.9312, 0.9123, 0.9501), "0.931 [0.912, 0.950]"),
    ((12.0, 2.0, 22.0), "12 [2, 22]"),
    ((0.5, 0.5, 0.5), "0.5000 [0.5000, 0.5000]"),
    ((0.5, math.nan, math.nan), "0.5"),
    ((math.nan, math.nan, math.nan), "-"),
  ],
)
def test_interval_shows_the_digits_that_it_supports(numbers, text):
  assert tables.interval(*numbers) == text


def test_signed_interval_shows_its_plus():
  assert tables.interval(0.2, -0.1, 0.5, signed=True) == "+0.20 [-0.10, +0.50]"


def test_terminal_table_shows_markup_as_text():
  stream = io.StringIO()
  rows = [{"name": "[red]x[/red]", "value": None}]
  report.print_table(
    rows, title="[b]t[/b]", console=console.Console(file=stream, width=60)
  )
  shown = stream.getvalue()
  assert "[red]x[/red]" in shown
  assert "[b]t[/b]" in shown
