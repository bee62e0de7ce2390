"""Text: documents are split, windows hold the next tokens, errors say why."""

import itertools
import sys

import numpy as np
import pytest

from jaxkd import extras
from jaxkd.data import Task, Text, pipeline, text, tokens
from jaxkd.errors import ConfigError, RefusedInput

LETTERS = "abcdefghijkl"
SMALL = {"length": 4, "train_size": 20, "validation_size": 5, "test_size": 5}


@pytest.fixture
def folder(tmp_path):
  """Twelve documents, each of one letter and of 18 to 29 of them."""
  for number, letter in enumerate(LETTERS):
    (tmp_path / f"{letter}.txt").write_text(letter * (18 + number))
  return tmp_path


@pytest.fixture(scope="module")
def splits():
  return Text().splits(0)


def small(folder, **changed):
  return Text(folder=folder, **{**SMALL, **changed})


def entries(part):
  return part.take(range(len(part)))


def test_it_is_a_task():
  assert isinstance(Text(), Task)
  assert Text().name == "text"


def test_without_a_folder_the_text_is_that_of_python(splits):
  sizes = [len(part) for part in splits.parts.values()]
  assert sizes == [4000, 500, 500]
  batch = splits.train.take([0, 1])
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    "tokens": ((2, 48), "int32"),
    "label": ((2, 48), "int32"),
    "token_mask": ((2, 48), "float32"),
    "index": ((2,), "int32"),
  }
  said = Text().tokenizer(0).decode(entries(splits.train)["tokens"].ravel())
  assert " the " in said
  assert tokens.UNKNOWN in said  # where windows end early


@pytest.mark.parametrize("seed", range(20))
def test_every_seed_gives_windows_enough_for_the_defaults(seed):
  documents = text.topics()
  parts = Text()._parts(documents, seed).values()
  characters = [sum(len(documents[i]) for i in part) for part in parts]
  assert characters[0] > 4000 * 48
  assert min(characters) > 1.2 * 500 * 48


def test_no_paragraph_of_python_is_in_two_documents():
  found = [{p.strip() for p in d.split("\n\n")} for d in text.topics()]
  assert sum(map(len, found)) == len(set.union(*found)) > 2000


def test_paragraphs_of_python_are_lost_in_no_document():
  from pydoc_data.topics import topics

  kept = {p.strip() for d in text.topics() for p in d.split("\n\n")}
  for document in topics.values():
    paragraphs = {p.strip() for p in document.split("\n\n")} - {""}
    assert paragraphs <= kept


def test_no_document_is_in_two_parts(folder):
  said = [
    set(entries(part)["label"].ravel()) - {0}
    for part in small(folder).splits(0).parts.values()
  ]
  assert not any(a & b for a, b in itertools.combinations(said, 2))
  assert sum(map(len, said)) > 8  # of 12, as only some windows are drawn


def test_parts_have_their_share_of_the_text(folder):
  documents = text.read(folder)
  task = small(folder, validation_fraction=0.25, test_fraction=0.25)
  for seed in range(10):
    parts = task._parts(documents, seed)
    sizes = [sum(len(documents[i]) for i in p) for p in parts.values()]
    shares = np.divide(sizes, sum(map(len, documents)))
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.11)


def test_labels_are_the_next_tokens_of_the_document(tmp_path):
  document = "".join(map(chr, range(100, 190)))  # no character twice
  for name in "abc":
    (tmp_path / f"{name}.txt").write_text(document)
  task = Text(
    folder=tmp_path, length=7, train_size=13, validation_size=1, test_size=1
  )
  rows = entries(task.splits(0).train)
  where = rows["token_mask"] == 1
  np.testing.assert_array_equal(rows["label"][where], rows["tokens"][where] + 1)
  # Every character but the first is a label once: 89 = 12 * 7 + 5.
  assert sorted(rows["label"][where]) == list(range(2, 91))


def test_the_last_window_of_a_document_is_padded(tmp_path):
  for name in "abc":
    (tmp_path / f"{name}.txt").write_text("xyz" * 3)  # 8 labels
  task = Text(
    folder=tmp_path, length=5, train_size=2, validation_size=1, test_size=1
  )
  rows = entries(task.splits(0).train)
  order = np.argsort(-rows["token_mask"].sum(-1))
  np.testing.assert_array_equal(
    rows["token_mask"][order], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
  )
  np.testing.assert_array_equal(
    rows["tokens"][order], [[1, 2, 3, 1, 2], [3, 1, 2, 0, 0]]
  )
  np.testing.assert_array_equal(
    rows["label"][order], [[2, 3, 1, 2, 3], [1, 2, 3, 0, 0]]
  )


