"""Text: the next character, byte or subword, from a folder or from Python.

Without a folder the text is that of Python's own help topics, the module
`pydoc_data.topics`: the language reference in some 80 documents, about 370,000
characters. It differs a little from one version of Python to the next.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from jaxkd.data import checks, partition, randomness
from jaxkd.data.source import ArraySource, Splits
from jaxkd.data.tokenizer_files import TokenizerFile
from jaxkd.data.tokens import (
  BYTES,
  BytePairs,
  Bytes,
  Characters,
  Tokenizer,
)
from jaxkd.errors import RefusedInput

SUFFIXES = (".md", ".rst", ".txt")
_KINDS = ("characters", "bytes", "bpe", "file")
_HOW_TO_FILL = (
  "put text files in UTF-8 into the folder, a document each, named *"
  + ", *".join(SUFFIXES)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """Windows of text: `tokens` and `label`, the next tokens, int32 [length].

  Documents are split by the seed, so that no window of one part has text of a
  document of another. A document is cut into windows one after the other: each
  of its tokens but the first is the label of one position of one window. The
  last window of a document may end early; `token_mask`, float32 [length], is 1
  where there is a label, and `tokens` and `label` are 0 where it is 0. The seed
  draws which windows of a part are taken, and their order.

  Classes do not depend on the seed: characters are those of all documents, 0
  standing for any other; byte pairs are trained on the training part, and have
  as many tokens as asked for; those of a file are the file's.

  Attributes:
    folder: Local folder of text files, a document each; None for the help
      topics of Python.
    tokens: What a token is: `characters`, `bytes` of UTF-8, `bpe`, byte pairs,
      or `file`, what the tokenizer of a pretrained model makes; the last two
      need the extra `text`.
    tokenizer_file: Its `tokenizer.json`, or the folder of it; for `file` alone.
    vocabulary_size: Number of byte pairs, or of characters, the most frequent
      ones then; None for all characters, as which it depends on the text.
    length: Tokens in a window.
    train_size: Training windows.
    validation_size: Validation windows.
    test_size: Test windows.
    validation_fraction: Share of the text in the validation part.
    test_fraction: Share of the text in the test part.
    batch_size: Windows in a training batch.
  """

  name: ClassVar[str] = "text"

  folder: str | os.PathLike[str] | None = None
  tokens: Literal["characters", "bytes", "bpe", "file"] = "characters"
  tokenizer_file: str | os.PathLike[str] | None = None
  vocabulary_size: int | None = None
  length: int = 48
  train_size: int = 4000
  validation_size: int = 500
  test_size: int = 500
  validation_fraction: float = 0.15
  test_fraction: float = 0.15
  batch_size: int = 24

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    partition.check_fractions(
      owner, self.validation_fraction, self.test_fraction
    )
    sizes = ("train_size", "validation_size", "test_size")
    for name in ("length", *sizes, "batch_size"):
      checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)
    checks.require(
      self.tokens in _KINDS, f"{owner}.tokens", self.tokens, " or ".join(_KINDS)
    )
    path, from_file = self.tokenizer_file, self.tokens == "file"
    expected = "a path for tokens='file' and None for others"
    given = path is not None
    checks.require(
      given == from_file, f"{owner}.tokenizer_file", path, expected
    )
    field, size = f"{owner}.vocabulary_size", self.vocabulary_size
    if self.tokens == "bpe":
      checks.require_integer(field, size, BYTES)
    elif self.tokens == "bytes":
      checks.require(size is None, field, size, "None, as there are 256 bytes")
    elif from_file:
      checks.require(size is None, field, size, "None, as the file says it")
    elif size is not None:
      checks.require_integer(field, size, 2)

  @property
  def num_classes(self) -> int:
    """Number of tokens V; labels are 0..V-1."""
    if self.vocabulary_size is not None:
      return self.vocabulary_size
    if self.tokens == "bytes":
      return BYTES
    if self.tokens == "file":
      return TokenizerFile(self.tokenizer_file).vocabulary_size
    return Characters.fit(self._documents()).vocabulary_size

  def splits(self, seed: int) -> Splits:
    """Returns the three parts for a seed.

    Raises:
      ConfigError: A size exceeds its part.
      RefusedInput: A file or the folder cannot be read; says the remedy.
    """
    documents = self._documents()
    parts = self._parts(documents, seed)
    tokenizer = self._fitted(documents, parts["train"])
    return Splits(
      **{
        name: self._windows(
          [tokenizer.encode(documents[i]) for i in part], name, seed
        )
        for name, part in parts.items()
      }
    )

  def tokenizer(self, seed: int) -> Tokenizer:
    """Returns what made the tokens of `splits(seed)`."""
    documents = self._documents()
    return self._fitted(documents, self._parts(documents, seed)["train"])

  def _documents(self) -> list[str]:
    if self.folder is None:
      return topics()
    return read(self.folder)

  def _fitted(
    self, documents: Sequence[str], train: Sequence[int] = ()
  ) -> Tokenizer:
    """Returns the tokenizer; only byte pairs depend on the training part."""
    if self.tokens == "bytes":
      return Bytes()
    if self.tokens == "file":
      return TokenizerFile(self.tokenizer_file)
    if self.tokens == "characters":
      return Characters.fit(documents, self.vocabulary_size)
    return BytePairs.fit([documents[i] for i in train], self.vocabulary_size)

  def _parts(
    self, documents: Sequence[str], seed: int
  ) -> Mapping[str, np.ndarray]:
    """Returns numbers of documents by part, as shares of all characters.

    A document is in the part where its middle is, if all lie in the order of
    the seed; but every part gets one.
    """
    sizes = np.asarray([len(document) for document in documents])
    order = randomness.permutation(
      len(sizes), seed=seed, purpose="split documents"
    )
    ends = np.cumsum(sizes[order])
    middle = (ends - sizes[order] / 2) / ends[-1]
    train = 1 - self.validation_fraction - self.test_fraction
    first, second = np.searchsorted(middle, [train, 1 - self.test_fraction])
    first = np.clip(first, 1, len(sizes) - 2)
    second = np.clip(second, first + 1, len(sizes) - 1)
    parts = np.split(order, [first, second])
    return dict(zip(("train", "validation", "test"), parts, strict=True))

  def _windows(
    self, documents: Sequence[np.ndarray], part: str, seed: int
  ) -> ArraySource:
    """Returns the windows that the seed draws of a part's documents."""
    cut = [_cut(ids, self.length) for ids in documents]
    rows, filled = (np.concatenate(arrays) for arrays in zip(*cut, strict=True))
    order = randomness.permutation(
      len(rows), seed=seed, purpose=f"{part} windows"
    )
    field = f"{part}_size"
    drawn = partition.cut(order, getattr(self, field), f"Text.{field}")
    rows, filled = rows[drawn], filled[drawn]
    mask = np.arange(self.length)[None] < filled[:, None]
    return ArraySource(
      {
        "tokens": np.where(mask, rows[:, :-1], 0).astype(np.int32),
        "label": np.where(mask, rows[:, 1:], 0).astype(np.int32),
        "token_mask": mask.astype(np.float32),
      }
    )


