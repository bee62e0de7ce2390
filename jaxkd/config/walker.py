"""Checks a whole config before anything is built, and says all at once.

The order: read the files (source), read the command line (overrides), check
each statement against the signature of what it binds, then check what only the
whole can tell: macros, scopes, what is built and what nothing uses.
"""

import re
from collections.abc import Sequence
from typing import Any

from jaxkd.config import annotations, graph, overrides, registry, values
from jaxkd.config.problems import Problems, has, suggest
from jaxkd.config.resolved import Resolved
from jaxkd.config.source import Source
from jaxkd.config.values import Binding, Reference

_MACRO = re.compile(r"[A-Z][A-Z0-9_]*")


def walk(path: str, changes: Sequence[str], *, root: str) -> Resolved:
  """Returns the checked config.

  Args:
    path: The gin file.
    changes: The overrides of the command line.
    root: Registered name of what is to be built, with its scope if any.

  Raises:
    ConfigError: With one line for each mistake.
  """
  registry.register_all()
  problems = Problems()
  source = Source(str(path), problems)
  bindings = source.bindings + overrides.parse(changes, problems)
  walker = Walker(bindings, _root(root), source.name(source.top), problems)
  if walker.statements_are_sound() and source.complete:
    walker.check_whole()
  problems.raise_any()
  return walker.resolved()


