"""Parts of parameter trees, chosen by role or path patterns."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax

from jaxkd.errors import ConfigError, did_you_mean

Tree = Any


def match(pattern: str, path: str) -> bool:
  """Whether a parameter path lies under a role or path pattern.

  `*` stands for one path part or a part of it, `**` for any depth; a pattern
  also takes everything below what it names.
  """
  return _match(tuple(pattern.split("/")), tuple(path.split("/")))


@functools.lru_cache(maxsize=65536)
def _match(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
  if not pattern:
    return True
  if pattern[0] == "**":
    return any(_match(pattern[1:], path[i:]) for i in range(len(path) + 1))
  return bool(
    path
    and fnmatch.fnmatchcase(path[0], pattern[0])
    and _match(pattern[1:], path[1:])
  )


def split_params(
  params: Mapping[str, Tree], patterns: Sequence[str]
) -> tuple[dict[str, Tree], dict[str, Tree]]:
  """Parts parameters by role into the matching ones and the rest.

  Args:
    params: parameter trees by role.
    patterns: roles or path patterns, see `match`.

  Returns:
    Two trees of the same nesting; `merge_params` puts them together again.

  Raises:
    ConfigError: if a pattern matches nothing.
  """
  flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
  for pattern in patterns:
    if not any(match(pattern, path) for path in flat):
      parents = {path.rsplit("/", 1)[0] for path in flat} | set(params)
      raise ConfigError(
        f"trainable pattern {pattern!r} matches no parameter"
        + did_you_mean(pattern, parents | set(flat))
        + f" (roles: {', '.join(sorted(params))})"
      )
  chosen = {
    path for path in flat if any(match(pattern, path) for pattern in patterns)
  }
  parts = (
    {path: leaf for path, leaf in flat.items() if path in chosen},
    {path: leaf for path, leaf in flat.items() if path not in chosen},
  )
  unflatten = flax.traverse_util.unflatten_dict
  return tuple(unflatten(part, sep="/") for part in parts)


def merge_params(first: Mapping, second: Mapping) -> dict[str, Tree]:
  """Merges two nested dicts without common leaves."""
  merged = dict(first)
  for name, value in second.items():
    merged[name] = (
      merge_params(merged[name], value) if name in merged else value
    )
  return merged
