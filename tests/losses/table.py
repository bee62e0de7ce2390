"""Writes docs/losses.md from the docstrings and the reference vectors.

  python -m tests.losses.table               # the page alone
  python -m tests.losses.table --docstrings  # first every `Checked:` line

The checks in `vectors` are the one place that says what proves a loss; the
`Checked:` line of a docstring repeats their repositories.
"""

import argparse
import ast
import collections
import functools
import inspect
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxkd import catalog, losses, nets
from tests.losses.vectors import Check, all_checks

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "losses.md"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{6,40}")
FORMULA = "formula"
INTRO = """\
# The losses

Written by `python -m tests.losses.table` from the docstrings of
`jaxkd.losses` and from the reference vectors; `jaxkd list --losses` prints the
same, `--json` for programs.

## Conventions

* A loss is a pure function: arrays in, loss out. Student first, teacher second,
  labels and other data that is required after them, all else by keyword.
* p is the teacher, q the student, z their logits, T the temperature.
* Losses with a temperature carry the factor T^2, so that gradients stay of the
  order of those at T = 1. Where a library has no such factor, its numbers times
  T^2 are ours.
* Values are per example; a batch-level loss is a scalar. With `where`, examples
  that are left out reach neither value nor gradient, even if they are NaN.
* Everything is computed in float32 at least, and in log space. Gradients are
  finite at equal inputs, at zero vectors and at ties.
* No gradient is stopped unless the formula has a constant: the caller decides
  about the teacher.
* Maps are [B, H, W, C]; classes, tokens' vocabulary and channels come last.
* Wrong shapes and values are refused when the loss is traced, in one form:
  `<loss>: <what was given>; <what is expected>`.

**Access** is the least of the teacher that suffices: `text`, what it wrote;
`topk`, log-probabilities of its k most probable classes (`TopK`); `white`, all
of its logits or its inside.

**Checked against** names the official code whose values and gradients the tests
compare with; `formula` is an evaluation of the paper's text in float64, not by
its authors. The error is the worst one of value and gradients over all checks,
relative to the largest entry of what the reference gave (float32, CPU).

## Backends

Nothing here is a kernel of its own: what XLA compiles, runs.

| backend | what holds it |
|---|---|
| CPU | the test suite: all vectors; all promises under jit, vmap, bfloat16 |
| GPU, TPU | the same code; the suite does not run there |

Accelerators may round matrix products below float32. For the digits of this
page set `jax_default_matmul_precision` to `highest`.
"""


COLUMNS = (
  "loss",
  "formula",
  "needs",
  "access",
  "level",
  "paper",
  "checked against",
  "error",
)


