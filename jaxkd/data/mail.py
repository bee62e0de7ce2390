"""Mail: what a message says, and which messages say the same."""

import collections
import email
import email.message
import html.parser
import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W\d_]+")
_UNSEEN = ("script", "style")


def text_of(message: bytes) -> str:
  """Returns the subject and the first text of a message, without markup.

  All other headers are left out: they tell who collected the message.

  Args:
    message: as it was received, RFC 822.
  """
  parsed = email.message_from_bytes(message)
  for part in parsed.walk():
    if part.get_content_maintype() == "text":
      body = _decoded(part)
      if part.get_content_subtype() == "html":
        body = _shown(body)
      break
  else:
    body = ""
  return f"{parsed.get('subject', '')}\n{body}"


def _decoded(part: email.message.Message) -> str:
  """Returns the text of a part; what cannot be read, as U+FFFD."""
  content = part.get_payload(decode=True) or b""
  try:
    return content.decode(part.get_content_charset("latin-1"), "replace")
  except LookupError:  # a character set that Python has not
    return content.decode("latin-1")


class _Page(html.parser.HTMLParser):
  """Collects the text between tags.

  Attributes:
    words: the pieces of text, a space for every tag.
  """

  def __init__(self):
    super().__init__()
    self.words: list[str] = []
    self._unseen = 0

  def handle_starttag(self, tag, attrs):
    """Stops to collect inside of scripts and styles."""
    del attrs
    self._unseen += tag in _UNSEEN
    self.words.append(" ")

  def handle_endtag(self, tag):
    """Goes on behind them."""
    self._unseen = max(self._unseen - (tag in _UNSEEN), 0)

  def handle_data(self, data):
    """Keeps text."""
    if not self._unseen:
      self.words.append(data)


def _shown(page: str) -> str:
  """Returns the text of a page in HTML."""
  parser = _Page()
  parser.feed(page)
  parser.close()
  return "".join(parser.words)


def distinct(texts: Sequence[str], share: float = 0.5) -> list[int]:
  """Returns the numbers of texts that are not like one before them.

  Two texts are alike if they have the same triples of neighbouring words, but
  for a few:

    |A and B| >= share |A or B|

  Words are letters alone, in lower case: numbers, punctuation, spaces and
  line ends make no difference.

  Args:
    texts: to choose from.
    share: of the triples, above 0 and at most 1.
  """
  kept: dict[int, int] = {}  # number of a text -> its number of triples
  holders = collections.defaultdict(list)  # triple -> texts
  for number, text in enumerate(texts):
    triples = _triples(text)
    common = collections.Counter(
      other for triple in triples for other in holders[triple]
    )
    if any(
      both >= share * (len(triples) + kept[other] - both)
      for other, both in common.items()
    ):
      continue
    kept[number] = len(triples)
    for triple in triples:
      holders[triple].append(number)
  return list(kept)


def _triples(text: str) -> set[tuple[str, ...]]:
  """Returns the triples of neighbouring words; of fewer, all in one."""
  words = _WORD.findall(text.lower())
  count = max(len(words) - 2, 1)
  return {tuple(words[i : i + 3]) for i in range(count)}
