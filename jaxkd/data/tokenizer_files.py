"""Tokenizers from elsewhere, and texts as rows of tokens.

A row is as long as it may be: what is left over is padding, which `token_mask`
leaves out.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxkd import extras
from jaxkd.data import checks
from jaxkd.errors import ConfigError, RefusedInput, did_you_mean

FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
Side = Literal["left", "right"]
Rows = dict[str, np.ndarray]


class TokenizerFile:
  """The tokenizer of a `tokenizer.json`, as Hugging Face writes it.

  It is a `Tokenizer`: `encode` gives the tokens of a text alone. `rows` gives
  what an encoder of texts reads, with the tokens that its model wants around
  them.

  Attributes:
    vocabulary_size: number of tokens V.
    padding: the token that fills rows.
    special: tokens with a meaning of their own, such as `[CLS]`: name to
      number.
  """

  def __init__(
    self, path: str | os.PathLike[str], *, padding: str | None = None
  ):
    """Reads the file.

    Args:
      path: The file, or a folder that holds it under its usual name.
      padding: The token that fills rows. None for what the file says, or the
        `tokenizer_config.json` beside it, else number 0.

    Raises:
      MissingExtra: The package `tokenizers` is not installed.
      RefusedInput: The file is absent or is no such file.
      ConfigError: There is no token `padding`.
    """
    path = pathlib.Path(path)
    self._path = path / FILE if path.is_dir() else path
    self._model = _read(self._path)
    given = self._model.padding
    # Tokens may have holes between their numbers.
    numbers = self._model.get_vocab().values()
    self.vocabulary_size = max(numbers, default=-1) + 1
    added = self._model.get_added_tokens_decoder()
    self.special = {
      token.content: number for number, token in added.items() if token.special
    }
    self._model.no_padding()
    self._model.no_truncation()
    self._cutting: dict[tuple[int, Side], Any] = {}
    padding = padding or _configured_padding(self._path.parent / _CONFIG)
    if padding is not None:
      self.padding = self.number(padding)
    else:
      self.padding = given["pad_id"] if given else 0

  def number(self, token: str) -> int:
    """Returns the number of a token.

    Raises:
      ConfigError: There is none of this name.
    """
    number = self._model.token_to_id(token)
    if number is None:
      near = did_you_mean(token, self.special)
      raise ConfigError(f"{self._path} has no token {token!r}{near}")
    return number

  def encode(self, text: str) -> np.ndarray:
    """Returns the tokens of a text and none around them, int32 [n]."""
    found = self._model.encode(text, add_special_tokens=False)
    return np.asarray(found.ids, np.int32)

  def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of a text, and where each lies in it.

    Returns:
      int32 [n]; int32 [n, 2], first character and the one behind the last.
    """
    found = self._model.encode(text, add_special_tokens=False)
    places = np.asarray(found.offsets, np.int32).reshape(-1, 2)
    return np.asarray(found.ids, np.int32), places

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens [n], without those with a special meaning."""
    return self._model.decode([int(i) for i in ids])

  def rows(
    self,
    texts: Sequence[str],
    seconds: Sequence[str] | None = None,
    *,
    length: int,
    side: Side = "right",
  ) -> Rows:
    """Returns texts, or pairs of texts, as rows.

    Of a pair that is too long the longer text is cut first; the tokens that the
    model wants around them are kept.

    Args:
      texts: N of them.
      seconds: The second text of each pair.
      length: Tokens in a row, L.
      side: Where the padding is, and where texts that are too long are cut.

    Returns:
      `tokens`, int32 [N, L]; `token_mask`, float32 [N, L], 0 for padding; with
      pairs `token_types`, int32 [N, L], 1 for the second text.

    Raises:
      ConfigError: The length leaves no room for the text.
    """
    _check_side(side)
    around = self._model.num_special_tokens_to_add(seconds is not None)
    checks.require_integer("length", length, around + 1)
    given = list(texts)
    if seconds is not None:
      given = list(zip(texts, seconds, strict=True))
    found = self._cut_at(length, side).encode_batch(given)
    arrays = padded(
      [row.ids for row in found], length=length, fill=self.padding, side=side
    )
    if seconds is None:
      return arrays
    types = [row.type_ids for row in found]
    types = padded(types, length=length, fill=0, side=side)
    return arrays | {"token_types": types["tokens"]}

  def _cut_at(self, length: int, side: Side) -> Any:
    """Returns a model that cuts; the own one does not, whoever uses it."""
    if (length, side) not in self._cutting:
      model = type(self._model).from_str(self._model.to_str())
      model.enable_truncation(length, strategy="longest_first", direction=side)
      self._cutting[length, side] = model
    return self._cutting[length, side]


def padded(
  rows: Sequence[Sequence[int] | np.ndarray],
  *,
  length: int,
  fill: int,
  side: Side = "right",
) -> Rows:
  """Returns rows of unequal length as one array.

  Args:
    rows: N rows of integers.
    length: Of all rows, L.
    fill: Stands where there is none.
    side: Where it stands, and where longer rows are cut.

  Returns:
    `tokens`, int32 [N, L]; `token_mask`, float32 [N, L], 0 where filled.
  """
  _check_side(side)
  tokens = np.full((len(rows), length), fill, np.int32)
  mask = np.zeros((len(rows), length), np.float32)
  for i, row in enumerate(rows):
    left = side == "left"
    row = np.asarray(row[-length:] if left else row[:length], np.int32)
    start = length - len(row) if left else 0
    tokens[i, start : start + len(row)] = row
    mask[i, start : start + len(row)] = 1
  return {"tokens": tokens, "token_mask": mask}


def _check_side(side: Side) -> None:
  checks.require(side in ("left", "right"), "side", side, "left or right")


def _read(path: pathlib.Path) -> Any:
  """Returns the model in a file."""
  library = extras.need("tokenizers", extra="text", what=f"reading {path.name}")
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise RefusedInput(
      f"tokenizer file {path}: not readable ({error}); expected a {FILE}"
    ) from error
  try:
    return library.Tokenizer.from_str(text)
  except Exception as error:  # The library raises no narrower one.
    raise RefusedInput(
      f"tokenizer file {path}: no tokenizer ({error}); expected a {FILE} as "
      "the package tokenizers writes it"
    ) from error


def _configured_padding(path: pathlib.Path) -> str | None:
  """Returns the padding token that a config names, None if there is none."""
  if not path.is_file():
    return None
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise RefusedInput(
      f"tokenizer config {path}: not readable ({error}); expected JSON"
    ) from error
  token = config.get("pad_token") if isinstance(config, dict) else None
  if isinstance(token, dict):
    token = token.get("content")
  return token if isinstance(token, str) else None
