"""Numbers about tokens equal their formulas, and leave masked ones out."""

import math

import numpy as np
import pytest

from jaxkd import evaluation
from jaxkd.errors import ConfigError, RefusedInput

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 4, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, (3, 4))
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], np.float32)


def counted():
  """Student's and teacher's probabilities and the label, token by token."""
  for example, place in np.argwhere(MASK):
    at = (int(example), int(place))
    q, p = (
      [math.exp(z) / math.fsum(map(math.exp, row[at])) for z in row[at]]
      for row in (STUDENT.astype(np.float64), TEACHER.astype(np.float64))
    )
    yield q, p, int(LABELS[at])


def mean(values):
  values = list(values)
  assert len(values) == 7
  return pytest.approx(math.fsum(values) / 7, rel=1e-9)


def test_cross_entropy_and_perplexity_equal_the_formula():
  expected = [-math.log(q[label]) for q, _, label in counted()]
  task = (STUDENT, LABELS, MASK)
  assert evaluation.token_cross_entropy(*task) == mean(expected)
  assert evaluation.perplexity(*task) == pytest.approx(
    math.prod(math.exp(value) for value in expected) ** (1 / 7), rel=1e-9
  )


def test_a_uniform_distribution_has_the_vocabulary_as_its_perplexity():
  assert evaluation.perplexity(np.zeros((2, 3, 7)), np.zeros((2, 3), int)) == (
    pytest.approx(7)
  )


def test_a_token_that_cannot_be_has_infinite_perplexity():
  assert evaluation.perplexity([[0.0, -np.inf]], [1]) == math.inf
  assert evaluation.perplexity([[1e4, -1e4]], [1]) == math.inf


def test_accuracy_is_the_share_of_counted_tokens():
  expected = [q.index(max(q)) == label for q, _, label in counted()]
  assert evaluation.token_accuracy(STUDENT, LABELS, MASK) == mean(expected)
  best = STUDENT.argmax(-1)
  assert evaluation.token_accuracy(STUDENT, best, MASK) == 1.0


def test_both_directions_of_kl_equal_the_formula():
  def kl(p, q):
    return math.fsum(
      a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)
    )

  pair = (STUDENT, TEACHER, MASK)
  forward = mean(kl(p, q) for q, p, _ in counted())
  reverse = mean(kl(q, p) for q, p, _ in counted())
  assert evaluation.mean_kl(*pair) == forward
  assert evaluation.mean_reverse_kl(*pair) == reverse
  assert evaluation.mean_kl(*pair) != reverse


def test_agreement_is_that_of_counted_tokens():
  expected = [q.index(max(q)) == p.index(max(p)) for q, p, _ in counted()]
  assert evaluation.agreement(STUDENT, TEACHER, MASK) == mean(expected)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_head_mass_is_the_students_on_the_teachers_best(k):
  expected = []
  for q, p, _ in counted():
    best = sorted(range(10), key=lambda token: -p[token])[:k]
    expected.append(math.fsum(q[token] for token in best))
  found = evaluation.head_mass(STUDENT, TEACHER, MASK, k=k)
  assert found == mean(expected)


@pytest.mark.parametrize(("share", "count"), [(0.2, 2), (0.3, 3), (0.29, 2)])
def test_tail_mass_is_the_students_on_the_teachers_worst(share, count):
  expected = []
  for q, p, _ in counted():
    worst = sorted(range(10), key=lambda token: p[token])[:count]
    expected.append(math.fsum(q[token] for token in worst))
  found = evaluation.tail_mass(STUDENT, TEACHER, MASK, share=share)
  assert found == mean(expected)


def test_head_and_tail_of_everything_hold_everything():
  assert evaluation.head_mass(STUDENT, TEACHER, k=10) == pytest.approx(1)
  assert evaluation.tail_mass(STUDENT, TEACHER, share=1.0) == pytest.approx(1)
  assert evaluation.tail_mass(STUDENT, TEACHER, share=0.0) == 0.0


