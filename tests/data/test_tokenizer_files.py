"""Tokenizer files: the tokens of their library, as rows with padding."""

import json

import numpy as np
import pytest

from jaxkd.data import text, tokenizer_files
from jaxkd.data.tokenizer_files import TokenizerFile
from jaxkd.errors import ConfigError, RefusedInput

library = pytest.importorskip("tokenizers", reason="the extra text")

WORDS = ("a", "b", "c", "d", "e", "f", "[UNK]", "[CLS]", "[SEP]", "[FILL]")
SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[FILL]")


def write(folder, *, fill=False, config=None):
  """Writes a tokenizer of the words a to f, as BERT's puts them in rows."""
  numbers = {word: i for i, word in enumerate(WORDS)}
  model = library.Tokenizer(
    library.models.WordLevel(numbers, unk_token="[UNK]")
  )
  model.pre_tokenizer = library.pre_tokenizers.Whitespace()
  model.add_special_tokens(list(SPECIAL))
  model.post_processor = library.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 7), ("[SEP]", 8)],
  )
  model.enable_truncation(3)
  if fill:
    model.enable_padding(pad_id=9, pad_token="[FILL]", length=4)
  path = folder / "tokenizer.json"
  model.save(str(path))
  if config is not None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return path


@pytest.fixture
def tokenizer(tmp_path):
  return TokenizerFile(write(tmp_path, fill=True))


# Tokens.


def test_a_text_alone_has_no_tokens_around_it_and_is_not_cut(tokenizer):
  found = tokenizer.encode("a b c d e f a")
  assert found.dtype == np.int32
  assert found.tolist() == [0, 1, 2, 3, 4, 5, 0]
  assert tokenizer.decode(found) == "a b c d e f a"
  assert tokenizer.encode("").shape == (0,)


def test_numbers_of_tokens_are_known_by_name(tokenizer):
  assert tokenizer.vocabulary_size == 10
  assert tokenizer.special == {"[UNK]": 6, "[CLS]": 7, "[SEP]": 8, "[FILL]": 9}
  assert tokenizer.number("[SEP]") == 8
  with pytest.raises(ConfigError, match=r"no token '\[SEPA\]'.*'\[SEP\]'"):
    tokenizer.number("[SEPA]")


def test_spans_say_where_a_token_lies(tokenizer):
  ids, places = tokenizer.spans("a [SEP]  b")
  assert ids.tolist() == [0, 8, 1]
  assert places.tolist() == [[0, 1], [2, 7], [9, 10]]
  assert tokenizer.spans("")[1].shape == (0, 2)


# Rows.


def test_rows_have_the_tokens_around_them_and_padding_behind(tokenizer):
  found = tokenizer.rows(["a b", "c"], length=6)
  assert found["tokens"].tolist() == [[7, 0, 1, 8, 9, 9], [7, 2, 8, 9, 9, 9]]
  assert found["token_mask"].tolist() == [
    [1, 1, 1, 1, 0, 0],
    [1, 1, 1, 0, 0, 0],
  ]
  assert found["tokens"].dtype == np.int32
  assert found["token_mask"].dtype == np.float32
  assert set(found) == {"tokens", "token_mask"}


def test_rows_that_are_too_long_keep_the_tokens_around_them(tokenizer):
  found = tokenizer.rows(["a b c d e"], length=4)
  assert found["tokens"].tolist() == [[7, 0, 1, 8]]
  found = tokenizer.rows(["a b c d e"], length=4, side="left")
  assert found["tokens"].tolist() == [[7, 3, 4, 8]]
  # Another length than that of the file, and the one before.
  assert len(tokenizer.rows(["a b c d e"], length=6)["tokens"][0]) == 6
  assert tokenizer.encode("a b c d e").shape == (5,)


def test_pairs_have_types_and_the_longer_text_is_cut(tokenizer):
  found = tokenizer.rows(["a b c d e", "a"], ["f", "b c"], length=8)
  assert found["tokens"].tolist() == [
    [7, 0, 1, 2, 3, 8, 5, 8],
    [7, 0, 8, 1, 2, 8, 9, 9],
  ]
  assert found["token_types"].tolist() == [
    [0, 0, 0, 0, 0, 0, 1, 1],
    [0, 0, 0, 1, 1, 1, 0, 0],
  ]
  with pytest.raises(ValueError, match="zip"):
    tokenizer.rows(["a", "b"], ["c"], length=8)


