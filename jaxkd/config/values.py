"""What the right-hand side of a binding can hold, and how it is written.

A value is a Python literal whose leaves may also be a `Reference` (`@KD()`,
`@teacher/MLP()`, `@relu`) or a `Macro` (`%SEEDS`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

REQUIRED = "gin.REQUIRED"  # the macro of a value that must be overridden


@dataclasses.dataclass(frozen=True)
class Reference:
  """A registered name in a value: called (`@KD()`) or itself (`@relu`)."""

  scope: str
  name: str
  called: bool

  def __repr__(self) -> str:
    """Returns it as it is written in a config."""
    return f"@{scoped(self.scope, self.name)}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
  """A named constant in a value, `%NAME`."""

  name: str

  def __repr__(self) -> str:
    """Returns it as it is written in a config."""
    return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Binding:
  """One statement `scope/name.parameter = value`, or a macro `NAME = value`."""

  scope: str
  name: str
  parameter: str  # empty for a macro
  value: Any
  file: str
  line: int

  @property
  def is_macro(self) -> bool:
    """Whether it defines a macro."""
    return not self.parameter

  @property
  def label(self) -> str:
    """What it binds, as it is written in a config."""
    dot = "." if self.parameter else ""
    return f"{scoped(self.scope, self.name)}{dot}{self.parameter}"

  @property
  def place(self) -> str:
    """Where it is written, as `file:line`."""
    return f"{self.file}:{self.line}"


def scoped(scope: str, name: str) -> str:
  """Returns `scope/name`, or `name` where there is no scope."""
  return f"{scope}/{name}" if scope else name


def prefixes(scope: str) -> list[str]:
  """Returns the scopes whose bindings hold in `scope`, the outermost first."""
  parts = scope.split("/") if scope else []
  return ["/".join(parts[:i]) for i in range(len(parts) + 1)]


def leaves(value: Any) -> Iterator[Any]:
  """Yields the leaves of a value, dict keys included."""
  if isinstance(value, tuple | list):
    for item in value:
      yield from leaves(item)
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from leaves(key)
      yield from leaves(item)
  else:
    yield value


def references(value: Any) -> list[Reference]:
  """Returns the references of a value, without those of its macros."""
  return [leaf for leaf in leaves(value) if isinstance(leaf, Reference)]


def macros(value: Any) -> list[str]:
  """Returns the names of the macros of a value."""
  return [leaf.name for leaf in leaves(value) if isinstance(leaf, Macro)]


def inline(value: Any, definitions: Mapping[str, Any]) -> Any:
  """Returns the value with macros replaced; those without definition stay."""
  if isinstance(value, Macro) and value.name in definitions:
    return inline(definitions[value.name], definitions)
  if isinstance(value, tuple | list):
    return type(value)(inline(item, definitions) for item in value)
  if isinstance(value, dict):
    return {
      inline(key, definitions): inline(item, definitions)
      for key, item in value.items()
    }
  return value


def text(value: Any, refer: Callable[[Reference], str] = repr) -> str:
  """Returns a value as gin text that parses to the same value.

  Args:
    value: The value.
    refer: How a reference is written.
  """
  if isinstance(value, Reference):
    return refer(value)
  if isinstance(value, tuple):
    items = [text(item, refer) for item in value]
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
  if isinstance(value, list):
    return f"[{', '.join(text(item, refer) for item in value)}]"
  if isinstance(value, dict):
    items = [f"{text(k, refer)}: {text(v, refer)}" for k, v in value.items()]
    return f"{{{', '.join(items)}}}"
  if isinstance(value, float) and math.isinf(value):
    return "1e999" if value > 0 else "-1e999"  # gin has no word for it
  return repr(value)
