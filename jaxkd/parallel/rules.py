"""Rules: how the parameters of a role are split over the axes of a mesh.

A rule is a pair: a regular expression that is searched in the path of a
parameter inside its role, such as `block1/mlp/fc1/kernel`, and what is done
with its dimensions. Of the rules of a role the first that matches counts; a
parameter without a match has a copy on every device.

    ((r"mlp/fc1/kernel$", ("fsdp", "tensor")), (r"stem", "largest"))

A dimension is split over an axis, over several (a tuple of names), or not
(None). `"..."` in front stands for any number of dimensions that are not
split, so that a rule also fits parameters stacked by `scan_layers`.
`"largest"` splits the largest dimension that divides over `fsdp`.

Sets of rules have names, for configs too: `@TransformerRules()`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec

from jaxkd.errors import ConfigError, did_you_mean

AXES = ("data", "fsdp", "tensor")
LARGEST = "largest"

Entry = str | tuple[str, ...] | None
Rule = tuple[str, tuple[Entry, ...] | str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerRules:
  """Megatron's split of a transformer over `tensor`.

  Queries, keys, values and the first layers of perceptrons are split by their
  outputs, what follows them by its inputs, so that every part of a block needs
  one sum over devices. Tables of words and the heads above them are split over
  the vocabulary (a head of classes over the classes). Norms and all else have a
  copy on every device of the axis.

  Fits `VisionTransformer`, `BERT`, `CausalDecoder`, CLIP's towers and what is
  made of them, with `scan_layers` too.

  Attributes:
    fsdp: whether what is split is split over `fsdp` too, along its other
      dimension, and all else but norms along its largest.
    vocabulary: whether words and heads are split over `tensor`; not where
      their number does not divide.

  Reference: Shoeybi et al., https://arxiv.org/abs/1909.08053, Sec. 3.
  """

  fsdp: bool = False
  vocabulary: bool = True

  def __iter__(self) -> Iterator[Rule]:
    """The rules."""
    other = "fsdp" if self.fsdp else None
    first = r"(^|/)(query|key|value|fc1|gate|up)/"
    yield f"{first}kernel$", ("...", other, "tensor")
    yield f"{first}bias$", ("...", "tensor")
    yield (
      r"(^|/)(attention/out|mlp/(fc2|down))/kernel$",
      (
        "...",
        "tensor",
        other,
      ),
    )
    if self.vocabulary:
      head = r"(^|/)(head|class_head|taught_head)/"
      yield r"(^|/)(embedding|words)/embedding$", ("tensor", other)
      yield f"{head}kernel$", (other, "tensor")
      yield f"{head}(bias|word_bias)$", ("tensor",)
    yield from _rest(self.fsdp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPRules:
  """The same split of perceptrons: layers in pairs over `tensor`.

  `fc1`, `fc3`, ... are split by their outputs, `fc2`, `fc4`, ... by their
  inputs: one sum over devices for two layers. Fits `MLP`, `FusionMLP` and their
  like.

  Attributes:
    fsdp: as in `TransformerRules`.
  """

  fsdp: bool = False

  def __iter__(self) -> Iterator[Rule]:
    """The rules."""
    other = "fsdp" if self.fsdp else None
    odd, even = r"(^|/)fc\d*[13579]/", r"(^|/)fc\d*[02468]/"
    yield f"{odd}kernel$", (other, "tensor")
    yield f"{odd}bias$", ("tensor",)
    yield f"{even}kernel$", ("tensor", other)
    yield from _rest(self.fsdp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSDPRules:
  """The largest dimension that divides over `fsdp`; roles have it by default.

  Reference: Rajbhandari et al. (ZeRO), https://arxiv.org/abs/1910.02054.
  """

  def __iter__(self) -> Iterator[Rule]:
    """The rule."""
    yield ".*", LARGEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicatedRules:
  """A copy on every device."""

  def __iter__(self) -> Iterator[Rule]:
    """The rule."""
    yield ".*", ()


Rules = (
  tuple[Rule, ...] | TransformerRules | MLPRules | FSDPRules | ReplicatedRules
)


def _rest(fsdp: bool) -> Iterator[Rule]:
  """What is done with all that no rule of tensors is about."""
  if fsdp:
    yield r"(^|[/_])norm/", ()
    yield ".*", LARGEST


def check_form(role: str, rules: Rules) -> None:
  """Checks what can be said of rules without parameters.

  Args:
    role: whose rules they are.
    rules: the rules.

  Raises:
    ConfigError: one is no pair, no regular expression, or names an axis that
      meshes do not have.
  """
  for rule in rules:
    if not (isinstance(rule, Sequence) and len(rule) == 2):
      raise _wrong(role, rule, "expected a pair (pattern, dimensions)")
    pattern, spec = rule
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise _wrong(role, rule, f"no regular expression: {error}") from error
    if spec == LARGEST:
      continue
    if isinstance(spec, str) or not isinstance(spec, Sequence):
      raise _wrong(
        role,
        rule,
        f"expected a tuple of axes, or {LARGEST!r}{did_you_mean(spec, AXES)}",
      )
    named = [axis for entry in spec for axis in _axes(entry) if axis != "..."]
    for axis in named:
      if axis not in AXES:
        raise _wrong(
          role,
          rule,
          f"no axis {axis!r}{did_you_mean(str(axis), AXES)} (has "
          f"{', '.join(AXES)})",
        )
      if named.count(axis) > 1:
        raise _wrong(role, rule, f"splits two dimensions over {axis!r}")
    if "..." in spec[1:]:
      raise _wrong(role, rule, "expected '...' in front only")


def check_matches(role: str, rules: Rules, paths: Iterable[str]) -> None:
  """Raises `ConfigError` if a rule matches no parameter.

  A set with a name covers many nets: one of its rules is enough.

  Args:
    role: whose rules they are.
    rules: the rules.
    paths: of all parameters of the role.
  """
  paths = list(paths)
  unused = [
    rule
    for rule in rules
    if not any(re.search(rule[0], path) for path in paths)
  ]
  if isinstance(rules, tuple) and unused:
    raise _wrong(role, unused[0], _no_match(unused[0][0], paths))
  if not isinstance(rules, tuple) and len(unused) == len(tuple(rules)):
    raise ConfigError(
      f"rules of role {role!r}: {type(rules).__name__} matches none of its "
      f"parameters ({', '.join(paths[:5])}, ...)"
    )


def spec_of(
  role: str,
  rules: Rules,
  path: str,
  shape: tuple[int, ...],
  sizes: Mapping[str, int],
) -> PartitionSpec:
  """How a parameter is split.

  Args:
    role: whose parameter it is.
    rules: of the role.
    path: of the parameter inside the role.
    shape: of the parameter.
    sizes: devices along every axis of the mesh.

  Returns:
    The axes of every dimension.

  Raises:
    ConfigError: the rule has more dimensions than the parameter, or an axis
      does not divide one.
  """
  for rule in rules:
    if re.search(rule[0], path):
      if rule[1] == LARGEST:
        return _largest(shape, sizes["fsdp"])
      return _exact(role, rule, path, shape, sizes)
  return PartitionSpec()


def _exact(role, rule, path, shape, sizes) -> PartitionSpec:
  spec = tuple(tuple(e) if isinstance(e, list) else e for e in rule[1])
  if spec[:1] == ("...",):
    spec = (None,) * (len(shape) - len(spec) + 1) + spec[1:]
  where = f"{path} of shape {list(shape)}"
  if len(spec) > len(shape):
    raise _wrong(
      role, rule, f"{where} has {len(shape)} dimensions, the rule {len(spec)}"
    )
  for number, entry in enumerate(spec):
    parts = math.prod(sizes[axis] for axis in _axes(entry))
    if shape[number] % parts:
      axes = " x ".join(f"{axis}={sizes[axis]}" for axis in _axes(entry))
      raise _wrong(
        role,
        rule,
        f"{where}: {axes} does not divide dimension {number}; the nearest "
        f"number of parts that does is {_nearest(shape[number], parts)}",
      )
  return PartitionSpec(*spec)


def _largest(shape: tuple[int, ...], size: int) -> PartitionSpec:
  fits = [n for n, s in enumerate(shape) if s % size == 0 and s > size]
  if size == 1 or not fits:
    return PartitionSpec()
  best = max(fits, key=lambda n: shape[n])
  return PartitionSpec(*[None] * best, "fsdp")


def _axes(entry: Entry) -> tuple[Any, ...]:
  if entry is None:
    return ()
  return tuple(entry) if isinstance(entry, tuple | list) else (entry,)


def _nearest(size: int, parts: int) -> int:
  divisors = [n for n in range(1, size + 1) if size % n == 0]
  return min(divisors, key=lambda n: abs(n - parts))


def _no_match(pattern: str, paths: Sequence[str]) -> str:
  plain = re.sub(r"[\\^$.*+?()\[\]]", "", pattern)
  parts = [path.split("/") for path in paths]
  pieces = {
    "/".join(path[n:m]): None
    for path in parts
    for n in range(len(path))
    for m in range(n + 1, len(path) + 1)
  }
  return f"matches none of the {len(paths)} parameters" + (
    did_you_mean(plain, pieces) or f" ({', '.join(paths[:3])}, ...)"
  )


def _wrong(role: str, rule: Any, message: str) -> ConfigError:
  return ConfigError(f"rules of role {role!r}, {rule!r}: {message}")
