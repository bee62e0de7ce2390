"""Numbers in which configs differ, so that they become an axis.

Weights, temperatures and learning rates of a method are fields of frozen
dataclasses. Where methods differ in nothing but such numbers, one program with
the numbers as arguments runs all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen

from jaxkd.errors import ConfigError
from jaxkd.identity import fields

Path = tuple[Any, ...]  # names of fields, keys and positions


def differing(configs: Sequence[Any]) -> dict[Path, tuple[float, ...]]:
  """Finds the numbers in which configs differ.

  Args:
    configs: dataclasses of one kind, at least one.

  Returns:
    By path, one number a config; nothing if they are equal.

  Raises:
    ConfigError: they differ in something else, such as a network, a name or a
      number of epochs, which decides the program; its path is named.
  """
  found: dict[Path, tuple[float, ...]] = {}
  _compare(list(configs), (), found)
  return found


def with_numbers(config: Any, numbers: Mapping[Path, Any]) -> Any:
  """The config with other numbers, which may be traced.

  Args:
    config: a dataclass.
    numbers: by path, see `differing`. They are not checked again: each comes
      from a config that was.
  """
  for path, number in numbers.items():
    config = _replaced(config, path, number)
  return config


def name_of(path: Path) -> str:
  """A path as it is written in a config: `terms[0].weight`."""
  text = "".join(
    f".{part}" if isinstance(part, str) else f"[{part}]" for part in path
  )
  return text.removeprefix(".")


def _compare(values: list[Any], path: Path, found: dict) -> None:
  first = values[0]
  if all(value is first for value in values):
    return
  if all(map(_is_number, values)):
    if len(set(values)) > 1:
      if all(isinstance(value, int) for value in values):
        raise _different(path, values)
      found[path] = tuple(map(float, values))
    return
  if any(type(value) is not type(first) for value in values):
    raise _different(path, values)
  for part, inner in _parts(values, path).items():
    _compare(inner, (*path, part), found)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _parts(values: list[Any], path: Path) -> dict[Any, list[Any]]:
  """What is inside of equal containers; {} if all are equal."""
  first = values[0]
  if dataclasses.is_dataclass(first) and not isinstance(first, linen.Module):
    seen = [fields(value) for value in values]
    return {name: [value[name] for value in seen] for name in seen[0]}
  if isinstance(first, Mapping):
    if all(list(value) == list(first) for value in values):
      return {key: [value[key] for value in values] for key in first}
  elif isinstance(first, tuple):
    if all(len(value) == len(first) for value in values):
      return dict(enumerate(map(list, zip(*values, strict=True))))
  elif all(_equal(value, first) for value in values):
    return {}
  raise _different(path, values)


def _equal(one: Any, other: Any) -> bool:
  same = one == other
  return same if isinstance(same, bool) else False  # arrays are not compared


def _different(path: Path, values: list[Any]) -> ConfigError:
  shown = ", ".join(dict.fromkeys(f"{value!r:.40}" for value in values))
  return ConfigError(
    f"{name_of(path)} is {shown}; expected one value, or numbers with a point"
  )


def _replaced(config: Any, path: Path, number: Any) -> Any:
  if not path:
    return number
  part, rest = path[0], path[1:]
  if isinstance(config, Mapping):
    return {**config, part: _replaced(config[part], rest, number)}
  if isinstance(config, tuple):
    new = _replaced(config[part], rest, number)
    return (*config[:part], new, *config[part + 1 :])
  # Not by `replace`, whose checks read the numbers.
  copied = object.__new__(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name == part:
      value = _replaced(value, rest, number)
    object.__setattr__(copied, field.name, value)
  return copied
