"""Reads gin files into statements; refuses all that is not data.

Nothing is imported, called or built here, and no file is opened but those of
the config's own folder. gin's parser is used for the grammar alone: includes
are followed here, so that what is checked is what is built.
"""

import io
import os
import pathlib
import tokenize
from collections.abc import Iterator
from typing import Any

from gin import config_parser

from jaxkd.config.problems import Problems, suggest
from jaxkd.config.values import Binding, Macro, Reference, leaves

MAX_BYTES = 1_000_000
MAX_TOKENS = 50_000
MAX_NESTING = 20
MAX_ADJACENT_STRINGS = 50  # gin's parser is quadratic in them
MAX_INCLUDE_DEPTH = 20
MAX_DIGITS = 250  # an int of as many still is a float
_OPEN, _CLOSE = "([{", ")]}"


class Malformed(Exception):
  """A text that gin's grammar or a limit above refuses."""

  def __init__(self, line: int, message: str):
    super().__init__(message)
    self.line = line
    self.message = message


class _Delegate(config_parser.ParserDelegate):
  """Records references and macros instead of looking them up."""

  def configurable_reference(self, scoped_name: str, called: bool) -> Reference:
    scope, _, name = scoped_name.rpartition("/")
    return Reference(scope, name, called)

  def macro(self, name: str) -> Macro:
    return Macro(name)


class Source:
  """The statements of a gin file and of all that it includes.

  Attributes:
    bindings: In the order in which they take effect.
    complete: False if a file could not be read to its end; what is said of
      names that are used nowhere would then be guesswork.
  """

  def __init__(self, path: str, problems: Problems):
    """Reads the file at `path`, adding what is wrong to `problems`."""
    self.bindings: list[Binding] = []
    self.complete = True
    self.top = _resolved(pathlib.Path(path)) or pathlib.Path(path).absolute()
    self.root = _root(self.top)
    self._problems = problems
    self._read: set[pathlib.Path] = set()
    if os.path.isfile(self.top):
      self._file(self.top, ())
    else:
      near = suggest(str(path), _siblings(pathlib.Path(path)))
      self._refuse(str(path), 0, f"no such file{near}")

  def name(self, path: pathlib.Path) -> str:
    """Returns how messages call a file: short where that is unambiguous."""
    folders = [pathlib.Path.cwd()]
    if self.root.name == "experiments":
      folders.append(self.root.parent)
    for folder in folders:
      if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return path.as_posix()

  def _refuse(self, file: str, line: int, message: str) -> None:
    self._problems.add(file, line, message)
    self.complete = False

  def _file(self, path: pathlib.Path, parents: tuple) -> None:
    """Reads one file; a file that is included twice is read once."""
    self._read.add(path)
    file = self.name(path)
    seen: dict[str, Binding] = {}
    try:
      for statement in statements(_decoded(path)):
        line = statement.location.line_num
        if isinstance(statement, config_parser.ImportStatement):
          self._refuse(
            file,
            line,
            f"{statement.format()}: a config imports nothing; what can be"
            " named in it is registered by jaxkd",
          )
        elif isinstance(statement, config_parser.IncludeStatement):
          if seen:
            first = min(b.line for b in seen.values())
            self._refuse(
              file,
              line,
              f"include {statement.filename!r}: must come before the first"
              f" binding (line {first}), which it would override",
            )
          self._include(statement.filename, file, line, (*parents, path))
        elif isinstance(statement, config_parser.BindingStatement):
          self._binding(statement, file, seen)
    except Malformed as e:
      self._refuse(file, e.line, e.message)

  def _binding(
    self, statement: Any, file: str, seen: dict[str, Binding]
  ) -> None:
    binding = Binding(
      statement.scope,
      statement.selector,
      statement.arg_name,
      statement.value,
      file,
      statement.location.line_num,
    )
    first = seen.setdefault(binding.label, binding)
    if first is not binding:
      self._problems.add(
        file,
        binding.line,
        f"{binding.label}: bound twice in one file, first in line {first.line}",
      )
    self.bindings.append(binding)

  def _include(
    self, name: str, file: str, line: int, parents: tuple[pathlib.Path, ...]
  ) -> None:
    what = f"include {name!r}:"
    here, *others = [
      _resolved(folder / name) for folder in (parents[-1].parent, self.root)
    ]
    inside = [p for p in (here, *others) if p and p.is_relative_to(self.root)]
    found = next((p for p in inside if os.path.isfile(p)), None)
    if found is None:
      message = f"no such file{suggest(name, self._choices(parents[-1]))}"
      if here and here not in inside:
        message = f"leaves the folder {self.name(self.root)}"
      self._refuse(file, line, f"{what} {message}")
    elif found in parents:
      chain = [*parents[parents.index(found) :], found]
      names = " -> ".join(self.name(p) for p in chain)
      self._refuse(file, line, f"{what} includes itself ({names})")
    elif len(parents) > MAX_INCLUDE_DEPTH:
      self._refuse(
        file, line, f"{what} includes nest deeper than {MAX_INCLUDE_DEPTH}"
      )
    elif found not in self._read:
      self._file(found, parents)

  def _choices(self, path: pathlib.Path) -> list[str]:
    """Returns the gin files that an include in `path` could have named."""
    if self.root.name != "experiments":
      return _siblings(path)
    files = sorted(self.root.rglob("*.gin"))
    beside = [os.path.relpath(p, path.parent) for p in files]
    return beside + [p.relative_to(self.root).as_posix() for p in files]