def test_a_document_that_fills_its_windows_is_not_padded(tmp_path):
  for name in "abc":
    (tmp_path / f"{name}.txt").write_text("x" * 9)
  task = Text(
    folder=tmp_path, length=4, train_size=2, validation_size=2, test_size=2
  )
  for part in task.splits(0).parts.values():
    assert entries(part)["token_mask"].all()


def test_a_seed_always_gives_the_same_bytes(folder):
  again = [small(folder).splits(2) for _ in range(2)]
  prints = [[pipeline.fingerprint(p) for p in s.parts.values()] for s in again]
  assert prints[0] == prints[1]


def test_seeds_give_different_splits_of_the_same_classes(folder):
  left, right = (small(folder).splits(seed) for seed in (0, 1))
  for name in ("train", "test"):
    a, b = (entries(s.part(name))["label"] for s in (left, right))
    assert not np.array_equal(a, b)
  decoded = {small(folder).tokenizer(seed).decode([1, 5]) for seed in (0, 1)}
  assert decoded == {"ae"}
  assert small(folder).num_classes == 13


def test_held_out_windows_do_not_depend_on_the_training_size(folder):
  few, many = (small(folder, train_size=n).splits(0) for n in (10, 30))
  for name in ("validation", "test"):
    a, b = few.part(name), many.part(name)
    assert pipeline.fingerprint(a) == pipeline.fingerprint(b)
  np.testing.assert_array_equal(
    entries(few.train)["label"], entries(many.train)["label"][:10]
  )


def test_windows_of_several_documents_are_mixed(folder):
  labels = entries(small(folder).splits(0).train)["label"][:8, 0]
  assert len(set(labels)) > 3


# Tokens.


def test_characters_are_those_of_all_documents_by_code_point(tmp_path):
  for name, said in (("a", "cab"), ("b", "zé"), ("c", "\U0001f600 中")):
    (tmp_path / f"{name}.txt").write_text(said, encoding="utf-8")
  task = Text(folder=tmp_path)
  assert task.num_classes == 9
  tokenizer = tokens.Characters.fit(text.read(tmp_path))
  ids = tokenizer.encode("zé中\U0001f600a ")
  assert ids.tolist() == [5, 6, 7, 8, 2, 1]
  assert tokenizer.decode(ids) == "zé中\U0001f600a "


def test_what_is_not_known_is_token_0_and_the_replacement_character():
  tokenizer = tokens.Characters("abc")
  np.testing.assert_array_equal(tokenizer.encode("bxd\ud800a"), [2, 0, 0, 0, 1])
  assert tokenizer.decode([2, 0]) == "b" + tokens.UNKNOWN
  np.testing.assert_array_equal(tokens.Characters("").encode("ab"), [0, 0])


def test_a_vocabulary_holds_the_most_frequent_characters(tmp_path):
  for name in "abc":
    (tmp_path / f"{name}.txt").write_text("zzzyyxxwv" * 4)
  task = Text(folder=tmp_path, vocabulary_size=4)
  assert task.num_classes == 4
  tokenizer = tokens.Characters.fit(text.read(tmp_path), 4)
  assert tokenizer.encode("vwxyz").tolist() == [0, 0, 1, 2, 3]


def test_a_vocabulary_may_be_larger_than_the_text(folder):
  task = small(folder, vocabulary_size=50)
  assert task.num_classes == task.tokenizer(0).vocabulary_size == 50
  assert task.tokenizer(0).decode([1, 49]) == "a" + tokens.UNKNOWN
  labels = entries(task.splits(0).train)["label"]
  np.testing.assert_array_equal(
    labels, entries(small(folder).splits(0).train)["label"]
  )


def test_bytes_are_those_of_utf_8(tmp_path):
  for name in "abc":
    (tmp_path / f"{name}.txt").write_text("né" * 8, encoding="utf-8")
  task = Text(
    folder=tmp_path,
    tokens="bytes",
    length=23,
    train_size=1,
    validation_size=1,
    test_size=1,
  )
  assert task.num_classes == 256
  row = task.splits(0).train.take([0])
  assert bytes(row["tokens"][0].tolist()) == ("né" * 8).encode()[:-1]
  assert bytes(row["label"][0].tolist()) == ("né" * 8).encode()[1:]
  broken = task.tokenizer(0).decode([110, 195])
  assert broken == "n" + tokens.UNKNOWN


