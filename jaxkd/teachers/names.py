"""Name maps: what a tensor is called elsewhere, and where it lies here.

A family of models has one table of rules. It is read in both directions: to
load the family's checkpoints and to write them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from jaxkd.errors import ConfigError

LINEAR = (1, 0)  # [out, in] -> [in, out]
CONV = (2, 3, 1, 0)  # [out, in, H, W] -> [H, W, in, out]
_FIELD = re.compile(r"\{(\w)(\+1)?\}")
_NUMBER = "0|[1-9][0-9]*"
_ENTRY = re.compile(r"\[\{(\w)\}\]")


@dataclasses.dataclass(frozen=True)
class Rule:
  """One row of a table.

  Attributes:
    theirs: a name, such as `layers.{i}.mlp.up.weight`; `{i}` and `{j}` stand
      for numbers.
    ours: collection and path, such as `params/block{i+1}/mlp/up/kernel`;
      `params/blocks[{i}]/...` is entry i of the leaf's leading axis.
    axes: ours is theirs, transposed by these axes; as it is if not given.
  """

  theirs: str
  ours: str
  axes: tuple[int, ...] | None = None

  def __post_init__(self):
    """Checks that both sides count the same things."""
    sides = [
      {found.group(1) for found in _FIELD.finditer(side)}
      for side in (self.theirs, self.ours)
    ]
    if sides[0] != sides[1]:
      raise ConfigError(
        f"Rule({self.theirs!r}, {self.ours!r}): expected the same numbers on "
        "both sides"
      )

  @property
  def back(self) -> tuple[int, ...] | None:
    """The axes that transpose ours to theirs."""
    if self.axes is None:
      return None
    return tuple(sorted(range(len(self.axes)), key=self.axes.__getitem__))


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a tensor goes, or comes from.

  Attributes:
    name: path or name on the other side.
    axes: to transpose by on the way; None for as it is.
    index: entry of our leaf's leading axis; None for the whole leaf.
  """

  name: str
  axes: tuple[int, ...] | None
  index: int | None = None


@dataclasses.dataclass(frozen=True)
class NameMap:
  """The table of a family.

  Attributes:
    rules: the rows; the first that fits counts.
    prefixes: what may stand before all of their names; the first is written.
    ignored: regular expressions of whole names (without prefix) that hold
      nothing to load, such as buffers that are computed.
  """

  rules: tuple[Rule, ...]
  prefixes: tuple[str, ...] = ("",)
  ignored: tuple[str, ...] = ()

  def bare(self, name: str) -> str:
    """Their name without its prefix."""
    for prefix in sorted(self.prefixes, key=len, reverse=True):
      if name.startswith(prefix):
        return name.removeprefix(prefix)
    return name

  def ignores(self, name: str) -> bool:
    """Whether a tensor of theirs holds nothing to load."""
    bare = self.bare(name)
    return any(re.fullmatch(pattern, bare) for pattern in self.ignored)

  def ours(self, name: str) -> Place | None:
    """Where a tensor of theirs lies here; None if no rule fits."""
    bare = self.bare(name)
    for rule in self.rules:
      numbers = _numbers(rule.theirs, bare)
      if numbers is not None:
        entry = _ENTRY.search(rule.ours)
        path = _fill(_ENTRY.sub("", rule.ours), numbers)
        index = numbers[entry.group(1)] if entry else None
        return Place(path, rule.axes, index)
    return None

  def theirs(self, path: str, index: int | None = None) -> Place | None:
    """What they call a leaf of ours, or its entry; None if no rule fits."""
    for rule in self.rules:
      entry = _ENTRY.search(rule.ours)
      if (entry is None) != (index is None):
        continue
      numbers = _numbers(_ENTRY.sub("", rule.ours), path)
      if numbers is None:
        continue
      if entry:
        numbers[entry.group(1)] = index
      name = self.prefixes[0] + _fill(rule.theirs, numbers)
      return Place(name, rule.back, index)
    return None

  def stacked(self, block: str, stack: str) -> NameMap:
    """The map for a net that keeps equal blocks in one stack.

    Args:
      block: what a block is called in the rules, such as `block{i+1}`.
      stack: what the stack is called, such as `blocks`.

    Returns:
      A map whose paths read `blocks[{i}]` for `block{i+1}`.
    """
    letter = _FIELD.search(block).group(1)
    entry = f"{stack}[{{{letter}}}]"
    return dataclasses.replace(
      self,
      rules=tuple(
        dataclasses.replace(rule, ours=rule.ours.replace(block, entry))
        for rule in self.rules
      ),
    )


