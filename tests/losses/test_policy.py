"""Rewards, returns and clipped ratios are what their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_expected_reward_is_minus_the_reverse_kl():
  student, teacher = _random(1, 7), _random(1, 7, seed=1)
  log_q, log_p = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
  rewards = losses.teacher_reward(log_q, log_p)
  expected = -losses.reverse_kl(student, teacher)
  np.testing.assert_allclose(
    jnp.sum(jnp.exp(log_q) * rewards, -1), expected, rtol=1e-5
  )


def test_the_expected_estimate_is_the_reverse_kl():
  student, teacher = _random(1, 7), _random(1, 7, seed=1)
  log_q, log_p = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
  estimates = losses.reverse_kl_estimate(log_q, log_p)
  assert np.all(estimates >= 0)
  np.testing.assert_allclose(
    jnp.sum(jnp.exp(log_q) * estimates, -1),
    losses.reverse_kl(student, teacher),
    rtol=1e-5,
  )


def test_rewards_are_clipped_on_both_sides():
  rewards = losses.teacher_reward(
    jnp.array([-9.0, 0.0]), jnp.array([0.0, -9.0]), scale=0.5, clip=2.0
  )
  np.testing.assert_array_equal(rewards, [2, -2])


@pytest.mark.parametrize("normalize", ["tokens", "weights", None])
def test_without_discounting_forward_a_token_has_its_own_reward(normalize):
  rewards = _random(1, 4)
  togo = losses.reward_to_go(rewards, discount=0.0, normalize=normalize)
  lengths = [[4, 3, 2, 1]] if normalize == "tokens" else 1
  np.testing.assert_allclose(togo, rewards / lengths, rtol=1e-6)


def test_an_undiscounted_return_is_the_mean_of_what_follows():
  rewards = jnp.array([[1.0, 2.0, 6.0, 9.0]])
  where = jnp.array([[1, 1, 1, 0]])
  togo = losses.reward_to_go(rewards, where=where)
  np.testing.assert_allclose(togo, [[3, 4, 6, 0]], rtol=1e-6)


def test_weights_make_a_constant_reward_its_own_return():
  togo = losses.reward_to_go(
    jnp.full((2, 5), 3.0), discount=0.7, normalize="weights"
  )
  np.testing.assert_allclose(togo, 3.0, rtol=1e-6)


def test_nan_in_padding_reaches_no_reward_or_return():
  bad = jnp.array([[1.0, jnp.nan]])
  where = jnp.array([[1, 0]])
  for values in (
    losses.teacher_reward(bad, bad, where=where),
    losses.reward_to_go(bad, where=where),
    losses.mixed_importance(bad, bad, where=where),
    losses.whiten(bad, where=where),
  ):
    assert np.isfinite(values).all()
    assert values[0, 1] == 0


def test_whitened_values_have_mean_zero_and_deviation_one():
  where = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
  values = losses.whiten(_random(2, 4) * 5 + 2, where=where)
  real = np.asarray(values)[where == 1]
  np.testing.assert_allclose(real.mean(), 0, atol=1e-6)
  np.testing.assert_allclose(real.std(ddof=1), 1, rtol=1e-5)


def test_equal_values_are_whitened_to_zero():
  np.testing.assert_array_equal(losses.whiten(jnp.full((2, 3), 4.0)), 0)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (1.0, 0.25)])
def test_importance_is_one_if_the_student_sampled_and_a_ratio_if_not(
  share, expected
):
  log_q, log_p = jnp.log(jnp.array([0.1])), jnp.log(jnp.array([0.4]))
  weights = losses.mixed_importance(log_q, log_p, teacher_share=share)
  np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_an_unmoved_policy_has_the_policy_gradient():
  log_q, advantages = _random(2, 3), _random(2, 3, seed=1)

  def total(new):
    return losses.clipped_policy(new, log_q, advantages).sum()

  value, gradient = jax.value_and_grad(total)(jnp.asarray(log_q))
  np.testing.assert_allclose(value, -advantages.sum(), rtol=1e-5)
  np.testing.assert_allclose(gradient, -advantages, rtol=1e-5)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_beyond_the_clip_has_no_gradient(advantage):
  def loss(new):
    return losses.clipped_policy(
      new, jnp.zeros(1), jnp.full(1, advantage)
    ).sum()

  slope = jax.grad(loss)
  assert slope(jnp.full(1, 0.5 * advantage)) == 0
  assert slope(jnp.full(1, -0.5 * advantage)) != 0


def test_weights_are_part_of_the_ratio_that_is_clipped():
  values = losses.clipped_policy(
    jnp.zeros(1), jnp.zeros(1), jnp.ones(1), weights=jnp.full(1, 3.0)
  )
  np.testing.assert_allclose(values, -1.2, rtol=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda x: losses.teacher_reward(x, x[:1]),
      r"teacher_reward: student \(2, 3\), teacher \(1, 3\); expected one",
    ),
    (lambda x: losses.teacher_reward(x, x, scale=0.0), "scale=0.0; expected"),
    (lambda x: losses.teacher_reward(x, x, clip=-1.0), "clip=-1.0; expected"),
    (lambda x: losses.reward_to_go(x, discount=1.5), "discount=1.5; expected"),
    (
      lambda x: losses.reward_to_go(x, normalize="mean"),
      "normalize='mean'; expected one of tokens, weights, None",
    ),
    (
      lambda x: losses.mixed_importance(x, x, teacher_share=2.0),
      "teacher_share=2.0; expected 0 to 1",
    ),
    (lambda x: losses.clipped_policy(x, x, x, clip=0.0), "clip=0.0; expected"),
    (
      lambda x: losses.clipped_policy(x, x, x, weights=x[0]),
      r"weights \(3,\); expected one shape",
    ),
    (lambda x: losses.whiten(x, where=x[0]), r"where \(3,\); expected one"),
  ],
)
def test_errors_say_what_was_given_and_what_is_expected(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.ones((2, 3)))
