"""Tokenizers: text to integers 0..V-1 and back.

Fitting one is a function of the text alone.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from jaxkd import extras

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
BYTES = 256


class Tokenizer(Protocol):
  """What turns text into tokens; any object with these attributes will do."""

  @property
  def vocabulary_size(self) -> int:
    """Number of tokens V."""
    ...

  def encode(self, text: str) -> np.ndarray:
    """Returns the tokens of a text, int32 [n] in 0..V-1."""
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens [n]; what is no text, as U+FFFD."""
    ...


class Characters:
  """A token for every character, and token 0 for all that are not known."""

  def __init__(self, known: Iterable[str], vocabulary_size: int | None = None):
    """Numbers the characters from 1 by code point.

    Args:
      known: The characters.
      vocabulary_size: At least one more than there are; tokens that are left
        over stand for nothing.
    """
    codes = sorted(map(ord, set(known)))
    self._codes = np.asarray(codes, np.uint32)
    self.vocabulary_size = vocabulary_size or len(codes) + 1

  @classmethod
  def fit(
    cls, documents: Iterable[str], vocabulary_size: int | None = None
  ) -> "Characters":
    """Returns the tokenizer of all characters, or of the most frequent ones.

    Args:
      documents: Texts.
      vocabulary_size: V; the V - 1 most frequent characters are known, of
        equally frequent ones the lower code point. None: all are known.
    """
    counts = collections.Counter()
    for document in documents:
      counts.update(document)
    if vocabulary_size is None:
      return cls(counts)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return cls(ranked[: vocabulary_size - 1], vocabulary_size)

  def encode(self, text: str) -> np.ndarray:
    """Returns the tokens of a text, int32 [characters]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    if not len(self._codes):
      return np.zeros(len(codes), np.int32)
    place = np.searchsorted(self._codes, codes)
    found = self._codes[np.minimum(place, len(self._codes) - 1)] == codes
    return np.where(found, place + 1, 0).astype(np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens [n]; token 0 becomes U+FFFD."""
    table = [UNKNOWN, *map(chr, self._codes)]
    return "".join(table[i] if i < len(table) else UNKNOWN for i in ids)


class Bytes:
  """The 256 bytes of UTF-8: nothing is unknown and nothing is fitted."""

  vocabulary_size = BYTES

  def encode(self, text: str) -> np.ndarray:
    """Returns the tokens of a text, int32 [bytes]."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens [n]; broken characters become U+FFFD."""
    return np.asarray(ids, np.uint8).tobytes().decode(errors="replace")


class BytePairs:
  """Bytes, and pairs of tokens that are often neighbours (BPE).

  Reference: Sennrich et al., https://arxiv.org/abs/1508.07909, Sec. 3.2.
  """

  def __init__(self, model: Any, vocabulary_size: int):
    """Keeps a trained `tokenizers.Tokenizer`."""
    self._model = model
    self.vocabulary_size = vocabulary_size

  @classmethod
  def fit(cls, documents: Iterable[str], vocabulary_size: int) -> "BytePairs":
    """Returns the tokenizer with the merges of the most frequent pairs.

    Args:
      documents: Texts.
      vocabulary_size: V, at least 256; tokens are left over if there are
        fewer pairs to merge.

    Raises:
      MissingExtra: The package `tokenizers` is not installed.
    """
    library = extras.need("tokenizers", extra="text", what="tokens='bpe'")
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(
      add_prefix_space=False
    )
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
      vocab_size=vocabulary_size,
      initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    )
    model.train_from_iterator(documents, trainer)
    return cls(model, vocabulary_size)

  def encode(self, text: str) -> np.ndarray:
    """Returns the tokens of a text, int32 [n]."""
    return np.asarray(self._model.encode(text).ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens [n]; broken characters become U+FFFD."""
    known = self._model.get_vocab_size()
    return self._model.decode([int(i) for i in ids if i < known])
