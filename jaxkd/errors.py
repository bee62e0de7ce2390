"""The errors that end a command, each with a documented exit code.

Every message says what was found (names, values), what was expected and, where
there is one, the nearest valid choice. The command line prints the message
alone; `--debug` shows the traceback too.
"""

import difflib
from collections.abc import Iterable


class JaxkdError(Exception):
  """Base of all errors that a user can cause and mend."""

  exit_code = 1


class ConfigError(JaxkdError, ValueError):
  """A config, a method or an argument is wrong (exit code 2)."""

  exit_code = 2


class RefusedInput(JaxkdError):
  """An input file, folder or dataset is not what it must be (exit code 3)."""

  exit_code = 3


class NonFinite(JaxkdError):
  """A loss, gradient or batch entry is not finite (exit code 4)."""

  exit_code = 4


class StorageError(JaxkdError):
  """Reading or writing a run's files failed (exit code 5)."""

  exit_code = 5


class WorkdirLocked(JaxkdError):
  """Another process is writing to the workdir (exit code 6)."""

  exit_code = 6


class LostProcess(JaxkdError):
  """Another process of a run on several has ended (exit code 7)."""

  exit_code = 7


class Preempted(JaxkdError):
  """The run was asked to stop, saved its state and can resume (exit 75)."""

  exit_code = 75


def did_you_mean(name: str, valid: Iterable[str]) -> str:
  """Returns `", did you mean 'x'?"` for the nearest valid name, or `""`."""
  close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
  return f", did you mean {close[0]!r}?" if close else ""
