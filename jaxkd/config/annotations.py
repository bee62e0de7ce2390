"""Compares the literals of a config with the annotations of parameters.

An annotation that says nothing checkable (`Any`, a type variable, a protocol)
accepts everything; a reference to a function may return anything.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from jaxkd.config import values
from jaxkd.config.problems import suggest

_SEQUENCES = (
  collections.abc.Sequence,
  collections.abc.Iterable,
  collections.abc.Collection,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def mismatch(
  value: Any, annotation: Any, lookup: Callable[[str], Any]
) -> str | None:
  """Returns what is wrong with a value, or None if it fits.

  Args:
    value: A value of a config, its macros replaced.
    annotation: The evaluated annotation of its parameter.
    lookup: Returns the registered object of a name, or None.

  Returns:
    Such as `expected float, got '4' (str)`.
  """
  if fits(value, annotation, lookup):
    return None
  message = f"expected {describe(annotation)}, got {_got(value, lookup)}"
  choices = [c for c in typing.get_args(annotation) if isinstance(c, str)]
  if isinstance(value, str):
    return message + suggest(value, choices)
  if isinstance(value, list) and fits(tuple(value), annotation, lookup):
    return f"{message}; write {values.text(tuple(value))}"
  return message


def fits(value: Any, annotation: Any, lookup: Callable[[str], Any]) -> bool:
  """Returns whether a value can be what the annotation says."""
  annotation = _plain(annotation)
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if annotation in (Any, object) or isinstance(value, values.Macro):
    return True  # a macro left here has no definition, as is said elsewhere
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, arg, lookup) for arg in args)
  if isinstance(value, values.Reference):
    return _reference_fits(value, annotation, lookup)
  if origin is typing.Literal:
    return any(value == a and type(value) is type(a) for a in args)
  if annotation is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if annotation is None:
    return value is None
  kind = origin or annotation
  if not isinstance(kind, type) or typing.is_typeddict(kind):
    return True
  if kind is collections.abc.Callable:
    return False
  if kind is tuple or kind is list or kind in _SEQUENCES:
    return _sequence_fits(value, kind, args, lookup)
  if kind in _MAPPINGS:
    return isinstance(value, dict) and (
      len(args) != 2
      or all(
        fits(k, args[0], lookup) and fits(v, args[1], lookup)
        for k, v in value.items()
      )
    )
  return _is_protocol(kind) or isinstance(value, kind)


def describe(annotation: Any) -> str:
  """Returns an annotation in the words of a message."""
  annotation = _plain(annotation)
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(describe(arg) for arg in args)
  if annotation in (None, type(None)):
    return "None"
  if origin is typing.Literal:
    return "one of " + ", ".join(map(repr, args))
  if (origin or annotation) is collections.abc.Callable:
    return "a function (such as @name, without a call)"
  name = getattr(origin or annotation, "__name__", str(annotation))
  if not args:
    return name
  inner = ["..." if arg is Ellipsis else describe(arg) for arg in args]
  return f"{name}[{', '.join(inner)}]"


def _plain(annotation: Any) -> Any:
  """Returns what an alias, `Annotated[X, ...]` or a NewType stands for."""
  while True:
    if typing.get_origin(annotation) is typing.Annotated:
      annotation = typing.get_args(annotation)[0]
    elif isinstance(annotation, typing.NewType):
      annotation = annotation.__supertype__
    elif type(annotation).__name__ == "TypeAliasType":
      annotation = annotation.__value__
    else:
      return annotation


def _sequence_fits(value: Any, kind: type, args: tuple, lookup: Any) -> bool:
  if not isinstance(value, kind) or isinstance(value, str | bytes | dict):
    return False
  if kind is not tuple:
    return not args or all(fits(item, args[0], lookup) for item in value)
  if not args and value:
    return True
  if len(args) == 2 and args[1] is Ellipsis:
    return all(fits(item, args[0], lookup) for item in value)
  return len(value) == len(args) and all(
    fits(item, arg, lookup) for item, arg in zip(value, args, strict=True)
  )


def _reference_fits(
  value: values.Reference, annotation: Any, lookup: Callable[[str], Any]
) -> bool:
  obj = lookup(value.name)
  kind = typing.get_origin(annotation) or annotation
  if kind is None or kind is typing.Literal:
    return False
  if obj is None or not isinstance(kind, type) or _is_protocol(kind):
    return True
  if value.called:
    return not inspect.isclass(obj) or issubclass(obj, kind)
  return isinstance(obj, kind)


def _is_protocol(kind: type) -> bool:
  return getattr(kind, "_is_protocol", False)


def _got(value: Any, lookup: Callable[[str], Any]) -> str:
  written = values.text(value)
  if len(written) > 60:
    written = written[:57] + "..."
  if not isinstance(value, values.Reference):
    return f"{written} ({type(value).__name__})"
  if not value.called and inspect.isclass(lookup(value.name)):
    return f"{written} (the class itself; {written}() builds one)"
  return written
