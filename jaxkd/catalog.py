"""The public losses as their docstrings describe them.

A loss is a public name of `jaxkd.losses` whose docstring has a `Needs:` line;
what else is public there is a building block. The docstring is the only place
where a loss is described:

  One line, ending in a period.

    formula in plain text, one or more lines

  Any text, then Args:, Returns: and Raises: where there are some.
  Needs: arrays, ...; access text, topk or white; per example or batch level.
  Checked: owner/repository@commit; owner/repository@commit.
  Reference: Authors, https://arxiv.org/abs/..., Eq. N.

`Checked:` names the official code whose outputs the tests hold the loss to,
`formula` where the numbers were computed from the paper's text alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd import losses

ACCESS = ("text", "topk", "white")
LEVELS = ("per example", "batch level")
UNCHECKED = "property tests only"
_NAMED = (
  inspect.Parameter.POSITIONAL_ONLY,
  inspect.Parameter.POSITIONAL_OR_KEYWORD,
  inspect.Parameter.KEYWORD_ONLY,
)
_PLAIN = str | int | float | bool | None
_SECTION = re.compile(r"(Args|Returns|Raises|Needs|Checked|Reference):(.*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """One loss.

  Attributes:
    name: in `jaxkd.losses`.
    instance: public name of the class's ready-made object, such as `kl`.
    family: module that holds it.
    summary: the docstring's first line.
    formula: in plain text, of one or more lines.
    needs: arrays that it reads.
    access: least access to the teacher that suffices, one of `ACCESS`.
    level: `per example`, or `batch level` for a scalar.
    reference: the paper.
    link: its address, if the reference has one.
    checked_against: whose code the tests compare it with; empty if nobody's.
    arguments: what every call must give, in order.
    required: of a class, what its construction must be given.
    parameters: what may be given by keyword, with its default; of a class,
      those of its construction.
  """

  name: str
  instance: str | None
  family: str
  summary: str
  formula: str
  needs: tuple[str, ...]
  access: str
  level: str
  reference: str
  link: str | None
  checked_against: tuple[str, ...]
  arguments: tuple[str, ...]
  required: tuple[str, ...]
  parameters: Mapping[str, Any]

  def plain(self) -> dict[str, Any]:
    """The fields as JSON holds them; a default that it cannot, as text."""
    fields = dataclasses.asdict(self)
    fields["parameters"] = {
      name: value if isinstance(value, _PLAIN) else _brief(value)
      for name, value in self.parameters.items()
    }
    return {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in fields.items()
    }

  def text(self) -> str:
    """The entry for a terminal, indented by two."""
    names = f"{self.name}, {self.instance}" if self.instance else self.name
    given = [*self.required, *self.arguments]
    given += [f"{name}={_brief(v)}" for name, v in self.parameters.items()]
    checked = "; ".join(self.checked_against) or UNCHECKED
    needs = ", ".join(self.needs)
    lines = [
      f"{names}: {self.summary}",
      *(f"    {line}" for line in self.formula.splitlines()),
      f"  call      {', '.join(given)}",
      f"  needs     {needs}; access {self.access}; {self.level}",
      f"  paper     {self.reference}",
      f"  checked   {checked}",
    ]
    return "\n".join(f"  {line}" for line in lines)


def public() -> dict[str, Any]:
  """The losses by public name: functions, classes and instances of these."""
  found = {name: getattr(losses, name) for name in losses.__all__}
  return {
    name: obj
    for name, obj in found.items()
    if callable(obj) and _has_needs(obj)
  }


def entries() -> tuple[Entry, ...]:
  """The losses, by family and name; an instance is told with its class.

  Raises:
    ValueError: if docstrings lack a part; it names all such losses.
  """
  found, wrong = [], []
  for name, obj in public().items():
    if not _is_instance(obj):
      try:
        found.append(entry(name))
      except ValueError as error:
        wrong.append(str(error))
  if wrong:
    raise ValueError("\n".join(wrong))
  return tuple(sorted(found, key=lambda e: (e.family, e.name.lower(), e.name)))


def entry(name: str) -> Entry:
  """The entry of one public function or class.

  Args:
    name: in `jaxkd.losses`.

  Raises:
    ValueError: if its docstring lacks a part.
  """
  obj = getattr(losses, name)
  parameters = inspect.signature(obj).parameters.values()
  arguments, required = _needed(obj), ()
  if inspect.isclass(obj):
    arguments, required = _needed(obj.__call__), arguments
  ready = [n for n, other in public().items() if type(other) is obj]
  return Entry(
    name=name,
    instance=ready[0] if ready else None,
    family=obj.__module__.rpartition(".")[2],
    arguments=arguments,
    required=required,
    parameters={
      p.name: p.default for p in parameters if p.default is not p.empty
    },
    **parse(name, "\n".join(_lines(obj))),
  )


def title(family: str) -> str:
  """What a family is about: the first line of its module."""
  return _lines(sys.modules[f"{losses.__name__}.{family}"])[0].rstrip(".")


def listing(found: Sequence[Entry]) -> str:
  """Entries as text, by family.

  Args:
    found: which.

  Returns:
    A heading for every family, its entries, an empty line.
  """
  lines = []
  for family in dict.fromkeys(entry.family for entry in found):
    lines.append(f"{family}: {title(family)}")
    lines += [entry.text() for entry in found if entry.family == family]
    lines.append("")
  return "\n".join(lines)


def parse(name: str, text: str) -> dict[str, Any]:
  """The parts of a loss's docstring, as fields of `Entry`.

  Args:
    name: of the loss, for errors.
    text: its docstring, without common indentation.

  Returns:
    Summary, formula, needs, access, level, reference, link, checked_against.

  Raises:
    ValueError: if a part is missing or malformed.
  """
  lines = text.strip().splitlines()
  first = lines[0] if lines else ""
  if not first.endswith(".") or lines[1:2] not in ([], [""]):
    raise _malformed(name, repr(first), "one line that ends in a period first")
  sections = _sections(lines)
  needs = sections.get("Needs", "").rstrip(".").split(";")
  arrays, access, level = (
    [part.strip() for part in needs] if len(needs) == 3 else ("", "", "")
  )
  if (
    not arrays
    or access.removeprefix("access ") not in ACCESS
    or (level not in LEVELS)
  ):
    raise _malformed(
      name,
      f"Needs: {sections.get('Needs', 'missing')}",
      f"'arrays; access {'|'.join(ACCESS)}; {' or '.join(LEVELS)}.'",
    )
  reference = sections.get("Reference", "")
  link = re.search(r"https://[^\s,;)]+", reference)
  if not link and not re.search(r"\b(19|20)\d\d\b", reference):
    raise _malformed(
      name, f"Reference: {reference or 'missing'}", "a paper, link or year"
    )
  checked = sections.get("Checked", UNCHECKED).rstrip(".")
  return {
    "summary": first,
    "formula": _formula(name, lines[2:]),
    "needs": tuple(part.strip() for part in arrays.split(",")),
    "access": access.removeprefix("access "),
    "level": level,
    "reference": reference,
    "link": link and link.group().rstrip("."),
    "checked_against": ()
    if checked == UNCHECKED
    else tuple(part.strip() for part in checked.split(";")),
  }


def _needed(function: Any) -> tuple[str, ...]:
  """Names of the parameters without default, in order."""
  return tuple(
    p.name
    for p in inspect.signature(function).parameters.values()
    if p.default is p.empty and p.kind in _NAMED and p.name != "self"
  )


def _brief(value: Any) -> str:
  return getattr(value, "__name__", None) or repr(value)


def _lines(obj: Any) -> list[str]:
  return inspect.cleandoc(obj.__doc__ or "").splitlines() or [""]


def _has_needs(obj: Any) -> bool:
  return any(line.startswith("Needs:") for line in _lines(obj))


def _is_instance(obj: Any) -> bool:
  """Whether it is an object of one of the room's own classes."""
  return type(obj).__module__.startswith(losses.__name__)


def _sections(lines: list[str]) -> dict[str, str]:
  """The text of every section; it ends where a line is no deeper than it."""
  found: dict[str, str] = {}
  name = ""
  for line in lines:
    head = _SECTION.fullmatch(line)
    if head:
      name = head[1]
      found[name] = head[2].strip()
    elif name and line.startswith(" "):
      found[name] = f"{found[name]} {line.strip()}".strip()
    else:
      name = ""
  return found


def _formula(name: str, lines: list[str]) -> str:
  """The indented lines at the head of what follows the summary."""
  block = []
  for line in lines:
    if line and not line.startswith("  "):
      break
    block.append(line.removeprefix("  "))
  formula = "\n".join(block).strip("\n")
  if not formula:
    raise _malformed(
      name,
      f"{lines[0] if lines else 'nothing'!r} after the first line",
      "an empty line and the formula, indented by two",
    )
  return formula


def _malformed(name: str, given: str, expected: str) -> ValueError:
  return ValueError(f"docstring of {name}: {given}; expected {expected}")
