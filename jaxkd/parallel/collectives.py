"""What a compiled program sends between devices, read from its HLO text.

The text of `executable.as_text()` is a list of computations, each a list of
instructions

  %name = f32[8,16]{1,0} all-reduce(%operand), replica_groups={{0,1}}, ...

An asynchronous collective is a pair, `all-gather-start` and `all-gather-done`,
or an `async-start` that calls a computation with the plain instruction in it;
either counts once. What a `while` runs, at any depth, is marked: it runs as
often as the loop turns, and is counted once all the same.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+)(?: \(.*\) -> .*)? \{$")
_INSTRUCTION = re.compile(
  r"(?:ROOT )?%?[\w.-]+ = (?P<shape>\(.*?\)|\S+) (?P<op>[\w-]+)\("
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation"
  r"|false_computation|called_computations)=(\{[^}]*\}|%?[\w.-]+)"
)
_BODY = re.compile(r"\b(?:body|condition)=%?([\w.-]+)")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(\d+(?:,\d+)*)\]<=")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_PARTS = re.compile(r"\b(num_partitions|replica_count)=(\d+)")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
  """Collectives of one kind and size.

  Attributes:
    kind: one of `KINDS`.
    group: devices that take part in one; of a `collective-permute` the pairs
      that send.
    bytes: the size of the whole as one device sees it: what is gathered,
      reduced or exchanged. Of a `reduce-scatter` that is what goes in.
    in_loop: whether it is in a loop, which may run it more than once.
    count: how many there are in the program.
  """

  kind: str
  group: int
  bytes: int
  in_loop: bool
  count: int


def collectives(text: str) -> tuple[Collective, ...]:
  """Reads the collectives of a compiled program.

  Args:
    text: the HLO, as `executable.as_text()` gives it.

  Returns:
    Equal ones put together, sorted.
  """
  computations = dict(_computations(text))
  looped = _looped(computations)
  head = dict(_PARTS.findall(text.partition("\n")[0]))
  everyone = math.prod(int(number) for number in head.values())
  found = collections.Counter(
    (*one, name in looped)
    for name, lines in computations.items()
    for line in lines
    if (one := _collective(line, everyone)) is not None
  )
  return tuple(
    sorted(Collective(*key, count=count) for key, count in found.items())
  )


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
  """The lines of every computation, by its name."""
  name, lines = None, []
  for line in map(str.strip, text.splitlines()):
    start = _COMPUTATION.match(line)
    if start and name is None:
      name, lines = start[1], []
    elif line.startswith("}") and name is not None:
      yield name, lines
      name = None
    elif name is not None:
      lines.append(line)


def _looped(computations: dict[str, list[str]]) -> set[str]:
  """The names of the computations that loops run, at any depth."""
  calls = {
    name: {
      called.lstrip("%")
      for line in lines
      for group in _CALLED.findall(line)
      for called in re.findall(r"%?[\w.-]+", group)
    }
    for name, lines in computations.items()
  }
  due = [
    body
    for lines in computations.values()
    for line in lines
    for body in _BODY.findall(line)
  ]
  seen: set[str] = set()
  while due:
    name = due.pop()
    if name not in seen:
      seen.add(name)
      due += calls.get(name, ())
  return seen


def _collective(line: str, everyone: int) -> tuple[str, int, int] | None:
  """Kind, group and bytes of an instruction that is a collective."""
  found = _INSTRUCTION.match(line)
  if found is None:
    return None
  kind = found["op"].removesuffix("-start")
  if kind not in KINDS:
    return None
  group = _group(kind, line, everyone)
  shape = found["shape"]
  if found["op"] != kind and kind != "all-reduce":
    shape = _elements(shape)[1]  # what goes in, what comes out, and context
  total = sum(_size(*array) for array in _ARRAY.findall(shape))
  return kind, group, total * group if kind == "reduce-scatter" else total


def _elements(shape: str) -> list[str]:
  """The elements of a tuple's shape, which may be tuples."""
  found, depth = [""], 0
  for letter in shape[1:-1]:
    depth += (letter in "({[") - (letter in ")}]")
    if letter == "," and not depth:
      found.append("")
    else:
      found[-1] += letter
  return found


def _group(kind: str, line: str, everyone: int) -> int:
  """How many devices take part in one collective."""
  if kind == "collective-permute":
    pairs = _PAIRS.search(line)
    return pairs[1].count("{") if pairs else 0
  iota = _IOTA.search(line)
  if iota:
    return int(iota[1].split(",")[-1])
  listed = _LISTED.search(line)
  if listed:
    first = listed[1].partition("}")[0].lstrip("{")
    return len(first.split(","))
  return everyone


def _size(kind: str, shape: str) -> int:
  """Bytes of an array `kind[shape]`; of tokens none."""
  if kind in ("token", "opaque"):
    return 0
  bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
  count = math.prod(int(n) for n in shape.split(",") if n)
  return -(-count * bits // 8)
