"""Captions of things with a name and keywords, and captions as numbers.

Nothing here is trained: ids count words, and `hashed_features` is a frozen
encoder whose every number follows from this file.
"""

import collections
import functools
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

PADDING, RARE = 0, 1  # ids; words have the following ones
_KEYWORDS = 3  # in a caption of keywords
_BUCKETS = 8192  # of hashed n-grams
_LETTERS = 3  # of an n-gram


def words(text: str) -> list[str]:
  """Returns the runs of letters and digits of a text, in lower case."""
  return re.findall(r"[^\W_]+", text.lower())


def compose(
  name: str,
  keywords: Sequence[str],
  kind: str,
  count: int,
  generator: np.random.Generator,
) -> list[str]:
  """Returns captions of one thing, the first of which is its name.

  Five forms take turns: the name; three keywords; the kind and a keyword; the
  name and a keyword; the kind and the name. Keywords are drawn.

  Args:
    name: What the thing is called.
    keywords: What else is said of it; without any, its name takes their place.
    kind: What sort of thing it is.
    count: Number of captions.
    generator: Draws the keywords.
  """
  captions = []
  for i in range(count):
    draws = generator.random(len(keywords) or 1)
    drawn = [(keywords or [name])[place] for place in np.argsort(draws)]
    forms = (
      [name],
      drawn[:_KEYWORDS],
      [kind, drawn[0]],
      [name, drawn[0]],
      [kind, name],
    )
    captions.append(" ".join(forms[i % len(forms)]))
  return captions


def vocabulary(texts: Iterable[str], size: int) -> dict[str, int]:
  """Returns the ids of the most frequent words, the first of equal ones by abc.

  Args:
    texts: What to count the words of.
    size: Number of ids, 0 for padding and 1 for all other words included.
  """
  counts = collections.Counter(word for text in texts for word in words(text))
  ranked = sorted(counts, key=lambda word: (-counts[word], word))
  return {word: RARE + 1 + i for i, word in enumerate(ranked[: size - 2])}


def encode(
  texts: Sequence[str], ids: Mapping[str, int], length: int
) -> np.ndarray:
  """Returns the ids of the first words of each text, int32 [n, length]."""
  encoded = np.full((len(texts), length), PADDING, np.int32)
  for row, text in zip(encoded, texts, strict=True):
    found = [ids.get(word, RARE) for word in words(text)[:length]]
    row[: len(found)] = found
  return encoded


def hashed_features(texts: Sequence[str], dimensions: int) -> np.ndarray:
  """Returns a frozen embedding of each text, float32 [n, D], rows of length 1.

  A text is the bag of its words and of all three neighbouring letters in
  them, `<` and `>` around the word included. Each is hashed (CRC-32) to one of
  8,192 rows of random signs, and the rows are added: texts that share words or
  parts of words lie close. A text without a word is all zeros.

  Args:
    texts: Any texts.
    dimensions: D.
  """
  signs = _signs(dimensions)
  sums = np.zeros((len(texts), dimensions), np.float32)
  for row, text in zip(sums, texts, strict=True):
    hashes = [zlib.crc32(gram.encode()) % _BUCKETS for gram in _grams(text)]
    row[:] = signs[hashes].sum(0)
  length = np.linalg.norm(sums, axis=1, keepdims=True)
  return sums / np.maximum(length, 1e-12)


def _grams(text: str) -> list[str]:
  grams = []
  for word in words(text):
    framed = f"<{word}>"
    last = len(framed) - _LETTERS + 1
    grams += [word, *(framed[i : i + _LETTERS] for i in range(last))]
  return grams


@functools.lru_cache(maxsize=2)
def _signs(dimensions: int) -> np.ndarray:
  """Returns 1 and -1, float32 [8192, D], the bits of the raw Philox stream."""
  bits = np.random.Philox(key=np.zeros(2, np.uint64))
  stream = bits.random_raw(-(-_BUCKETS * dimensions // 64)).astype("<u8")
  drawn = np.unpackbits(stream.view(np.uint8))[: _BUCKETS * dimensions]
  return 2 * drawn.reshape(_BUCKETS, dimensions).astype(np.float32) - 1
