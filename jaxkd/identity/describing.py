"""Describes built configs as plain data, to compare them and to sign them.

The plain form holds None, booleans, numbers and strings as they are, and all
else as a dict with one tag, so that nothing is mistaken for something else:

  {"class": "jaxkd.methods.kd.KD", "fields": {...}}  (Linen, NamedTuple too)
  {"tuple": [...]}  {"list": [...]}  {"set": [...]}  {"dict": [[key, value]]}
  {"function": "jax.nn.functions.relu"}  {"type": "..."}  {"enum": "..."}
  {"partial": ..., "args": ..., "keywords": ...}  {"bound": ..., "of": ...}
  {"default": "flax.linen.linear.Dense.kernel_init"}  (a closure left alone)
  {"path": "..."}  {"bytes": hex}  {"array": sha256, "dtype": ..., "shape": ...}

It is JSON, holds no address and no order of a hash, and so is the same in
every process and on every machine. Private parts of module names (`jax._src`)
are left out, as libraries move them.
"""

import collections.abc
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import os
import sys
import types
import typing
from typing import Any

import numpy as np

from jaxkd.errors import ConfigError

_SCALARS = (type(None), bool, int, float, str)
_MAX_DEPTH = 60


def digest(obj: Any) -> str:
  """Returns the sha256 of a built config, in hex.

  Two configs have the same digest if and only if `describe` gives the same.

  Args:
    obj: A tree of dataclasses, Linen modules, containers and plain values.

  Raises:
    ConfigError: If something in it has no description; it is named.
  """
  return hashlib.sha256(canonical(describe(obj)).encode()).hexdigest()


def describe(obj: Any) -> Any:
  """Returns a built config as plain data; see the head of this file.

  A whole number in a field, or bound to a parameter, that is annotated `float`
  is described as a float, as `4` and `4.0` configure the same.

  Args:
    obj: A tree of dataclasses, Linen modules, containers and plain values.

  Raises:
    ConfigError: If something in it has no description, such as a lambda, a
      closure or an open file; it is named by its path.
  """
  return _describe(obj, type(obj).__name__, 0)


def _describe(obj: Any, path: str, depth: int) -> Any:
  if depth > _MAX_DEPTH:
    raise ConfigError(f"cannot describe {path}: it holds itself")
  if type(obj) in _SCALARS:
    return obj
  if isinstance(obj, enum.Enum):
    return {"enum": f"{_qualified(type(obj))}.{obj.name}"}
  if isinstance(obj, type):
    return {"type": _qualified(obj)}
  named_tuple = isinstance(obj, tuple) and hasattr(obj, "_fields")
  if dataclasses.is_dataclass(obj) or named_tuple:
    plain = {
      name: _field(obj, name, value, f"{path}.{name}", depth + 1)
      for name, value in fields(obj).items()
    }
    return {"class": _qualified(type(obj)), "fields": plain}
  if isinstance(obj, tuple | list | set | frozenset | collections.abc.Mapping):
    return _container(obj, path, depth + 1)
  if isinstance(obj, os.PathLike):
    return {"path": os.fspath(obj).replace(os.sep, "/")}
  if isinstance(obj, bytes):
    return {"bytes": obj.hex()}
  if isinstance(obj, np.dtype):
    return {"dtype": str(obj)}
  if hasattr(obj, "__array__") and hasattr(obj, "dtype"):
    return _array(np.asarray(obj))
  if callable(obj):
    return _function(obj, path, depth + 1)
  raise _cannot(path, f"a {_qualified(type(obj))}")


def _field(obj: Any, name: str, value: Any, path: str, depth: int) -> Any:
  """Describes the value of a field; a closure only if it is the default."""
  try:
    return _describe(value, path, depth)
  except ConfigError:
    defaults = getattr(type(obj), "__dataclass_fields__", {})
    if callable(value) and name in defaults and defaults[name].default is value:
      return {"default": f"{_qualified(type(obj))}.{name}"}
    raise


