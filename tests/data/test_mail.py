"""Mail: what of a message is read, and which messages are alike."""

import pytest

from jaxkd.data import mail

PLAIN = b"""From: someone@example.com
Subject: Lunch
X-Spam-Status: yes

Shall we?
"""
MARKUP = b"""Subject: Offer
Content-Type: text/html

<html><style>p {color: red}</style><script>go()</script>
<p>Buy<b>now</b> &amp; save</p></script></html>
"""
PARTS = b"""Subject: Both
Content-Type: multipart/alternative; boundary="x"

--x
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: base64

Y2Fmw6k=
--x
Content-Type: text/html

<p>not read</p>
--x--
"""


def test_a_mail_is_its_subject_and_its_text():
  assert mail.text_of(PLAIN) == "Lunch\nShall we?\n"


def test_markup_scripts_and_styles_are_left_out():
  assert mail.text_of(MARKUP).split() == ["Offer", "Buy", "now", "&", "save"]


def test_the_first_text_of_several_parts_is_decoded_and_read():
  assert mail.text_of(PARTS) == "Both\ncafé"


@pytest.mark.parametrize("charset", [b"no-such-set", b"ascii"])
def test_no_character_set_stops_the_reading(charset):
  message = b"Content-Type: text/plain; charset=%s\n\ncaf\xe9 bar" % charset
  assert mail.text_of(message).endswith(" bar")


def test_a_mail_without_text_is_its_subject():
  assert mail.text_of(b"") == "\n"
  assert mail.text_of(b"Subject: only\n") == "only\n"
  image = b"Subject: only\nContent-Type: image/png\n\nxyz"
  assert mail.text_of(image) == "only\n"


WORDS = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize(
  "like",
  [
    WORDS,
    WORDS.upper().replace(" ", "\r\n"),
    "12: " + WORDS.replace(" ", ", ") + "! 99",
    WORDS + " eleven twelve thirteen",  # 8 triples of 11
    "zero " + WORDS,
  ],
)
def test_a_text_like_one_before_it_is_left_out(like):
  assert mail.distinct(["other", WORDS, like, "another"]) == [0, 1, 3]


def test_a_text_that_shares_less_is_kept():
  more = "alpha beta gamma delta epsilon zeta eta theta iota"  # 8 triples of 17
  assert mail.distinct([WORDS, f"{WORDS} {more}"]) == [0, 1]
  assert mail.distinct([WORDS, f"{WORDS} {more}"], share=0.4) == [0]


def test_the_share_counts_the_triples_of_both():
  a, b = "a b c d e", "b c d e f"  # 2 triples of 4 are in both
  assert mail.distinct([a, b], share=0.5) == [0]
  assert mail.distinct([a, b], share=0.51) == [0, 1]


def test_short_texts_are_compared_as_a_whole():
  assert mail.distinct(["Hello you", "hello, YOU", "hello", "", "1"]) == [
    0,
    2,
    3,
  ]