def test_padding_can_stand_before_the_rows(tokenizer):
  found = tokenizer.rows(["a", "a b"], ["b", "c"], length=7, side="left")
  assert found["tokens"][0].tolist() == [9, 9, 7, 0, 8, 1, 8]
  assert found["token_mask"][0].tolist() == [0, 0, 1, 1, 1, 1, 1]
  assert found["token_types"][0].tolist() == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
  ("fill", "config", "given", "number"),
  [
    (True, None, None, 9),
    (True, {"pad_token": "[UNK]"}, None, 6),
    (False, {"pad_token": {"content": "[CLS]"}}, None, 7),
    (False, {"pad_token": None}, None, 0),
    (False, None, None, 0),
    (True, {"pad_token": "[UNK]"}, "[SEP]", 8),
  ],
)
def test_padding_is_what_is_asked_for_or_configured(
  fill, config, given, number, tmp_path
):
  write(tmp_path, fill=fill, config=config)
  assert TokenizerFile(tmp_path, padding=given).padding == number


def test_no_rows_are_no_rows(tokenizer):
  assert tokenizer.rows([], length=4)["tokens"].shape == (0, 4)


def test_rows_of_any_numbers_are_padded_on_both_sides():
  found = tokenizer_files.padded([[1, 2, 3], [4]], length=2, fill=-1)
  assert found["tokens"].tolist() == [[1, 2], [4, -1]]
  found = tokenizer_files.padded(
    [[1, 2, 3], []], length=2, fill=-1, side="left"
  )
  assert found["tokens"].tolist() == [[2, 3], [-1, -1]]
  assert found["token_mask"].tolist() == [[1, 1], [0, 0]]


# Errors.


@pytest.mark.parametrize(
  ("seconds", "length", "least"), [(None, 2, 3), (["b"], 3, 4)]
)
def test_a_length_without_room_for_text_is_refused(
  tokenizer, seconds, length, least
):
  with pytest.raises(ConfigError, match=f"length.*at least {least}"):
    tokenizer.rows(["a"], seconds, length=length)


def test_an_unknown_side_is_refused(tokenizer):
  with pytest.raises(ConfigError, match="side = 'up': expected left or right"):
    tokenizer.rows(["a"], length=4, side="up")


@pytest.mark.parametrize("content", ["{}", "[1", '{"model": 3}', "\x00"])
def test_a_file_that_is_no_tokenizer_is_refused(content, tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text(content)
  with pytest.raises(RefusedInput, match="tokenizer.json: no tokenizer"):
    TokenizerFile(path)


def test_an_absent_file_and_a_broken_config_are_refused(tmp_path):
  with pytest.raises(RefusedInput, match="expected a tokenizer.json"):
    TokenizerFile(tmp_path)
  write(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(RefusedInput, match="tokenizer_config.json"):
    TokenizerFile(tmp_path)


# Causal text.


def test_text_is_cut_into_windows_of_a_files_tokens(tmp_path):
  folder = tmp_path / "documents"
  folder.mkdir()
  for name in "pqrs":
    (folder / f"{name}.txt").write_text("a b c d e f " * 20)
  task = text.Text(
    folder=folder,
    tokens="file",
    tokenizer_file=write(tmp_path),
    length=5,
    train_size=8,
    validation_size=8,
    test_size=8,
  )
  assert task.num_classes == 10
  first = task.splits(0).train[0]
  np.testing.assert_array_equal(first["label"], (first["tokens"] + 1) % 6)
  assert task.tokenizer(0).decode([0, 5]) == "a f"


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"tokens": "file"}, "tokenizer_file = None: expected a path"),
    ({"tokenizer_file": "x"}, "tokenizer_file = 'x': expected a path"),
    (
      {"tokens": "file", "tokenizer_file": "x", "vocabulary_size": 9},
      "vocabulary_size = 9: expected None, as the file",
    ),
  ],
)
def test_fields_of_text_that_contradict_each_other_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    text.Text(**fields)