def test_byte_pairs_are_trained_on_the_training_part_alone(folder):
  pytest.importorskip("tokenizers")
  task = small(folder, tokens="bpe", vocabulary_size=270)
  assert task.num_classes == 270
  parts = task._parts(text.read(folder), 0)
  tokenizer = task.tokenizer(0)
  lengths = {
    name: {len(tokenizer.encode(LETTERS[i] * 18)) for i in part}
    for name, part in parts.items()
  }
  assert max(lengths["train"]) < 18
  assert lengths["validation"] == lengths["test"] == {18}


def test_byte_pairs_are_the_same_every_time_and_lose_nothing():
  pytest.importorskip("tokenizers")
  documents = text.topics()[:12]
  pair = [tokens.BytePairs.fit(documents, 400) for _ in range(2)]
  said = documents[3][:500] + " né 中\n\t\U0001f600"
  ids = [tokenizer.encode(said) for tokenizer in pair]
  np.testing.assert_array_equal(*ids)
  assert len(ids[0]) < 0.7 * len(said)
  assert 0 <= ids[0].min() <= ids[0].max() < 400
  assert pair[0].decode(ids[0]) == said


def test_byte_pairs_without_the_library_say_which_extra_has_it(
  folder, monkeypatch
):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  task = small(folder, tokens="bpe", vocabulary_size=300)
  with pytest.raises(extras.MissingExtra, match=r"tokens='bpe'.*jaxkd\[text\]"):
    task.splits(0)


# What is refused.


def test_files_of_other_kinds_and_empty_ones_are_left_out(folder):
  before = text.read(folder)
  (folder / "picture.png").write_bytes(b"\x89PNG")
  (folder / "empty.txt").write_text("")
  (folder / "one.md").write_text("x")
  (folder / "folder.txt").mkdir()
  assert text.read(folder) == before
  (folder / "more.rst").write_text("more")
  assert text.read(folder)[-1] == "more"


def test_an_absent_or_empty_folder_says_how_to_fill_it(tmp_path):
  message = "nowhere: no such folder; put text files in UTF-8"
  with pytest.raises(RefusedInput, match=message):
    Text(folder=tmp_path / "nowhere").splits(0)
  (tmp_path / "empty.txt").write_text("")
  with pytest.raises(
    RefusedInput, match=r"0 documents, .*\*\.md, \*\.rst, \*\.txt"
  ):
    _ = Text(folder=tmp_path).num_classes


def test_a_file_that_is_no_utf_8_is_named(folder):
  (folder / "latin.txt").write_bytes("é".encode("latin-1") * 2)
  with pytest.raises(RefusedInput, match=r"latin\.txt: not readable .*utf-8"):
    small(folder).splits(0)


@pytest.mark.parametrize("sizes", [(9, 9, 9), (9, 9, 900), (900, 9, 9)])
@pytest.mark.parametrize("seed", range(3))
def test_three_documents_are_one_for_each_part(tmp_path, seed, sizes):
  for name, size in zip("abc", sizes, strict=True):
    (tmp_path / f"{name}.txt").write_text("x" * size)
  parts = small(tmp_path)._parts(text.read(tmp_path), seed)
  assert sorted(int(i) for part in parts.values() for i in part) == [0, 1, 2]
  assert {len(part) for part in parts.values()} == {1}


def test_too_few_documents_for_three_parts_are_refused(tmp_path):
  for name in "ab":
    (tmp_path / f"{name}.txt").write_text("text" * 9)
  with pytest.raises(RefusedInput, match="2 documents, expected at least 3"):
    small(tmp_path).splits(0)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_more_windows_than_there_are_is_refused(folder, part):
  message = rf"Text\.{part}_size = 999: .* at least 1 and at most \d+"
  with pytest.raises(ConfigError, match=message):
    small(folder, **{f"{part}_size": 999}).splits(0)


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({"length": 0}, "length = 0: expected an integer of at least 1"),
    ({"train_size": 0}, "train_size = 0"),
    ({"batch_size": 1.5}, r"batch_size = 1\.5"),
    ({"test_fraction": 0}, "test_fraction = 0"),
    ({"test_fraction": 0.9}, "expected a number below 1"),
    ({"tokens": "words"}, "tokens = 'words': expected characters or bytes"),
    ({"tokens": "bpe"}, "vocabulary_size = None: expected an integer of at"),
    ({"tokens": "bpe", "vocabulary_size": 255}, "at least 256"),
    ({"tokens": "bytes", "vocabulary_size": 256}, "expected None"),
    ({"vocabulary_size": 1}, "an integer of at least 2"),
  ],
)
def test_a_field_out_of_range_is_refused_by_name(fields, expected):
  with pytest.raises(ConfigError, match=rf"Text\..*{expected}"):
    Text(**fields)
