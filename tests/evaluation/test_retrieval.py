"""Retrieval: the released code's recalls, ties, several of each."""

import numpy as np
import pytest

from jaxkd import evaluation
from jaxkd.errors import ConfigError, RefusedInput
from jaxkd.network import Outputs
from tests import golden_tools

GOLDEN = golden_tools.load("repblend__retrieval_metrics")
# Two images with two captions each; text 1 is taken for image 1.
SCORES = np.array([[0.9, 0.1, 0.2, 0.3], [0.0, 0.8, 0.7, 0.1]])
IDS = np.arange(2), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
  ("theirs", "ours"),
  [
    *((f"txt_r{k}", f"image_to_text_{k}") for k in (1, 5, 10)),
    *((f"img_r{k}", f"text_to_image_{k}") for k in (1, 5, 10)),
    ("txt_r_mean", "image_to_text_mean"),
    ("img_r_mean", "text_to_image_mean"),
    ("r_mean", "mean"),
  ],
)
def test_recalls_equal_those_of_the_released_code(theirs, ours):
  scores = GOLDEN["in_scores_image_by_text"]
  images = np.arange(len(scores))
  texts = np.repeat(images, int(GOLDEN["param_captions_per_image"]))
  found = evaluation.retrieval(scores, images, texts)
  assert 100 * found[ours] == pytest.approx(
    float(GOLDEN[f"out_{theirs}"]), abs=1e-4
  )


def test_one_of_several_captions_is_enough():
  found = evaluation.retrieval(SCORES, *IDS, at=(1, 2, 3))
  assert [found[f"image_to_text_{k}"] for k in (1, 2, 3)] == [0.5, 1, 1]
  # Text 1 is at the wrong image, text 3 too.
  assert [found[f"text_to_image_{k}"] for k in (1, 2)] == [0.5, 1]


def test_one_of_several_images_is_enough():
  scores = np.array([[0.1], [0.5], [0.9]])
  found = evaluation.retrieval(scores[:2], [7, 7], [7], at=(1,))
  assert found["text_to_image_1"] == 1
  with pytest.raises(RefusedInput, match="query 2 has no relevant item"):
    evaluation.retrieval(scores, [7, 7, 8], [7])


def test_scores_that_tell_nothing_apart_find_nothing():
  found = evaluation.retrieval(np.zeros((3, 6)), range(3), [0, 0, 1, 1, 2, 2])
  assert found["image_to_text_1"] == found["text_to_image_1"] == 0
  assert found["text_to_image_5"] == 1  # of three images


def test_ties_among_the_relevant_do_not_count_against_them():
  scores, relevant = [[1.0, 1.0, 0.0]], [[True, True, False]]
  assert evaluation.recall_at(scores, relevant, 1).tolist() == [1]


def test_a_tie_with_something_irrelevant_is_lost():
  scores, relevant = [[1.0, 1.0, 0.0]], [[True, False, False]]
  assert evaluation.recall_at(scores, relevant, 1).tolist() == [0]
  assert evaluation.recall_at(scores, relevant, 2).tolist() == [1]


def test_nan_is_the_lowest_score():
  relevant = [[True, False, False]] * 2
  scores = [[np.nan, 0.0, -1.0], [0.0, np.nan, -1.0]]
  assert evaluation.recall_at(scores, relevant, 1).tolist() == [0, 1]


def test_recall_is_the_same_in_any_order_of_images_and_texts():
  random = np.random.default_rng(0)
  scores = random.normal(size=(20, 60))
  images, texts = np.arange(20), np.repeat(np.arange(20), 3)
  i, t = random.permutation(20), random.permutation(60)
  shuffled = evaluation.retrieval(scores[i][:, t], images[i], texts[t])
  assert shuffled == evaluation.retrieval(scores, images, texts)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: evaluation.retrieval(SCORES.T, *IDS), "scores have shape .4, 2"),
    (lambda: evaluation.retrieval(SCORES, *IDS, at=()), "recall at .., exp"),
    (lambda: evaluation.retrieval(SCORES, *IDS, at=(0, 1)), "at 1 or more"),
    (lambda: evaluation.recall_at(SCORES, SCORES > 0, 0), "recall at 0"),
    (lambda: evaluation.recall_at(SCORES, [[1]], 1), "relevance .1, 1"),
    (
      lambda: evaluation.recall_at(np.zeros((0, 3)), np.zeros((0, 3)), 1),
      "no query",
    ),
  ],
)
def test_what_does_not_fit_is_refused(call, message):
  with pytest.raises(RefusedInput, match=message):
    call()


def test_examples_that_share_captions_are_found_by_any_of_them():
  """Four drawings of two things: captions are taken once for each thing."""
  places = np.eye(3)
  kept = {
    "student": {
      "image": places[[0, 0, 1, 1]],
      "text": places[[[0, 2], [0, 2], [1, 1], [1, 1]]],
    },
    "lost": {
      "image": places[[1, 1, 0, 0]],
      "text": places[[[0, 0], [0, 0], [1, 1], [1, 1]]],
    },
  }
  rows = {"item": np.array([7, 7, 9, 9])}
  found = evaluation.Retrieval(ids="item", at=(1,))(kept, rows, None)
  assert found["student"]["image_to_text_1"] == 1.0
  assert found["student"]["text_to_image_1"] == 3 / 4  # one caption is nowhere
  assert found["lost"]["mean"] == 0.0


def test_embeddings_that_do_not_fit_are_refused():
  outputs = {"student": Outputs({"image": np.ones((2, 3)), "text": np.ones(2)})}
  with pytest.raises(ConfigError, match=r"student gives images \(2, 3\)"):
    evaluation.Retrieval().check(outputs, None)
