"""Tokens are grouped by their text, and only sorted masses are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses


def _random(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def _groups(ours, theirs):
  """Groups of one text whose tokens end at these bytes."""
  ours, theirs = np.array([ours]), np.array([theirs])
  here = [np.ones_like(ends, bool) for ends in (ours, theirs)]
  return [
    group[0].tolist() for group in losses.byte_groups(ours, theirs, *here)
  ]


def test_the_order_of_the_tokens_does_not_matter():
  student, teacher = _random(3, 5), _random(3, 7, seed=1)
  values = losses.uld(student, teacher[:, ::-1])
  np.testing.assert_allclose(values, losses.uld(student, teacher), rtol=1e-6)


def test_a_smaller_vocabulary_is_filled_up_with_impossible_tokens():
  student, teacher = _random(3, 5), _random(3, 7, seed=1)
  filled = jnp.pad(student, [(0, 0), (0, 2)], constant_values=-jnp.inf)
  expected = losses.uld(filled, teacher)
  np.testing.assert_allclose(losses.uld(student, teacher), expected, rtol=1e-6)


def test_it_is_at_most_twice_the_total_variation():
  student, teacher = _random(9, 5), _random(9, 5, seed=1)
  bound = 2 * losses.TotalVariation()(student, teacher)
  assert np.all(losses.uld(student, teacher) <= bound + 1e-6)


def test_answers_meet_at_the_front():
  student, teacher = _random(1, 4, 3), _random(1, 5, 2)
  ours, theirs, where = losses.align_answers(
    student,
    teacher,
    jnp.array([[0, 1, 1, 0]]),
    jnp.array([[0, 0, 1, 1, 1]]),
  )
  assert ours.shape == (1, 4, 3)
  assert theirs.shape == (1, 4, 2)
  np.testing.assert_array_equal(where, [[True, True, False, False]])
  np.testing.assert_array_equal(ours[:, :2], student[:, 1:3])
  np.testing.assert_array_equal(theirs[:, :3], teacher[:, 2:])


@pytest.mark.parametrize(
  ("ours", "theirs", "expected"),
  [
    ([2, 4, 7], [2, 4, 7], ([0, 1, 2], [0, 1, 2])),
    ([2, 4, 7], [4, 7], ([0, 0, 1], [0, 1])),
    ([3, 7], [2, 5, 7], ([0, 0], [0, 0, 0])),
    ([2, 5], [2, 9], ([0, 1], [0, 1])),  # the rest, which ends nowhere alike
    ([2, 5], [2], ([0, -1], [0])),  # a rest without a partner
    ([2, 5, 5], [2, 5, 5], ([0, 1, 2], [0, 1, 2])),  # ends of sequences
    ([], [3], ([], [-1])),
  ],
)
def test_a_group_ends_where_both_texts_do(ours, theirs, expected):
  assert tuple(_groups(ours, theirs)) == expected


def test_tokens_outside_of_the_text_have_no_group():
  ours, theirs = losses.byte_groups(
    np.array([[0, 2, 4, 0]]),
    np.array([[4, 0]]),
    np.array([[0, 1, 1, 0]]),
    np.array([[1, 0]]),
  )
  np.testing.assert_array_equal(ours, [[-1, 0, 0, -1]])
  np.testing.assert_array_equal(theirs, [[0, -1]])


@pytest.mark.parametrize("keep", ["first", "last"])
def test_a_merged_row_has_the_probability_of_the_text_at_its_token(keep):
  p = jax.nn.softmax(_random(1, 4, 5))
  ids, groups = jnp.array([[1, 3, 0, 2]]), jnp.array([[0, 0, 1, -1]])
  rows, there = losses.merge_tokens(p, ids, groups, 3, keep=keep)
  np.testing.assert_array_equal(there, [[True, True, False]])
  joint = p[0, 0, 1] * p[0, 1, 3]
  place = {"first": 1, "last": 3}[keep]
  np.testing.assert_allclose(rows[0, 0, place], joint, rtol=1e-6)
  np.testing.assert_allclose(rows[0, 1], p[0, 2], rtol=1e-6)
  np.testing.assert_array_equal(rows[0, 2], 0)


def test_tokens_without_a_group_reach_neither_rows_nor_gradient():
  p = jax.nn.softmax(_random(1, 3, 5)).at[0, 2].set(jnp.nan)
  ids, groups = jnp.array([[1, 3, -100]]), jnp.array([[0, 0, -1]])

  def total(p):
    return losses.merge_tokens(p, ids, groups, 2)[0].sum()

  value, gradient = jax.value_and_grad(total)(p)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda x: losses.uld(x, x[:1]),
      r"student \(2, 3\), teacher \(1, 3\); expected one shape but for",
    ),
    (lambda x: losses.uld(x, losses.TopK.of(x, 2)), "needs access 'white'"),
    (lambda x: losses.uld(x, x, teacher_temperature=0.0), "temperature=0.0"),
    (
      lambda x: losses.align_answers(x[None], x[None], x[:1, :2], x),
      r"positions \(1, 2\), where \(2, 3\); expected one shape",
    ),
    (
      lambda x: losses.merge_tokens(
        x, jnp.zeros(2, int), jnp.zeros(2, int), 1, keep="middle"
      ),
      "keep='middle'; expected one of first, last",
    ),
  ],
)
def test_errors_say_what_was_given_and_what_is_expected(call, message):
  with pytest.raises(ValueError, match=message):
    call(_random(2, 3))
