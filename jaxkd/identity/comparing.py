"""Says in lines what differs between two descriptions of configs."""

from typing import Any

from jaxkd.identity.describing import canonical

_ABSENT = object()

# The tags of `describing`: further keys, and what the tag itself holds.
_TAGS = {
  "class": ({"fields"}, str),
  "tuple": (set(), list),
  "list": (set(), list),
  "set": (set(), list),
  "dict": (set(), list),
  "function": (set(), str),
  "type": (set(), str),
  "enum": (set(), str),
  "default": (set(), str),
  "path": (set(), str),
  "bytes": (set(), str),
  "dtype": (set(), str),
  "array": ({"dtype", "shape"}, str),
  "bound": ({"of"}, str),
  "partial": ({"args", "keywords"}, dict),
}


def difference(old: Any, new: Any) -> list[str]:
  """Returns what differs between two results of `describe`.

  Args:
    old: The one, say of a run directory, as JSON has kept it; or a dict of
      such results by name.
    new: The other, likewise.

  Returns:
    Lines such as `Experiment.method.temperature: 4.0 -> 2.0`, where a dict by
    name gives `method.temperature: 4.0 -> 2.0`; none if the two are the same.
  """
  tag = _tag(old)
  if tag == "class":
    return _difference(old, new, _short(old["class"]))
  names = isinstance(old, dict) and isinstance(new, dict) and not tag
  return _difference(old, new, "" if names else "config")


def _difference(old: Any, new: Any, path: str) -> list[str]:
  absent = old is _ABSENT or new is _ABSENT
  if not absent and canonical(old) == canonical(new):
    return []
  before, after = _parts(old, new, path), _parts(new, old, path)
  if before is None or after is None:
    return [f"{path}: {_show(old)} -> {_show(new)}"]
  return [
    line
    for name in {**before, **after}
    for line in _difference(
      before.get(name, _ABSENT), after.get(name, _ABSENT), name
    )
  ]


def _parts(plain: Any, other: Any, path: str) -> dict[str, Any] | None:
  """Returns the parts by path, or None if the two differ as a whole."""
  tag = _tag(plain)
  if tag != _tag(other):
    return None
  if tag is None and isinstance(plain, dict) and isinstance(other, dict):
    return {f"{path}.{name}".lstrip("."): v for name, v in plain.items()}
  if tag == "class" and plain["class"] == other["class"]:
    return {f"{path}.{name}": v for name, v in plain["fields"].items()}
  if tag == "dict":
    return {f"{path}[{_show(key)}]": v for key, v in plain["dict"]}
  if tag in ("tuple", "list") and len(plain[tag]) == len(other[tag]):
    if any(map(_tag, plain[tag] + other[tag])):
      return {f"{path}[{i}]": v for i, v in enumerate(plain[tag])}
  return None


def _tag(plain: Any) -> str | None:
  """Returns the tag of a plain form; None for a value and a dict by name."""
  if not isinstance(plain, dict):
    return None
  for tag, (further, kind) in _TAGS.items():
    if plain.keys() == {tag, *further} and isinstance(plain[tag], kind):
      return tag
  return None


def _short(qualified: str) -> str:
  return qualified.rpartition(".")[2]


def _show(plain: Any) -> str:
  """Returns a plain form as Python would write it."""
  tag = _tag(plain)
  if tag is None:
    return "absent" if plain is _ABSENT else repr(plain)
  content = plain[tag]
  if tag == "class":
    fields = [f"{k}={_show(v)}" for k, v in plain["fields"].items()]
    return f"{_short(content)}({', '.join(fields)})"
  if tag == "tuple":
    items = [_show(item) for item in content]
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
  if tag in ("list", "set"):
    left, right = "[]" if tag == "list" else "{}"
    return left + ", ".join(map(_show, content)) + right
  if tag == "dict":
    items = [f"{_show(key)}: {_show(value)}" for key, value in content]
    return f"{{{', '.join(items)}}}"
  if tag in ("function", "type", "enum", "default"):
    return _short(content)
  if tag == "array":
    return f"{plain['dtype']}{plain['shape']} {content[:12]}"
  if tag == "bound":
    return f"{_show(plain['of'])}.{content}"
  if tag == "partial":
    return f"partial({_show(content)}, {_show(plain['args'])})"
  return content
