"""The one form of message for a bad field of a task or argument."""

import math
import numbers
from typing import Any

from jaxkd.errors import ConfigError


def require(condition: bool, field: str, value: Any, expected: str) -> None:
  """Raises `ConfigError` naming field, value and valid range if not met."""
  if not condition:
    raise ConfigError(f"{field} = {value!r}: expected {expected}")


def require_integer(
  field: str, value: Any, low: int, high: int | None = None
) -> None:
  """Requires an integer of at least `low` and, if given, at most `high`."""
  valid = (
    isinstance(value, numbers.Integral)
    and not isinstance(value, bool)
    and low <= value
    and (high is None or value <= high)
  )
  limit = "" if high is None else f" and at most {high}"
  require(valid, field, value, f"an integer of at least {low}{limit}")


def require_number(
  field: str, value: Any, low: float, high: float = math.inf
) -> None:
  """Requires a finite number in `[low, high)`."""
  valid = (
    isinstance(value, numbers.Real)
    and not isinstance(value, bool)
    and low <= value < high
  )
  limit = "finite" if high == math.inf else f"below {high}"
  require(valid, field, value, f"a number of at least {low} and {limit}")
