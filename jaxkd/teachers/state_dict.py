"""A pickle of a state dict, followed without running it.

A pickle is a program for a small stack machine, and some of its instructions
call any function that it names. The machine here has the instructions that
a state dict needs, and three names that they may call, each of which builds a
plain value of ours. An unknown instruction or name ends it.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

Value = Any
_MARK = object()
_MOST = 1 << 63


class Refused(Exception):
  """The pickle is damaged, or is not of a state dict alone."""


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that the pickle refers to; never looked up."""

  name: str


@dataclasses.dataclass(frozen=True)
class Storage:
  """Where numbers lie.

  Attributes:
    kind: torch's name of its type, such as `FloatStorage`.
    key: its name in the archive.
    count: how many numbers it has.
  """

  kind: str
  key: str
  count: int


@dataclasses.dataclass(frozen=True)
class Strided:
  """A tensor: a view of a storage, counted in numbers."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def follow(pickle: bytes | BinaryIO) -> Value:
  """Returns the value that a pickle describes.

  Args:
    pickle: of protocol 2 to 5; a file is read up to the pickle's end.

  Returns:
    Dicts, lists, tuples, numbers, strings and `Strided` tensors.

  Raises:
    Refused: it is damaged, or needs more than that.
  """
  machine = _Machine()
  try:
    for opcode, argument, _ in pickletools.genops(pickle):
      if opcode.name == "STOP":
        return machine.stack.pop()
      machine.step(opcode.name, argument)
  except Refused:
    raise
  except (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
  ) as error:
    raise Refused(
      f"its pickle is damaged ({type(error).__name__}: {str(error)[:200]})"
    ) from error
  raise Refused("its pickle is damaged: it does not stop")


def tensors(value: Value) -> dict[str, Strided]:
  """Finds the one dict of tensors in what was saved.

  Args:
    value: a state dict, or a dict that has one, such as `{"model": ...}`.

  Returns:
    Tensors by name.

  Raises:
    Refused: there is none, there are several, or it has more than tensors.
  """
  if not isinstance(value, dict):
    raise Refused(f"it holds a {type(value).__name__}, expected a state dict")
  if not _has_tensor(value):
    inner = {key: part for key, part in value.items() if _has_tensor(part)}
    if len(inner) != 1:
      raise Refused(
        f"it holds {len(inner)} state dicts ({', '.join(map(repr, inner))}), "
        "expected one; save that one alone"
      )
    (value,) = inner.values()
  for name, part in value.items():
    if not isinstance(name, str) or not isinstance(part, Strided):
      raise Refused(
        f"its entry {name!r} is a {type(part).__name__}, expected a tensor"
      )
  return value


def _has_tensor(value: Value) -> bool:
  return isinstance(value, dict) and any(
    isinstance(part, Strided) for part in value.values()
  )


class _Machine:
  """The stack and the memo of a pickle; what its instructions do to them."""

  def __init__(self):
    self.stack: list[Value] = []
    self.memo: dict[int, Value] = {}

  def step(self, name: str, argument: Any) -> None:
    if name in _LITERALS:
      self.stack.append(argument)
    elif name in _CONSTANTS:
      self.stack.append(_CONSTANTS[name]())
    elif name in _TUPLES:
      count = _TUPLES[name]
      parts = [self.stack.pop() for _ in range(count)]
      self.stack.append(tuple(reversed(parts)))
    elif name in _STEPS:
      _STEPS[name](self, argument)
    elif name == "INST":
      raise Refused(f"its pickle would call {argument.replace(' ', '.')}")
    else:
      raise Refused(
        f"its pickle has the instruction {name}, which no state dict needs"
      )

  def marked(self) -> list[Value]:
    """What was pushed since the last mark."""
    found = []
    while (value := self.stack.pop()) is not _MARK:
      found.append(value)
    return found[::-1]

  def tuple_of_marked(self, _: Any) -> None:
    self.stack.append(tuple(self.marked()))

  def put(self, index: int) -> None:
    self.memo[index] = self.stack[-1]

  def memoize(self, _: Any) -> None:
    self.memo[len(self.memo)] = self.stack[-1]

  def get(self, index: int) -> None:
    self.stack.append(self.memo[index])

  def pop(self, _: Any) -> None:
    self.stack.pop()

  def append(self, _: Any) -> None:
    value = self.stack.pop()
    _expect(list, self.stack[-1]).append(value)

  def appends(self, _: Any) -> None:
    values = self.marked()
    _expect(list, self.stack[-1]).extend(values)

  def set_item(self, _: Any) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    _fill(self.stack[-1], [key, value])

  def set_items(self, _: Any) -> None:
    pairs = self.marked()
    _fill(self.stack[-1], pairs)

  def global_(self, argument: str) -> None:
    self.stack.append(_known(*argument.split(" ", 1)))

  def stack_global(self, _: Any) -> None:
    name, module = self.stack.pop(), self.stack.pop()
    self.stack.append(_known(_expect(str, module), _expect(str, name)))

  def persistent(self, _: Any) -> None:
    tag, kind, key, _place, count, *view = _expect(tuple, self.stack.pop())
    if view not in ([], [None]):
      raise Refused("its pickle has a storage within another one")
    kind = _expect(Global, kind).name
    if tag != "storage" or not kind.endswith("Storage"):
      raise Refused(f"its pickle refers to a {kind!r}, expected a storage")
    key = _expect(str, key)
    storage = Storage(kind.split(".")[-1], key, _size(count))
    self.stack.append(storage)

  def reduce(self, _: Any) -> None:
    arguments, function = self.stack.pop(), self.stack.pop()
    name = _expect(Global, function).name
    if name not in _FUNCTIONS:
      raise Refused(f"its pickle would call {name}")
    self.stack.append(_FUNCTIONS[name](*_expect(tuple, arguments)))

  def build(self, _: Any) -> None:
    """An ordered dict's attributes, such as `_metadata`, are dropped."""
    state = self.stack.pop()
    _expect(dict, self.stack[-1])
    _expect(dict, state)


