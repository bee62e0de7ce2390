"""Builds the objects of a checked config: the one place where gin acts."""

import contextlib
import functools
import inspect
import re
import threading
from collections.abc import Iterator
from typing import Any

import gin

from jaxkd import errors
from jaxkd.config import registry, values
from jaxkd.config.resolved import Resolved
from jaxkd.config.values import Reference
from jaxkd.errors import ConfigError, JaxkdError

_LOCK = threading.RLock()
_DECLARED: dict[str, Any] = {}  # what gin knows, by selector
_PASSED = "jaxkd.passed"
_CALL = re.compile(r"'(?P<name>\w+)'.*?(?: in scope '(?P<scope>.*)')?$", re.M)


class Bound(functools.partial):
  """A function with what a config binds of it; equal to another such one."""

  def _parts(self) -> tuple[Any, ...]:
    return self.func, self.args, tuple(sorted(self.keywords.items()))

  def __eq__(self, other: object) -> bool:
    return type(other) is type(self) and other._parts() == self._parts()

  def __hash__(self) -> int:
    return hash(self._parts())


def build(resolved: Resolved) -> Any:
  """Returns the object that a checked config describes.

  gin reads no file here: it gets the checked statements as one text, with
  macros replaced and every name in full, and its bindings are cleared before
  and after.

  Args:
    resolved: A checked config.

  Raises:
    ConfigError: If a class refuses its values, with the line that binds them.
  """
  scope, _, name = resolved.root.rpartition("/")
  with _LOCK, _clean_gin():
    try:
      gin.parse_config(_gin_text(resolved))
      _declare(name)
      with gin.config_scope(scope.split("/") if scope else None):
        return gin.get_configurable(registry.entry(name).selector)()
    except RecursionError:
      raise ConfigError(
        f"{resolved.file}:1: objects and values nest too deep"
      ) from None
    except Exception as e:  # gin wraps whatever a constructor raises
      raise _located(e, resolved) from e


@contextlib.contextmanager
def _clean_gin() -> Iterator[None]:
  gin.clear_config()
  try:
    yield
  finally:
    gin.clear_config()


def _gin_text(resolved: Resolved) -> str:
  """Returns the used bindings as gin reads them."""
  used = [b for b in resolved.winners.values() if b.label in resolved.used]
  definitions = {b.name: b.value for b in used if b.is_macro}
  lines = []
  for binding in used:
    if binding.is_macro:
      continue
    value = values.text(values.inline(binding.value, definitions), _refer)
    for selector in _selectors(binding.name):
      label = values.scoped(binding.scope, selector)
      lines.append(f"{label}.{binding.parameter} = {value}")
  return "\n".join(lines)


def _selectors(name: str) -> list[str]:
  """Returns what carries a binding: what is built, and what is passed."""
  if registry.carries_bindings(name):
    return [_declare(name), _declare_passed(name)]
  return [_declare(name)]


def _refer(reference: Reference) -> str:
  declare = _declare if reference.called else _declare_passed
  return f"@{values.scoped(reference.scope, declare(reference.name))}()"


def _declare(name: str) -> str:
  """Makes a registered object known to gin; returns its full name there."""
  entry = registry.entry(name)
  if _DECLARED.get(entry.selector) is not entry.obj:
    gin.external_configurable(
      _function(entry.obj), name=name, module=entry.module
    )
    _DECLARED[entry.selector] = entry.obj
  return entry.selector


def _declare_passed(name: str) -> str:
  """Makes `@name` give the object itself; gin would give a wrapper of it.

  A function comes with what is bound of it, as a `functools.partial`.
  """
  selector, obj = f"{_PASSED}.{name}", registry.entry(name).obj
  if _DECLARED.get(selector) is not obj:
    gin.external_configurable(
      lambda **bound: Bound(obj, **bound) if bound else obj,
      name=name,
      module=_PASSED,
    )
    _DECLARED[selector] = obj
  return selector


def _function(obj: Any) -> Any:
  """Returns a class or function as it is, another callable as a function."""
  if inspect.isclass(obj) or inspect.isroutine(obj):
    return obj

  @functools.wraps(obj, assigned=(), updated=())
  def call(*arguments: Any, **keywords: Any) -> Any:
    return obj(*arguments, **keywords)

  return call


def _located(error: Exception, resolved: Resolved) -> JaxkdError:
  """Returns an error of a constructor with the place of its bindings."""
  message, *calls = str(error).split("\n  In call to configurable ")
  message = message.split("\n  No values supplied by Gin")[0]
  place, label = f"{resolved.file}:1", ""
  call = _CALL.match(calls[0]) if calls else None
  if call:
    name, scope = call["name"], call["scope"] or ""
    label = f"{values.scoped(scope, name)}: "
    bound = [
      binding
      for prefix in reversed(values.prefixes(scope))
      for binding in resolved.winners.values()
      if (binding.scope, binding.name) == (prefix, name)
    ]
    place = bound[0].place if bound else place
  bases = type(error).__mro__  # gin raises a subclass made for the occasion
  kind = next((c for c in bases if vars(errors).get(c.__name__) is c), None)
  return (kind or ConfigError)(f"{place}: {label}{message}")