class Walker:
  """The checks of one config's statements, in the order of their effect."""

  def __init__(
    self,
    bindings: Sequence[Binding],
    root: Reference,
    file: str,
    problems: Problems,
  ):
    """Lets later bindings win over earlier ones; checks nothing yet."""
    self._bindings = bindings
    self._root = root
    self._file = file
    self._problems = problems
    self._winners: dict[str, Binding] = {}
    self._losers: dict[str, Binding] = {}
    for binding in bindings:
      if binding.label in self._winners:
        self._losers[binding.label] = self._winners[binding.label]
      self._winners[binding.label] = binding
    self._macros = {b.name: b for b in self._winners.values() if b.is_macro}
    self._definitions = {name: b.value for name, b in self._macros.items()}
    self._sizes = graph.Sizes(bindings, problems)

  def statements_are_sound(self) -> bool:
    """Checks each statement alone.

    Returns:
      False if what is said of the whole config would be guesswork.
    """
    sound = self._sizes.sound
    root = Binding("", "", "", self._root, self._file, 0)
    sound &= self._references_are_known(root)
    for binding in self._bindings:
      if binding.is_macro:
        if _misnamed(binding):
          self._add(binding, _misnamed(binding))
      elif registry.entry(binding.name) is None:
        self._add(binding, _unknown(binding.name, ""))
      elif self._parameter_is_known(binding) and self._sizes.sound:
        self._check_type(binding)
      sound &= self._references_are_known(binding)
    return sound

  def check_whole(self) -> None:
    """Checks macros, scopes, missing parameters and what nothing uses."""
    self._check_macros()
    scopes = self._scopes()
    strays = [b for b in self._bindings if b.scope not in scopes]
    for binding in strays:
      if not binding.is_macro:
        self._add(
          binding,
          f"no reference has the scope {binding.scope!r}"
          + suggest(binding.scope, scopes - {""})
          + has(sorted(scopes - {""})),
        )
    if not strays:
      self._check_unused()
    graph.Plan(self._winners, self._sizes, self._problems).check(
      self._root, self._file
    )
    used = graph.reach(self._winners.values(), self._root)
    for label in sorted(used & self._winners.keys()):
      binding = self._winners[label]
      if values.REQUIRED in values.macros(binding.value):
        self._add(binding, "is %gin.REQUIRED and must be bound by this config")

  def resolved(self) -> Resolved:
    """Returns the winners with what they won over."""
    used = graph.reach(self._winners.values(), self._root)
    return Resolved(
      root=values.scoped(self._root.scope, self._root.name),
      file=self._file,
      winners=self._winners,
      losers=self._losers,
      used=used & self._winners.keys(),
    )

  def _add(self, binding: Binding, message: str) -> None:
    label = f"{binding.label}: " if binding.label else ""
    self._problems.add(binding.file, binding.line, label + message)

  def _parameter_is_known(self, binding: Binding) -> bool:
    obj = registry.entry(binding.name).obj
    valid = registry.parameters(obj)
    if binding.parameter in valid:
      return True
    if not registry.accepts_any(obj):
      self._add(
        binding,
        f"no such parameter{suggest(binding.parameter, valid)}"
        + has(valid.values()),
      )
    return False

  def _check_type(self, binding: Binding) -> None:
    obj = registry.entry(binding.name).obj
    annotation = registry.parameters(obj)[binding.parameter].annotation
    value = values.inline(binding.value, self._definitions)
    wrong = annotations.mismatch(value, annotation, _lookup)
    if wrong:
      sources = [
        f" (%{name} is bound in {self._macros[name].place})"
        for name in values.macros(binding.value)
        if name in self._macros
      ]
      self._add(binding, wrong + "".join(sources))

  def _references_are_known(self, binding: Binding) -> bool:
    sound = True
    for reference in values.references(binding.value):
      if registry.entry(reference.name) is None:
        self._add(binding, _unknown(reference.name, "@"))
        sound = False
      elif reference.scope and not graph.built(reference):
        self._add(
          binding,
          f"{reference!r}: has a scope and no call; write {reference!r}()",
        )
    return sound

  def _check_macros(self) -> None:
    used: set[str] = set()
    definitions = {name: [v] for name, v in self._definitions.items()}
    for binding in self._bindings:
      for name in values.macros(binding.value):
        if name not in self._macros and name != values.REQUIRED:
          self._add(
            binding,
            f"%{name}: no such macro{suggest(name, self._macros)}"
            + has(sorted(self._macros)),
          )
      if not binding.is_macro:
        used |= graph.closure(binding.value, definitions)[0]
    for binding in self._bindings:
      unused = binding.is_macro and binding.name not in used
      if unused and not _misnamed(binding):
        valid = used - {values.REQUIRED}
        self._add(
          binding,
          f"no binding uses this macro{suggest(binding.name, valid)}"
          + has(sorted(valid)),
        )

  def _scopes(self) -> set[str]:
    """Returns the scopes that a binding can have."""
    found = [r for b in self._bindings for r in values.references(b.value)]
    scopes = {r.scope for r in (*found, self._root) if graph.built(r)}
    return {prefix for scope in scopes for prefix in values.prefixes(scope)}

  def _check_unused(self) -> None:
    """Refuses what has no effect; an overridden reference still counts."""
    used = graph.reach(self._bindings, self._root)
    passed = {
      r.name
      for b in self._bindings
      for r in values.references(b.value)
      if not r.called
    }
    seen: set[tuple[str, str]] = set()
    for binding in self._bindings:
      key = (binding.scope, binding.name)
      known = registry.entry(binding.name)
      if binding.is_macro or not known or binding.label in used or key in seen:
        continue
      seen.add(key)
      what = values.scoped(*key)
      if binding.name in passed:
        message = f"has no effect, as @{binding.name} is passed without a call"
      else:
        message = f"has no effect, as nothing refers to @{what}()"
      self._add(binding, message)


def _root(root: str) -> Reference:
  scope, _, name = root.rpartition("/")
  return Reference(scope, name, called=True)


def _misnamed(macro: Binding) -> str | None:
  """Returns what is wrong with the name of a macro, or None."""
  entry = registry.entry(macro.name)
  if entry:
    valid = registry.parameters(entry.obj).values()
    return f"is bound by its parameters{has(valid)}"
  if macro.scope:
    return "a macro has no scope"
  if not _MACRO.fullmatch(macro.name):
    return "neither Name.parameter nor a macro, whose name is UPPER_CASE"
  return None


def _lookup(name: str) -> Any:
  entry = registry.entry(name)
  return entry.obj if entry else None


def _unknown(name: str, sign: str) -> str:
  """Returns the message for a name that is not registered."""
  valid = list(registry.registered())
  near = suggest(name.rpartition(".")[2], valid)
  return f"no such name {sign}{name}{near}{'' if near else has(valid)}"