def _ordered_dict() -> dict:
  return {}


def _rebuild_tensor(
  storage: Value,
  offset: Value,
  shape: Value,
  strides: Value,
  requires_grad: Value,
  hooks: Value,
  metadata: Value = None,
) -> Strided:
  del requires_grad, hooks, metadata
  shape = tuple(_size(length) for length in _expect(tuple, shape))
  strides = tuple(_size(stride) for stride in _expect(tuple, strides))
  if len(shape) != len(strides):
    raise Refused(
      f"its pickle has a tensor of shape {list(shape)} with strides "
      f"{list(strides)}"
    )
  return Strided(_expect(Storage, storage), _size(offset), shape, strides)


def _rebuild_parameter(
  data: Value, requires_grad: Value, hooks: Value
) -> Strided:
  del requires_grad, hooks
  return _expect(Strided, data)


_FUNCTIONS: dict[str, Callable[..., Value]] = {
  "collections.OrderedDict": _ordered_dict,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
}
_LITERALS = {
  "BININT",
  "BININT1",
  "BININT2",
  "LONG1",
  "LONG4",
  "BINFLOAT",
  "BINUNICODE",
  "SHORT_BINUNICODE",
  "BINUNICODE8",
}
_CONSTANTS: dict[str, Callable[[], Value]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
  "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
  "PROTO": lambda machine, argument: None,
  "FRAME": lambda machine, argument: None,
  "TUPLE": _Machine.tuple_of_marked,
  "BINPUT": _Machine.put,
  "LONG_BINPUT": _Machine.put,
  "MEMOIZE": _Machine.memoize,
  "BINGET": _Machine.get,
  "LONG_BINGET": _Machine.get,
  "POP": _Machine.pop,
  "APPEND": _Machine.append,
  "APPENDS": _Machine.appends,
  "SETITEM": _Machine.set_item,
  "SETITEMS": _Machine.set_items,
  "GLOBAL": _Machine.global_,
  "STACK_GLOBAL": _Machine.stack_global,
  "BINPERSID": _Machine.persistent,
  "REDUCE": _Machine.reduce,
  "BUILD": _Machine.build,
}


def _known(module: str, name: str) -> Global:
  """A name that state dicts refer to; others are refused when they appear."""
  found = Global(f"{module}.{name}")
  storage = module == "torch" and name.isalnum() and name.endswith("Storage")
  if found.name not in _FUNCTIONS and not storage:
    raise Refused(
      f"its pickle refers to {found.name!r}; a state dict needs only tensors, "
      "nothing was run"
    )
  return found


def _expect(kind: type, value: Value) -> Value:
  if not isinstance(value, kind):
    raise Refused(
      f"its pickle has a {type(value).__name__} in the place of a "
      f"{kind.__name__}"
    )
  return value


def _size(value: Value) -> int:
  if type(value) is not int or not 0 <= value < _MOST:
    found = value if type(value) is int and abs(value) < _MOST else type(value)
    raise Refused(
      f"its pickle has {found} in the place of a count, expected an integer "
      f"from 0 to {_MOST - 1}"
    )
  return value


def _fill(target: Value, pairs: list[Value]) -> None:
  if len(pairs) % 2:
    raise Refused("its pickle has a key without value")
  target = _expect(dict, target)
  for key, value in zip(pairs[::2], pairs[1::2], strict=True):
    if not isinstance(key, str | int):
      raise Refused(
        f"its pickle has a {type(key).__name__} as a key, expected a string"
      )
    target[key] = value