def statements(content: str) -> Iterator[Any]:
  """Yields gin's statements of a text, within the limits of this file.

  Raises:
    Malformed: With the line, at the first place that cannot be read.
  """
  line = 1
  try:
    _check_tokens(content)
    parser = config_parser.ConfigParser(content, _Delegate())
    while True:
      line = parser.current_token.start[0]
      statement = parser.parse_statement()
      if statement is None:
        return
      if isinstance(statement, config_parser.BindingStatement):
        _check_literals(statement.value, statement.location.line_num)
      yield statement
  except SyntaxError as e:
    raise Malformed(e.lineno or line, _syntax_message(e)) from None
  except tokenize.TokenError as e:
    raise Malformed(e.args[1][0], f"syntax error: {e.args[0]}") from None
  except RecursionError:
    raise Malformed(line, "brackets nest too deep") from None
  except (TypeError, ValueError, StopIteration, AssertionError) as e:
    raise Malformed(line, f"syntax error: {e or 'unexpected end'}") from None


def _check_tokens(content: str) -> None:
  """Refuses texts on which a parser would run deep or long."""
  depth = strings = 0
  tokens = tokenize.generate_tokens(io.StringIO(content).readline)
  for count, token in enumerate(tokens):
    if token.type == tokenize.OP:
      depth += (token.string in _OPEN) - (token.string in _CLOSE)
    if token.type == tokenize.STRING:
      strings += 1
    elif token.type not in (tokenize.NL, tokenize.COMMENT):
      strings = 0
    line = token.start[0]
    if depth > MAX_NESTING:
      raise Malformed(line, f"brackets nest deeper than {MAX_NESTING}")
    if strings > MAX_ADJACENT_STRINGS:
      raise Malformed(
        line, f"more than {MAX_ADJACENT_STRINGS} strings in a row"
      )
    if token.type == tokenize.NUMBER and len(token.string) > MAX_DIGITS:
      raise Malformed(line, f"a number of more than {MAX_DIGITS} digits")
    if count >= MAX_TOKENS:
      raise Malformed(line, f"more than {MAX_TOKENS} words and signs")


def _check_literals(value: Any, line: int) -> None:
  for leaf in leaves(value):
    if isinstance(leaf, complex) or leaf is Ellipsis:
      raise Malformed(line, f"{leaf!r}: is no value that a config can hold")
  for key in _keys(value):
    if any(isinstance(leaf, Reference | Macro) for leaf in leaves(key)):
      raise Malformed(line, f"{key!r}: a key of a dict must be a literal")


def _keys(value: Any) -> Iterator[Any]:
  if isinstance(value, tuple | list):
    for item in value:
      yield from _keys(item)
  elif isinstance(value, dict):
    yield from value
    for item in value.values():
      yield from _keys(item)


def _syntax_message(error: SyntaxError) -> str:
  """Returns gin's message without Python's own words around it."""
  message = (error.msg or "unreadable").strip().splitlines()[-1].strip()
  word = message.removeprefix("Failed to parse token ").strip("'")
  if word.isidentifier() and word != message:
    return f"syntax error: {word}: a string needs quotes"
  return f"syntax error: {message}"


def _decoded(path: pathlib.Path) -> str:
  """Returns the text of a file.

  Raises:
    Malformed: If it is too large, not UTF-8, or cannot be read.
  """
  try:
    with path.open("rb") as file:
      content = file.read(MAX_BYTES + 1)
  except OSError as e:
    raise Malformed(1, f"cannot be read: {e.strerror}") from None
  if len(content) > MAX_BYTES:
    raise Malformed(1, f"larger than {MAX_BYTES} bytes, which no config is")
  try:
    return content.decode("utf-8-sig").replace("\r\n", "\n")
  except UnicodeDecodeError as e:
    line = content[: e.start].count(b"\n") + 1
    raise Malformed(
      line, f"not UTF-8 (byte 0x{content[e.start]:02x})"
    ) from None


def _root(top: pathlib.Path) -> pathlib.Path:
  """Returns the nearest folder called `experiments`, else the file's own."""
  named = (p for p in top.parents if p.name == "experiments")
  return next(named, top.parent)


def _resolved(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the path without symbolic links, or None if there is none."""
  try:
    return path.resolve()
  except (OSError, RuntimeError, ValueError):
    return None


def _siblings(path: pathlib.Path) -> list[str]:
  """Returns the gin files beside a path, written as the path is."""
  try:
    return sorted(str(p) for p in path.parent.glob("*.gin"))
  except (OSError, ValueError):
    return []
