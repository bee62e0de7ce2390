"""Mistakes in a config: gathered, then raised as one error."""

import dataclasses
from collections.abc import Iterable

from jaxkd.errors import ConfigError, did_you_mean

COMMAND_LINE = "command line"
MAX_PROBLEMS = 100
MAX_LENGTH = 1000


@dataclasses.dataclass
class Problems:
  """The mistakes found so far, one line each, files first."""

  lines: dict[tuple[str, int, str], None] = dataclasses.field(
    default_factory=dict
  )

  def add(self, file: str, line: int, message: str) -> None:
    """Adds a mistake, once; with a hundred of them, that is enough.

    Args:
      file: As messages name it.
      line: From 1; 0 for what is wrong with the file as a whole.
      message: What is wrong; long ones are cut in the middle.

    Raises:
      ConfigError: At the last mistake that is worth reading.
    """
    message = "".join(c if c.isprintable() else " " for c in message)
    message = " ".join(message.split())
    if len(message) > MAX_LENGTH:
      half = MAX_LENGTH // 2
      message = f"{message[:half]} ... {message[-half:]}"
    self.lines[file, line, message] = None
    if len(self.lines) >= MAX_PROBLEMS:
      self.raise_any()

  def raise_any(self) -> None:
    """Raises all mistakes as one error, if there are any.

    Raises:
      ConfigError: One line a mistake: `file:line: what is wrong`.
    """
    if not self.lines:
      return
    files = list(dict.fromkeys(file for file, _, _ in self.lines))
    files.sort(key=lambda file: file == COMMAND_LINE)
    ordered = sorted(self.lines, key=lambda p: (files.index(p[0]), p[1]))
    raise ConfigError(
      "\n".join(
        f"{file}:{line}: {message}" if line else f"{file}: {message}"
        for file, line, message in ordered
      )
    )


def suggest(name: str, valid: Iterable[str]) -> str:
  """Returns `", did you mean x?"` for the nearest valid name, or `""`."""
  if len(name) > 100:
    return ""
  return did_you_mean(name, valid).replace("'", "")


def has(valid: Iterable[object]) -> str:
  """Returns `" (has a, b)"`: the valid choices, or that there are none."""
  return f" (has {', '.join(map(str, valid)) or 'none'})"