def test_tokens_of_equal_probability_are_ranked_in_their_order():
  student = np.log([[0.5, 0.3, 0.2]])
  assert evaluation.head_mass(student, [[0.0, 0.0, 0.0]], k=1) == (
    pytest.approx(0.5)
  )
  assert evaluation.tail_mass(student, [[0.0, 0.0, 1.0]], share=0.5) == (
    pytest.approx(0.5)
  )


def test_masked_tokens_may_hold_anything():
  student, teacher, labels = STUDENT.copy(), TEACHER.copy(), LABELS.copy()
  student[MASK == 0], teacher[MASK == 0] = np.nan, np.inf
  labels[MASK == 0] = -100
  rows = {"label": LABELS, "token_mask": MASK}
  poisoned = {"label": labels, "token_mask": MASK}
  kept = {"student": STUDENT, "teacher": TEACHER}
  bad = {"student": student, "teacher": teacher}
  measure = evaluation.Sequences()
  assert measure(bad, poisoned, None) == measure(kept, rows, None)


def test_no_token_has_no_mean():
  nothing = np.zeros((3, 4))
  for value in (
    evaluation.perplexity(STUDENT, LABELS, nothing),
    evaluation.token_accuracy(STUDENT, LABELS, nothing),
    evaluation.mean_reverse_kl(STUDENT, TEACHER, nothing),
    evaluation.head_mass(STUDENT, TEACHER, nothing),
    evaluation.tail_mass(STUDENT, TEACHER, nothing),
  ):
    assert math.isnan(value)


def test_an_evaluation_compares_the_first_with_the_second():
  assert isinstance(evaluation.Sequences(), evaluation.Evaluation)
  rows = {"label": LABELS, "token_mask": MASK}
  kept = {"student": STUDENT, "teacher": TEACHER}
  pair = (STUDENT, TEACHER, MASK)
  found = evaluation.Sequences(head=2, tail=0.4)(kept, rows, None)
  teacher = {
    "accuracy": evaluation.token_accuracy(TEACHER, LABELS, MASK),
    "cross_entropy": evaluation.token_cross_entropy(TEACHER, LABELS, MASK),
    "perplexity": evaluation.perplexity(TEACHER, LABELS, MASK),
    "head_mass": evaluation.head_mass(TEACHER, TEACHER, MASK, k=2),
    "tail_mass": evaluation.tail_mass(TEACHER, TEACHER, MASK, share=0.4),
  }
  assert found["teacher"] == teacher
  student = {
    "agreement": evaluation.agreement(*pair),
    "mean_kl": evaluation.mean_kl(*pair),
    "mean_reverse_kl": evaluation.mean_reverse_kl(*pair),
    "head_mass": evaluation.head_mass(*pair, k=2),
    "tail_mass": evaluation.tail_mass(*pair, share=0.4),
  }
  assert found["student"].items() >= student.items()
  assert found["student"].keys() == teacher.keys() | student.keys()
  alone = evaluation.Sequences()({"student": STUDENT}, rows, None)
  assert set(alone["student"]) == {"accuracy", "cross_entropy", "perplexity"}


def test_an_evaluation_refuses_another_vocabulary():
  class Outputs:
    logits = STUDENT

  class Task:
    name, num_classes = "text", 11

  with pytest.raises(ConfigError, match="student gives 10 logits, but text"):
    evaluation.Sequences().check({"student": Outputs}, Task)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: evaluation.perplexity(STUDENT, LABELS[:2]), "labels \\(2, 4\\)"),
    (lambda: evaluation.token_accuracy(STUDENT, LABELS + 9), "is not a class"),
    (lambda: evaluation.perplexity(STUDENT, LABELS, MASK[0]), "mask has shape"),
    (lambda: evaluation.head_mass(STUDENT, TEACHER[:2]), "expected equal"),
    (lambda: evaluation.head_mass(STUDENT, TEACHER, k=11), "k is 11, expected"),
    (lambda: evaluation.head_mass(STUDENT, TEACHER, k=0), "k is 0, expected 1"),
    (lambda: evaluation.tail_mass(STUDENT, TEACHER, share=2), "share is 2"),
  ],
)
def test_what_does_not_belong_together_is_refused(call, message):
  with pytest.raises(RefusedInput, match=message):
    call()