def linear(theirs: str, ours: str, *, bias: bool = True) -> tuple[Rule, ...]:
  """Rules of a linear layer."""
  weight = Rule(f"{theirs}.weight", f"params/{ours}/kernel", LINEAR)
  return (weight, *_bias(theirs, ours, bias))


def conv(theirs: str, ours: str, *, bias: bool = True) -> tuple[Rule, ...]:
  """Rules of a convolution in two dimensions, depthwise ones included."""
  weight = Rule(f"{theirs}.weight", f"params/{ours}/kernel", CONV)
  return (weight, *_bias(theirs, ours, bias))


def norm(theirs: str, ours: str, *, bias: bool = True) -> tuple[Rule, ...]:
  """Rules of a layer norm, or of an RMS norm without bias."""
  weight = Rule(f"{theirs}.weight", f"params/{ours}/scale")
  return (weight, *_bias(theirs, ours, bias))


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
  """Rules of a batch norm; its count of batches is to be ignored."""
  return (
    *norm(theirs, ours),
    Rule(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
    Rule(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
  )


def embedding(theirs: str, ours: str) -> tuple[Rule, ...]:
  """The rule of a table of embeddings."""
  return (Rule(f"{theirs}.weight", f"params/{ours}/embedding"),)


def under(theirs: str, ours: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
  """The rules of a part, for the place that it has in a whole.

  Args:
    theirs: their name of the part, without the dot behind it.
    ours: its path, without the collection.
    rules: of the part.

  Returns:
    The same rules with longer names.
  """

  def deeper(rule):
    collection, path = rule.ours.split("/", 1)
    return dataclasses.replace(
      rule,
      theirs=f"{theirs}.{rule.theirs}",
      ours=f"{collection}/{ours}/{path}",
    )

  return tuple(deeper(rule) for rule in rules)


def _bias(theirs: str, ours: str, wanted: bool) -> tuple[Rule, ...]:
  rule = Rule(f"{theirs}.bias", f"params/{ours}/bias")
  return (rule,) if wanted else ()


@functools.lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
  """A regular expression; a letter's second place repeats its first."""
  pieces, end, seen = [], 0, set()
  for found in _FIELD.finditer(template):
    letter, more = found.groups()
    pieces.append(re.escape(template[end : found.start()]))
    name = f"{letter}_{'next' if more else 'same'}"
    pieces.append(f"(?P={name})" if name in seen else f"(?P<{name}>{_NUMBER})")
    seen.add(name)
    end = found.end()
  return re.compile("".join((*pieces, re.escape(template[end:]))))


def _numbers(template: str, text: str) -> dict[str, int] | None:
  """The numbers that make the template this text; None if none do."""
  found = _pattern(template).fullmatch(text)
  if found is None:
    return None
  numbers: dict[str, int] = {}
  for name, value in found.groupdict().items():
    number = int(value) - name.endswith("next")
    if number < 0 or numbers.setdefault(name[0], number) != number:
      return None
  return numbers


def _fill(template: str, numbers: dict[str, int]) -> str:
  """The text that the numbers make of a template."""
  return _FIELD.sub(
    lambda found: str(numbers[found.group(1)] + bool(found.group(2))), template
  )
