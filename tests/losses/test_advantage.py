"""The advantage is a difference of two teachers over the whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses


def _random(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_two_equal_teachers_give_no_advantage():
  teacher = _random(3, 5)
  advantage = losses.log_ratio_advantage(teacher, teacher)
  np.testing.assert_array_equal(advantage, 0)
  told = losses.TopK.of(teacher, 2)
  np.testing.assert_array_equal(losses.log_ratio_advantage(told, told), 0)


def test_every_token_gets_a_gradient_by_its_advantage_over_the_mean():
  student, advantage = _random(3, 5), _random(3, 5, seed=1)
  gradient = jax.jit(
    jax.grad(lambda s: losses.advantage_guided(s, advantage).sum())
  )(student)
  q = jax.nn.softmax(student)
  mean = jnp.sum(q * advantage, -1, keepdims=True)
  expected = -q * (advantage - mean)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_constant_advantage_has_no_gradient():
  gradient = jax.grad(
    lambda s: losses.advantage_guided(s, jnp.full((3, 5), 2.0)).sum()
  )(_random(3, 5))
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_all_ids_give_the_dense_form():
  student, aligned, reference = (_random(3, 5, seed=i) for i in range(3))
  told = losses.TopK.of(aligned, 5)
  sparse = losses.log_ratio_advantage(told, losses.TopK.of(reference, 5))
  values = losses.advantage_guided(student, sparse, ids=told.ids)
  dense = losses.log_ratio_advantage(aligned, reference)
  expected = losses.advantage_guided(student, dense)
  np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_the_other_tokens_have_the_advantage_of_the_tail():
  student, advantage = _random(2, 5), _random(2, 5, seed=1)
  advantage = advantage.at[:, 2:].set(0.7)
  ids = jnp.tile(jnp.arange(2)[None], (2, 1))
  values = losses.advantage_guided(
    student, advantage[:, :2], ids=ids, tail_advantage=0.7
  )
  expected = losses.advantage_guided(student, advantage)
  np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_a_token_the_reference_did_not_return_has_the_least_returned_one():
  aligned = losses.TopK(
    ids=jnp.array([[3, 1, 0]]), log_probs=jnp.array([[-0.5, -1.0, -2.0]])
  )
  reference = losses.TopK(
    ids=jnp.array([[1, 7]]), log_probs=jnp.array([[-0.25, -3.0]])
  )
  advantage = losses.log_ratio_advantage(aligned, reference)
  np.testing.assert_allclose(advantage, [[1.5, -0.75, 0.0]])


def test_an_entry_that_was_not_returned_has_no_advantage():
  aligned = losses.TopK(
    ids=jnp.array([[3, 1]]), log_probs=jnp.array([[-0.5, -jnp.inf]])
  )
  reference = losses.TopK(
    ids=jnp.array([[3, 1]]), log_probs=jnp.array([[-jnp.inf, -1.0]])
  )
  advantage = losses.log_ratio_advantage(aligned, reference)
  np.testing.assert_array_equal(advantage, 0)


def test_ids_and_advantages_of_masked_positions_are_not_read():
  values = losses.advantage_guided(
    _random(2, 5),
    jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]]),
    ids=jnp.array([[0, 1], [-1, 99]]),
    where=jnp.array([1, 0]),
  )
  assert np.isfinite(values).all()
  assert values[1] == 0


def test_dckd_is_the_weighted_mean_kl_on_both_answers():
  chosen, teacher_chosen = _random(2, 4, 5), _random(2, 4, 5, seed=1)
  rejected, teacher_rejected = (
    _random(2, 3, 5, seed=2),
    _random(2, 3, 5, seed=3),
  )
  where = jnp.array([[1, 1, 0], [1, 1, 1]])
  values = losses.dckd(
    chosen,
    rejected,
    teacher_chosen,
    teacher_rejected,
    rejected_weight=0.5,
    where_rejected=where,
  )
  won = losses.kl(chosen, teacher_chosen).mean(-1)
  lost = losses.kl(rejected, teacher_rejected, where=where)
  expected = won + 0.5 * lost.sum(-1) / where.sum(-1)
  np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda x: losses.log_ratio_advantage(x, losses.TopK.of(x, 2)),
      "reference TopK; expected logits of both or TopK of both",
    ),
    (
      lambda x: losses.log_ratio_advantage(
        losses.TopK.of(x, 2), losses.TopK.of(x[:1], 2)
      ),
      r"reference ids \(1, 2\); expected one shape but for the last axis",
    ),
    (
      lambda x: losses.advantage_guided(x, x[:, :2]),
      r"advantage \(3, 2\); expected \(3, 5\)",
    ),
    (
      lambda x: losses.dckd(
        x[None], x[None, :2, None], x[None], x[None, :2, None]
      ),
      r"chosen \(1,\), rejected \(1, 2\); expected one shape",
    ),
  ],
)
def test_errors_say_what_was_given_and_what_is_expected(call, message):
  with pytest.raises(ValueError, match=message):
    call(_random(3, 5))
