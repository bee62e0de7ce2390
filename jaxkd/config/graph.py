"""What a config would build: which bindings matter, and what is missing."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.config import registry, values
from jaxkd.config.problems import Problems
from jaxkd.config.values import Binding, Reference

MAX_MACRO_NESTING = 10
MAX_MACRO_SIZE = 10_000
MAX_DEPTH = 25
MAX_SIZE = 100_000
_BUILD = 10  # what building one object counts for, in values


def reach(bindings: Iterable[Binding], root: Reference) -> frozenset[str]:
  """Returns the labels of the bindings and macros that something may use.

  A binding counts as used if its class is built in its scope or in one within
  it, even where an inner scope binds the same parameter again.

  Args:
    bindings: Statements; several may have the same label.
    root: What is built first.
  """
  at, macros = collections.defaultdict(list), collections.defaultdict(list)
  for binding in bindings:
    if binding.is_macro:
      macros[binding.name].append(binding.value)
    else:
      at[binding.scope, binding.name].append(binding)
  used: set[str] = set()
  nodes, todo = set(), [(root.scope, root.name)]
  while todo:
    node = scope, name = todo.pop()
    if node in nodes:
      continue
    nodes.add(node)
    for prefix in values.prefixes(scope):
      for binding in at.get((prefix, name), ()):
        used.add(binding.label)
        named, found = closure(binding.value, macros)
        used |= named
        todo += [(r.scope or scope, r.name) for r in found if built(r)]
  return frozenset(used)


def built(reference: Reference) -> bool:
  """Whether a reference stands for an object that bindings configure."""
  return reference.called or registry.carries_bindings(reference.name)


def closure(
  value: Any, macros: Mapping[str, list[Any]]
) -> tuple[set[str], list[Reference]]:
  """Returns the macros and the references of a value, through its macros."""
  named: set[str] = set()
  found, todo = values.references(value), values.macros(value)
  while todo:
    name = todo.pop()
    if name in named:
      continue
    named.add(name)
    for definition in macros.get(name, ()):
      found += values.references(definition)
      todo += values.macros(definition)
  return named, found


class Sizes:
  """How many values a value stands for, macros replaced; finds the endless."""

  def __init__(self, bindings: Iterable[Binding], problems: Problems):
    """Weighs all bindings, adding macro cycles and excesses to `problems`."""
    bindings = list(bindings)
    self._macros = {b.name: b for b in bindings if b.is_macro}
    self._problems = problems
    self._sizes: dict[str, int] = {}
    self.sound = True
    for name in self._macros:
      self._macro(name, ())
    total = 0
    for binding in bindings:
      total += self.of(binding.value)
      if total > MAX_SIZE and self.sound:
        self._refuse(
          binding, f"stands, with others, for over {MAX_SIZE} values"
        )

  def of(self, value: Any) -> int:
    """Returns the number of values in a value, itself included."""
    if isinstance(value, values.Macro):
      return self._sizes.get(value.name, 1)
    if isinstance(value, tuple | list):
      return 1 + sum(map(self.of, value))
    if isinstance(value, dict):
      return 1 + sum(map(self.of, value.values()))
    return 1

  def _macro(self, name: str, parents: tuple[str, ...]) -> None:
    if name in self._sizes or name not in self._macros or not self.sound:
      return
    binding = self._macros[name]
    if name in parents:
      chain = " -> ".join((*parents[parents.index(name) :], name))
      self._refuse(binding, f"refers to itself ({chain})")
    elif len(parents) > MAX_MACRO_NESTING:
      self._refuse(binding, f"macros nest deeper than {MAX_MACRO_NESTING}")
    else:
      for inner in values.macros(binding.value):
        self._macro(inner, (*parents, name))
      self._sizes[name] = self.of(binding.value)
      if self._sizes[name] > MAX_MACRO_SIZE:
        self._refuse(binding, f"stands for over {MAX_MACRO_SIZE} values")

  def _refuse(self, binding: Binding, message: str) -> None:
    self._problems.add(
      binding.file, binding.line, f"{binding.label}: {message}"
    )
    self.sound = False


class Plan:
  """Goes through what gin would build, in its rules, without building it."""

  def __init__(
    self, winners: Mapping[str, Binding], sizes: Sizes, problems: Problems
  ):
    """Takes the winning bindings by label, with the sizes of their macros."""
    self._macros = {b.name: b.value for b in winners.values() if b.is_macro}
    self._at = collections.defaultdict(list)
    for binding in winners.values():
      self._at[binding.scope, binding.name].append(binding)
    self._sizes = sizes
    self._problems = problems
    self._weights: dict[Reference, int] = {}

  def check(self, root: Reference, file: str) -> None:
    """Adds cycles, excesses and missing parameters to the problems."""
    start = Binding("", "", "", root, file, 1)
    weight = self._weigh(root, start, ())
    if weight > MAX_SIZE:
      self._problems.add(file, 1, f"builds more than {MAX_SIZE} values")

  def _weigh(self, node: Reference, by: Binding, parents: tuple) -> int:
    """Returns the cost of building what `by` refers to."""
    known, what = registry.entry(node.name), repr(node)
    if node in self._weights or known is None:
      return self._weights.get(node, 0)
    if node in parents or len(parents) > MAX_DEPTH:
      message = "is built for itself without end"
      if node not in parents:
        message = f"objects nest deeper than {MAX_DEPTH}"
      self._problems.add(by.file, by.line, f"{by.label}: {what}: {message}")
      return 0
    bound = self._effective(node.scope, node.name)
    if node.called:
      self._missing(known, bound, by, what)
    weight = _BUILD
    for binding in bound.values():
      weight += self._sizes.of(binding.value)
      weight += sum(
        self._weigh(
          Reference(r.scope or node.scope, r.name, r.called),
          binding,
          (*parents, node),
        )
        for r in self._references(binding.value)
        if built(r)
      )
    self._weights[node] = weight
    return weight

  def _references(self, value: Any) -> list[Reference]:
    return values.references(values.inline(value, self._macros))

  def _effective(self, scope: str, name: str) -> dict[str, Binding]:
    """Returns the bindings that hold in a scope: inner scopes win."""
    return {
      binding.parameter: binding
      for prefix in values.prefixes(scope)
      for binding in self._at.get((prefix, name), ())
    }

  def _missing(
    self,
    known: registry.Registered,
    bound: Mapping[str, Binding],
    by: Binding,
    what: str,
  ) -> None:
    missing = [
      p.name
      for p in registry.parameters(known.obj).values()
      if p.required and p.name not in bound
    ]
    if missing:
      label = f"{by.label}: " if by.label else ""
      self._problems.add(
        by.file,
        by.line,
        f"{label}{what} needs {', '.join(missing)}, which nothing binds",
      )
