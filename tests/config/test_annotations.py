"""Which literals fit which annotations."""

import collections.abc
import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, Optional

import pytest

from jaxkd.config import annotations
from jaxkd.config.values import Macro, Reference
from tests.config import samples

Steps = NewType("Steps", int)
T = typing.TypeVar("T")


class Shape(typing.Protocol):
  def area(self) -> float: ...


class Color(enum.Enum):
  RED = 1


NAMES = {"KD": samples.KD, "DKD": samples.DKD, "MLP": samples.MLP}
NAMES["canary"] = samples.canary
KD, DKD = Reference("", "KD", True), Reference("", "DKD", True)
KD_CLASS, CALL = Reference("", "KD", False), Reference("", "canary", True)
FUNCTION, NONE = Reference("", "canary", False), type(None)

FITS = [
  (4, float),
  (4.5, float),
  (4, int),
  (True, bool),
  ("a", str),
  (b"a", bytes),
  (None, None),
  (None, NONE),
  (None, Optional[float]),  # noqa: UP045  # both spellings are in use
  (4, float | None),
  ("a", Literal["a", "b"]),
  (1, Literal[1, 2]),
  ((), tuple),
  ((1, "a"), tuple),
  ((), tuple[int, ...]),
  ((1, 2), tuple[float, ...]),
  ((1, "a"), tuple[int, str]),
  ((), tuple[()]),
  ([1], list[int]),
  ([1], Sequence[int]),
  ((1, 2), Sequence[int]),
  ((1,), collections.abc.Iterable),
  ({"a": 1}, dict[str, float]),
  ({"a": (1,)}, Mapping[str, tuple[int, ...]]),
  ({}, dict),
  (3, Annotated[int, "steps"]),
  (3, Steps),
  (3, Any),
  (3, object),
  (3, T),
  (3, Shape),
  ("a", typing.ForwardRef("Unknown")),
  (KD, samples.KD),
  (KD, samples.KD | None),
  (KD, Any),
  (KD, Shape),
  (KD, object),
  ((KD, DKD), tuple[samples.KD | samples.DKD, ...]),
  ({"a": KD}, Mapping[str, samples.KD]),
  (CALL, samples.KD),
  (CALL, float),
  (FUNCTION, Callable[[int], int]),
  (FUNCTION, Callable | None),
  (KD_CLASS, type[samples.KD]),
  (KD_CLASS, Callable[..., Any]),
  (Reference("", "MLP", True), Callable),
  (Macro("UNDEFINED"), float),
]

MISFITS = [
  ("4", float, "expected float, got '4' (str)"),
  (True, float, "expected float, got True (bool)"),
  (True, int, "expected int, got True (bool)"),
  (4.0, int, "expected int, got 4.0 (float)"),
  (1, bool, "expected bool, got 1 (int)"),
  (4, str, "expected str, got 4 (int)"),
  (None, float, "expected float, got None (NoneType)"),
  (3, None, "expected None, got 3 (int)"),
  ("4", float | None, "expected float or None, got '4' (str)"),
  (True, Literal[1], "expected one of 1, got True (bool)"),
  ("aa", Literal["a"], "expected one of 'a', got 'aa' (str), did you mean a?"),
  (3, tuple, "expected tuple, got 3 (int)"),
  (
    (1, "a"),
    tuple[int, ...],
    "expected tuple[int, ...], got (1, 'a') (tuple)",
  ),
  (
    (1, 2, 3),
    tuple[int, int],
    "expected tuple[int, int], got (1, 2, 3) (tuple)",
  ),
  (
    ((1,), (2.5,)),
    tuple[tuple[int, ...], ...],
    "expected tuple[tuple[int, ...], ...], got ((1,), (2.5,)) (tuple)",
  ),
  (
    [1],
    tuple[int, ...],
    "expected tuple[int, ...], got [1] (list); write (1,)",
  ),
  ((1,), list[int], "expected list[int], got (1,) (tuple)"),
  ("ab", Sequence[str], "expected Sequence[str], got 'ab' (str)"),
  (["a"], Sequence[int], "expected Sequence[int], got ['a'] (list)"),
  (
    {"a": "b"},
    dict[str, int],
    "expected dict[str, int], got {'a': 'b'} (dict)",
  ),
  ({1: 1}, dict[str, int], "expected dict[str, int], got {1: 1} (dict)"),
  ([], Mapping, "expected Mapping, got [] (list)"),
  ("3", Steps, "expected int, got '3' (str)"),
  ("3", Annotated[int, "steps"], "expected int, got '3' (str)"),
  ("RED", Color, "expected Color, got 'RED' (str)"),
  (3, samples.KD, "expected KD, got 3 (int)"),
  (DKD, samples.KD, "expected KD, got @DKD()"),
  (DKD, float, "expected float, got @DKD()"),
  (DKD, Literal["a"], "expected one of 'a', got @DKD()"),
  ((DKD,), tuple[samples.KD, ...], "expected tuple[KD, ...], got (@DKD(),)"),
  (FUNCTION, float, "expected float, got @canary"),
  (
    KD_CLASS,
    samples.KD,
    "expected KD, got @KD (the class itself; @KD() builds one)",
  ),
  (
    "relu",
    Callable[[int], int],
    "expected a function (such as @name, without a call), got 'relu' (str)",
  ),
  (
    KD,
    Callable,
    "expected a function (such as @name, without a call), got @KD",
  ),
  (KD, type[samples.KD], "expected type[KD], got @KD()"),
]


@pytest.mark.parametrize(("value", "annotation"), FITS)
def test_a_value_fits(value, annotation):
  assert annotations.mismatch(value, annotation, NAMES.get) is None


@pytest.mark.parametrize(("value", "annotation", "message"), MISFITS)
def test_a_misfit_says_what_was_expected_and_what_it_got(
  value, annotation, message
):
  found = annotations.mismatch(value, annotation, NAMES.get)
  assert found is not None
  assert found.startswith(message)


def test_a_long_value_is_cut_in_the_message():
  found = annotations.mismatch("x" * 1000, float, NAMES.get)
  assert len(found) < 120