def fields(obj: Any) -> dict[str, Any]:
  """Returns what a dataclass or NamedTuple was made with, by name.

  Args:
    obj: one; whole numbers in fields that are annotated `float` are floats.
  """
  if not dataclasses.is_dataclass(obj):
    return {name: getattr(obj, name) for name in obj._fields}
  hints, found = _hints(type(obj)), {}
  linen = sys.modules.get("flax.linen")
  module = bool(linen) and isinstance(obj, linen.Module)
  for field in dataclasses.fields(obj):
    if not field.init or (module and field.name == "parent"):
      continue
    value = getattr(obj, field.name)
    if module and field.name == "name" and value is None:
      continue
    if type(value) is int and _is_float(hints.get(field.name)):
      value = float(value)
    found[field.name] = value
  return found


def _keywords(bound: functools.partial) -> dict[str, Any]:
  """Returns the keywords of a partial, numbers as its function reads them."""
  hints = _hints(bound.func)
  return {
    name: float(value)
    if type(value) is int and _is_float(hints.get(name))
    else value
    for name, value in bound.keywords.items()
  }


def _hints(obj: Any) -> dict[str, Any]:
  try:
    return typing.get_type_hints(obj)
  except (NameError, TypeError, AttributeError):
    return {}


def _is_float(annotation: Any) -> bool:
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    choices = typing.get_args(annotation)
    return float in choices and int not in choices
  return annotation is float


def _container(obj: Any, path: str, depth: int) -> dict[str, Any]:
  if isinstance(obj, collections.abc.Mapping):
    items = [
      [
        _describe(key, f"{path} (key {key!r})", depth),
        _describe(value, f"{path}[{key!r}]", depth),
      ]
      for key, value in obj.items()
    ]
    return {"dict": sorted(items, key=lambda item: canonical(item[0]))}
  items = [_describe(v, f"{path}[{i}]", depth) for i, v in enumerate(obj)]
  if isinstance(obj, set | frozenset):
    return {"set": sorted(items, key=canonical)}
  return {"tuple" if isinstance(obj, tuple) else "list": items}


def _array(array: np.ndarray) -> dict[str, Any]:
  if array.dtype.hasobject:
    raise ConfigError("cannot describe an array of Python objects")
  content = np.ascontiguousarray(array).tobytes()
  return {
    "array": hashlib.sha256(content).hexdigest(),
    "dtype": str(array.dtype),
    "shape": list(array.shape),
  }


def _function(obj: Any, path: str, depth: int) -> dict[str, Any]:
  if isinstance(obj, functools.partial):
    return {
      "partial": _describe(obj.func, f"{path}.func", depth),
      "args": _describe(obj.args, f"{path}.args", depth),
      "keywords": _describe(_keywords(obj), f"{path}.keywords", depth),
    }
  if inspect.ismethod(obj):
    owner = _describe(obj.__self__, f"{path}.__self__", depth)
    return {"bound": obj.__name__, "of": owner}
  name = _qualified(obj)
  found: Any = sys.modules.get(getattr(obj, "__module__", None) or "")
  for part in (getattr(obj, "__qualname__", None) or "?").split("."):
    found = getattr(found, part, None)
  if found is not obj:
    raise _cannot(path, f"{name}, which no module holds by that name")
  return {"function": name}


def _qualified(obj: Any) -> str:
  name = getattr(obj, "__qualname__", None) or type(obj).__qualname__
  parts = str(getattr(obj, "__module__", None)).split(".")
  public = [
    part for part in parts if not part.startswith("_") or part == "__main__"
  ]
  return ".".join([*public, name])


def _cannot(path: str, what: str) -> ConfigError:
  return ConfigError(
    f"cannot describe {path}: {what}; a config holds dataclasses, Linen"
    " modules, containers, numbers, strings and functions of a module"
  )


def canonical(plain: Any) -> str:
  """Returns the one text of plain data, whatever the order of its keys."""
  return json.dumps(plain, sort_keys=True, separators=(",", ":"))