def main() -> None:
  """Writes the page, after the docstrings if asked to."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--docstrings", action="store_true")
  if parser.parse_args().docstrings:
    write_docstrings()
    # What was imported has the old docstrings.
    os.execv(sys.executable, [sys.executable, "-m", "tests.losses.table"])
  errors, wrong = {}, malformed().splitlines()
  for name, checks in by_loss().items():
    try:
      errors[name] = worst(checks)
    except Exception as error:  # said at the end; the rest is written
      wrong.append(f"{name}: {type(error).__name__}: {error}")
  PAGE.write_text(page(errors))
  if wrong:
    sys.exit("\n".join(["left out:", *wrong]))


@functools.cache
def by_loss() -> dict[str, list[Check]]:
  """The checks by what they prove; those of `kl` are those of `KL`."""
  classes = {e.instance: e.name for e in sound() if e.instance}
  found = collections.defaultdict(list)
  for check in all_checks():
    found[classes.get(check.loss, check.loss)].append(check)
  return found


def worst(checks: Iterable[Check]) -> float:
  """The largest error of several checks."""
  return max((check.error() for check in checks), default=0.0)


def sources(checks: Iterable[Check]) -> tuple[str, ...]:
  """The repositories with commits that checks name, or `formula`."""
  found = set()
  for check in checks:
    found |= set(REPOSITORY.findall(check.source)) or {FORMULA}
  return (*sorted(found - {FORMULA}), *sorted(found & {FORMULA}))


def sound() -> list[catalog.Entry]:
  """The entries whose docstrings are sound."""
  found = []
  for name in own():
    try:
      found.append(catalog.entry(name))
    except ValueError:
      continue  # `malformed` says it
  return sorted(found, key=lambda e: (e.family, e.name.lower(), e.name))


def malformed() -> str:
  """What is wrong with docstrings; losses that have such are left out."""
  try:
    catalog.entries()
  except ValueError as error:
    return str(error)
  return ""


def own() -> dict[str, Any]:
  """Public functions and classes, without the instances of the classes."""
  objects = catalog.public()
  return {
    name: obj
    for name, obj in objects.items()
    if type(obj) not in objects.values()
  }


def page(errors: Mapping[str, float]) -> str:
  """The page, with the errors by loss in its last column."""
  entries, checks = sound(), by_loss()
  text = [INTRO]
  for family in sorted({entry.family for entry in entries}):
    rows = [
      _row(entry, sources(checks.get(entry.name, ())), errors)
      for entry in entries
      if entry.family == family
    ]
    text += [
      f"## {catalog.title(family)}",
      f"`jaxkd.losses.{family}`",
      _table(COLUMNS, rows),
    ]
  rest = {n: c for n, c in checks.items() if n not in {e.name for e in entries}}
  if rest:
    rows = [
      (
        f"`{name}`",
        _first_line(name),
        _sources(sources(rest[name])),
        _digit(errors, name),
      )
      for name in sorted(rest)
    ]
    text += ["## Networks and other functions with reference vectors"]
    text += [_table(("name", "what it is", "checked against", "error"), rows)]
  return "\n\n".join(part.strip("\n") for part in text) + "\n"


def _row(
  entry: catalog.Entry, checked: Sequence[str], errors: Mapping[str, float]
) -> tuple[str, ...]:
  names = [entry.name, *([entry.instance] if entry.instance else [])]
  paper = entry.reference
  if entry.link:
    paper = paper.replace(entry.link, f"<{entry.link}>")
  return (
    ", ".join(f"`{name}`" for name in names),
    "<br>".join(_code(line) for line in entry.formula.splitlines() if line),
    ", ".join(entry.needs),
    entry.access,
    entry.level,
    paper,
    _sources(checked),
    _digit(errors, entry.name),
  )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  rule = ["---"] * len(columns)
  cells = [
    [cell.replace("|", r"\|") for cell in row] for row in (columns, rule, *rows)
  ]
  return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _sources(checked: Sequence[str]) -> str:
  if not checked:
    return catalog.UNCHECKED
  return "<br>".join(
    f"[{name}](https://github.com/{name.replace('@', '/tree/')})"
    if "@" in name
    else name
    for name in checked
  )


def _digit(errors: Mapping[str, float], name: str) -> str:
  if name not in errors:
    return "-"
  return f"{errors[name]:.0e}" if errors[name] else "0"


def _first_line(name: str) -> str:
  obj = getattr(losses, name, None) or getattr(nets, name, None)
  return (inspect.getdoc(obj) or name).splitlines()[0]


def write_docstrings() -> None:
  """Brings the `Checked:` line of every loss's docstring up to date."""
  checks, names = by_loss(), own()
  for path in {_file(o) for o in names.values()}:
    text = path.read_text()
    for name, obj in names.items():
      if _file(obj) == path:
        said = "; ".join(sources(checks.get(name, ()))) or catalog.UNCHECKED
        text = with_checked(text, obj.__name__, f"Checked: {said}.")
    if text != path.read_text():
      path.write_text(text)


def with_checked(text: str, name: str, line: str) -> str:
  """A module's text with the line in the docstring of one of its objects.

  Args:
    text: of the module.
    name: of a function or class at its top level, whose docstring has a line
      `Needs:`, after which the new line comes.
    line: `Checked: ....`; it is wrapped, and replaces an older one.

  Returns:
    The module's new text.
  """
  node = next(
    n for n in ast.parse(text).body if getattr(n, "name", None) == name
  )
  quoted = node.body[0]
  indent = " " * quoted.col_offset
  lines = text.splitlines(keepends=True)
  docstring = lines[quoted.lineno - 1 : quoted.end_lineno]
  wrapped = textwrap.fill(
    line,
    width=80,
    initial_indent=indent,
    subsequent_indent=indent + "  ",
    break_long_words=False,
    break_on_hyphens=False,
  )
  kept, section = [], ""
  for position, old in enumerate(docstring):
    if position and not old.startswith(indent + "  "):
      if section == "Needs":
        kept.append(wrapped + "\n")
      section = old.strip().partition(":")[0]
    if section != "Checked":
      kept.append(old)
  lines[quoted.lineno - 1 : quoted.end_lineno] = kept
  return "".join(lines)


def _code(line: str) -> str:
  return f"`` {line} ``" if "`" in line else f"`{line}`"


def _file(obj: Any) -> pathlib.Path:
  return pathlib.Path(inspect.getfile(inspect.unwrap(obj)))


if __name__ == "__main__":
  main()
