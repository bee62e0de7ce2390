"""Captions: their forms, ids of words, frozen embeddings."""

import numpy as np

from jaxkd.data import captions


def _compose(keywords, count, seed=0):
  return captions.compose(
    "red apple", keywords, "food", count, np.random.default_rng(seed)
  )


def test_five_forms_take_turns_with_keywords_drawn_anew():
  keywords = ("fruit", "sweet", "tree", "eat", "pie", "core")
  made = _compose(keywords, 7)
  assert made[0] == made[5] == "red apple"
  assert made[4] == "food red apple"
  assert len(set(made[1].split())) == 3
  assert set(made[1].split()) < set(keywords)
  assert made[2].split()[0] == "food"
  assert made[3].startswith("red apple ")
  assert made[3].split()[2] in keywords
  assert made[1] != made[6]


def test_without_keywords_the_name_takes_their_place():
  made = _compose((), 4)
  assert made[1:3] == ["red apple", "food red apple"]
  assert made[3] == "red apple red apple"


def test_the_first_captions_do_not_depend_on_how_many_there_are():
  keywords = ("fruit", "sweet", "tree", "eat")
  assert _compose(keywords, 2) == _compose(keywords, 6)[:2]


def test_ids_go_to_the_most_frequent_words_first():
  ids = captions.vocabulary(["b a", "b, A!", "b c"], size=4)
  assert ids == {"b": 2, "a": 3}


def test_texts_are_cut_padded_and_rare_words_marked():
  ids = {"b": 2, "a": 3}
  found = captions.encode(["B-a unknown b", "a"], ids, 3)
  np.testing.assert_array_equal(found, [[2, 3, 1], [3, 0, 0]])
  assert found.dtype == np.int32


def test_embeddings_have_length_one_and_follow_the_text_alone():
  texts = ["grinning face", "grinning cat", "fire engine", "", "cat grinning"]
  found = captions.hashed_features(texts, 256)
  np.testing.assert_allclose(
    np.linalg.norm(found, axis=1), [1, 1, 1, 0, 1], rtol=1e-5
  )
  np.testing.assert_array_equal(
    captions.hashed_features(texts[:1], 256), found[:1]
  )
  cosines = found @ found.T
  assert cosines[0, 1] > 0.4 > 0.3 > abs(cosines[0, 2])
  np.testing.assert_allclose(cosines[1, 4], 1, rtol=1e-5)  # a bag of words


def test_parts_of_words_are_seen():
  found = captions.hashed_features(["smiling", "smile", "wrench"], 512)
  assert (found @ found.T)[0, 1] > 0.3 > abs((found @ found.T)[0, 2])


def test_the_frozen_encoder_is_the_one_that_was_published():
  found = captions.hashed_features(["red heart"], 4)
  np.testing.assert_allclose(found[0], PUBLISHED, rtol=1e-5)


PUBLISHED = [0.0, 0.0, 0.5**0.5, -(0.5**0.5)]
