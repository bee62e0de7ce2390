"""A config that was checked: the winning bindings and where they come from."""

import dataclasses
from collections.abc import Iterable

from jaxkd.config import values
from jaxkd.config.values import Binding


@dataclasses.dataclass(frozen=True)
class Entry:
  """One winning binding.

  Attributes:
    scope: Such as `teacher`; empty for a binding that holds everywhere.
    name: Registered name of what is bound, or the name of a macro.
    parameter: Its parameter; empty for a macro.
    value: As gin text.
    file: The file, as messages name it, or `command line`.
    line: The line, or the position among the overrides, from 1.
    overridden: `was X in file:line` of the binding it won over, or None.
    used: Whether anything that is built refers to it.
  """

  scope: str
  name: str
  parameter: str
  value: str
  file: str
  line: int
  overridden: str | None
  used: bool

  def __str__(self) -> str:
    """Returns the binding with a comment that says where it comes from."""
    dot = "." if self.parameter else ""
    label = f"{values.scoped(self.scope, self.name)}{dot}{self.parameter}"
    notes = [f"{self.file}:{self.line}", self.overridden]
    notes += [] if self.used else ["not used: its consumer was overridden"]
    return f"{label} = {self.value}  # {', '.join(filter(None, notes))}"


@dataclasses.dataclass(frozen=True)
class Resolved:
  """A checked config.

  Attributes:
    root: Registered name (with its scope, if any) of what is to be built.
    file: The top file, as messages name it.
    winners: The binding that holds, by `scope/name.parameter`.
    losers: The binding that each winner won over last, where there is one.
    used: The labels of the winners that something built refers to.
  """

  root: str
  file: str
  winners: dict[str, Binding]
  losers: dict[str, Binding]
  used: frozenset[str]

  @property
  def entries(self) -> tuple[Entry, ...]:
    """The winning bindings, macros first, then by scope, name, parameter."""
    return tuple(self._entry(binding) for binding in self._ordered())

  def text(self) -> str:
    """Returns the config with the origin of each value in a comment."""
    return _paragraphs(
      (binding, str(self._entry(binding))) for binding in self._ordered()
    )

  def operative_text(self) -> str:
    """Returns the bindings that are used, as one gin text without includes."""
    return _paragraphs(
      (binding, f"{binding.label} = {values.text(binding.value)}")
      for binding in self._ordered()
      if binding.label in self.used
    )

  def _ordered(self) -> list[Binding]:
    return sorted(
      self.winners.values(),
      key=lambda b: (not b.is_macro, b.name, b.scope, b.parameter),
    )

  def _entry(self, binding: Binding) -> Entry:
    loser = self.losers.get(binding.label)
    was = f"was {values.text(loser.value)} in {loser.place}" if loser else None
    return Entry(
      scope=binding.scope,
      name=binding.name,
      parameter=binding.parameter,
      value=values.text(binding.value),
      file=binding.file,
      line=binding.line,
      overridden=was,
      used=binding.label in self.used,
    )


def _paragraphs(lines: Iterable[tuple[Binding, str]]) -> str:
  """Returns the lines, with an empty one between the names."""
  written: list[str] = []
  last = None
  for binding, line in lines:
    group = (
      "" if binding.is_macro else values.scoped(binding.scope, binding.name)
    )
    if last is not None and group != last:
      written.append("")
    written.append(line)
    last = group
  return "".join(line + "\n" for line in written)
