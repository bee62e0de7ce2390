"""Bindings from the command line: `KD.temperature=2`, `SEEDS=5`.

They go through the same grammar and the same checks as those of a file. One
thing is easier: a word without quotes is a string, as no shell keeps quotes.
"""

import re
from collections.abc import Sequence
from typing import Any

from jaxkd.config import annotations, registry, source
from jaxkd.config.problems import COMMAND_LINE, Problems
from jaxkd.config.values import Binding

_KEY = re.compile(
  r"(?:(?P<scope>\w+(?:/\w+)*)/)?(?P<name>\w+)(?:\.(?P<p>\w+))?"
)
_NEVER_BARE = "@%([{'\""


def parse(overrides: Sequence[str], problems: Problems) -> list[Binding]:
  """Returns the bindings of a command line; its lines are their positions.

  Args:
    overrides: Such as `scope/Name.parameter=value` or `MACRO=value`.
    problems: Takes those that cannot be read, and what is bound twice.
  """
  bindings: dict[str, Binding] = {}
  for line, override in enumerate(overrides, start=1):
    key, equals, written = override.partition("=")
    match, written = _KEY.fullmatch(key.strip()), written.strip()
    if not (match and equals and written) or len(override.splitlines()) > 1:
      problems.add(
        COMMAND_LINE,
        line,
        f"{override!r}: expected Name.parameter=value or MACRO=value",
      )
      continue
    name, parameter = match["name"], match["p"] or ""
    try:
      value = _value(written, _annotation(name, parameter))
    except source.Malformed as e:
      problems.add(COMMAND_LINE, line, f"{key.strip()}: {e.message}")
      continue
    binding = Binding(
      match["scope"] or "", name, parameter, value, COMMAND_LINE, line
    )
    first = bindings.setdefault(binding.label, binding)
    if first is not binding:
      problems.add(
        COMMAND_LINE,
        line,
        f"{binding.label}: bound twice, first as override {first.line}",
      )
  return list(bindings.values())


def _value(written: str, annotation: Any) -> Any:
  """Returns a value, or the text itself where that is what is asked for.

  Raises:
    Malformed: If it starts as a reference, a string or a container and is none.
  """
  try:
    (statement,) = source.statements(f"_ = {written}")
  except source.Malformed:
    if written[0] in _NEVER_BARE:
      raise
    return written
  if not _fits(statement.value, annotation) and _fits(written, annotation):
    return written
  return statement.value


def _fits(value: Any, annotation: Any) -> bool:
  return annotations.fits(value, annotation, lambda name: None)


def _annotation(name: str, parameter: str) -> Any:
  entry = registry.entry(name)
  known = registry.parameters(entry.obj) if entry else {}
  return known[parameter].annotation if parameter in known else Any
