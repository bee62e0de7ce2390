"""Which arguments a compiled program gathers, and how much it reduces."""

import math
import re
from collections.abc import Iterator

_INSTRUCTION = re.compile(
  r"\s*(?:ROOT )?(%[\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)"
)
_ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')
# What moves numbers without mixing them with others.
_ALONE = {"bitcast", "convert", "copy", "fusion", "reshape", "transpose"}


def _entry(text: str) -> Iterator[tuple[str, str, str, list[str], str]]:
  """Name, shape, kind, operands and rest of the entry's instructions."""
  for line in text[text.index("\nENTRY ") :].splitlines():
    found = _INSTRUCTION.match(line)
    if found:
      name, shape, kind, operands, rest = found.groups()
      yield name, shape, kind, re.findall(r"%[\w.-]+", operands), rest


def gathered(text: str) -> set[str]:
  """The arguments of which all-gathers put the parts together.

  Args:
    text: the HLO of a program without loops.

  Returns:
    Their names, such as `frozen['params']['teacher']['fc1']['kernel']`.
  """
  instructions = {line[0]: line for line in _entry(text)}
  found = set()
  for _, _, kind, operands, _ in instructions.values():
    if not kind.startswith(("all-gather", "all-to-all", "collective-permute")):
      continue
    for operand in operands:
      source = instructions[operand]
      while source[2] in _ALONE and len(source[3]) == 1:
        source = instructions[source[3][0]]
      if source[2] == "parameter":
        found.add(_NAME.search(source[4])[1].replace("\\'", "'"))
  return found


def gathered_bytes(text: str) -> int:
  """Bytes of floating-point numbers that all-gathers put together.

  Args:
    text: the HLO of a program without loops.
  """
  return sum(
    _bytes(shape)
    for _, shape, kind, _, _ in _entry(text)
    if kind == "all-gather" and shape.startswith(("f", "b"))
  )


def reduced_bytes(text: str) -> int:
  """Bytes that go into all-reduces and reduce-scatters; no truth values.

  Args:
    text: the HLO of a program without loops.
  """
  total = 0
  for _, shape, kind, _, _ in _entry(text):
    if kind in ("all-reduce", "all-reduce-start", "reduce-scatter"):
      total += _bytes(shape)
  return total


def _bytes(shape: str) -> int:
  """Of an array or a tuple of arrays; truth values have none."""
  return sum(
    math.prod(int(n) for n in sizes.split(",") if n) * int(bits) // 8
    for bits, sizes in _ARRAY.findall(shape)
  )