def topics() -> list[str]:
  """Returns the help topics of Python, by name.

  Long topics repeat shorter ones as their sections. A paragraph is kept in the
  shortest topic that has it, so that no two documents share one.
  """
  from pydoc_data.topics import topics as found

  seen, kept = set(), {}
  for name in sorted(found, key=lambda name: (len(found[name]), name)):
    paragraphs = found[name].split("\n\n")
    own = [p for p in paragraphs if p.strip() and p.strip() not in seen]
    seen.update(p.strip() for p in own)
    kept[name] = "\n\n".join(own)
  return [kept[name] for name in sorted(kept) if len(kept[name]) > 1]


def read(folder: str | os.PathLike[str]) -> list[str]:
  """Returns the texts of a folder, by name of file.

  Files of fewer than two characters are left out: they have no next one.

  Args:
    folder: Has files *.md, *.rst or *.txt; others are not read.

  Raises:
    RefusedInput: The folder is absent or has fewer than three documents, or a
      file is no UTF-8.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise RefusedInput(f"text folder {folder}: no such folder; {_HOW_TO_FILL}")
  documents = []
  for path in sorted(folder.iterdir()):
    if path.suffix not in SUFFIXES or not path.is_file():
      continue
    try:
      document = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise RefusedInput(
        f"text file {path}: not readable ({error}); {_HOW_TO_FILL}"
      ) from error
    if len(document) > 1:
      documents.append(document)
  if len(documents) < 3:
    raise RefusedInput(
      f"text folder {folder}: {len(documents)} documents, expected at least 3, "
      f"one for each part; {_HOW_TO_FILL}"
    )
  return documents


def _cut(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a document's tokens [n] into windows.

  Returns:
    Rows [k, length + 1], of which the last token is the first of the next
    row, and how many labels each has, [k].
  """
  labels = max(len(ids) - 1, 0)
  count = -(-labels // length)
  padded = np.zeros(count * length + 1, np.int32)
  padded[: len(ids)] = ids[: len(padded)]
  starts = np.arange(count) * length
  rows = padded[starts[:, None] + np.arange(length + 1)[None]]
  return rows, np.minimum(labels - starts, length)
