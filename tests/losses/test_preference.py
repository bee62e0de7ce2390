"""Preference losses at their limits, and what their options change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

PAIR_LOSSES = ("dpo", "hinge_preference", "ipo", "kto_pair")


def _answers(count=5, seed=0):
  random = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(random.normal(size=count), jnp.float32) for _ in range(4)
  )


def test_dpo_of_a_student_equal_to_the_reference_is_log_two():
  chosen, rejected, *_ = _answers()
  values = losses.dpo(chosen, rejected, chosen, rejected)
  np.testing.assert_allclose(values, np.log(2), rtol=1e-6)


def test_half_of_the_pairs_swapped_leaves_no_preference():
  answers = _answers()
  swapped = (answers[1], answers[0], answers[3], answers[2])
  values = losses.dpo(*answers, label_smoothing=0.5)
  expected = losses.dpo(*swapped, label_smoothing=0.5)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_label_smoothing_mixes_the_pair_and_the_swapped_pair():
  answers = _answers()
  swapped = (answers[1], answers[0], answers[3], answers[2])
  values = losses.dpo(*answers, label_smoothing=0.2)
  expected = 0.8 * losses.dpo(*answers) + 0.2 * losses.dpo(*swapped)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_what_both_policies_gain_alike_changes_nothing(name):
  loss, (won, lost, ref_won, ref_lost) = getattr(losses, name), _answers()
  values = loss(won + 3, lost - 2, ref_won + 3, ref_lost - 2, beta=0.5)
  expected = loss(won, lost, ref_won, ref_lost, beta=0.5)
  np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_the_reward_is_beta_times_the_log_ratio():
  policy, reference, *_ = _answers()
  rewards = losses.implicit_reward(policy, reference, beta=0.3)
  np.testing.assert_allclose(rewards, 0.3 * (policy - reference), rtol=1e-6)


def test_kto_compares_each_answer_with_the_mean_of_the_other_kind():
  chosen, rejected, *references = _answers()
  answers = (chosen + 2, rejected + 2, *references)
  values = losses.kto_pair(*answers, beta=0.5)
  won, lost = answers[0] - answers[2], answers[1] - answers[3]
  of_chosen = 1 - jax.nn.sigmoid(0.5 * (won - lost.mean()))
  of_rejected = 1 - jax.nn.sigmoid(0.5 * (won.mean() - lost))
  assert won.mean() > 0
  assert lost.mean() > 0
  np.testing.assert_allclose(values[:, 0], of_chosen, rtol=1e-5)
  np.testing.assert_allclose(values[:, 1], of_rejected, rtol=1e-5)


def test_a_constant_baseline_keeps_the_value_and_changes_the_gradient():
  start, *others = _answers()

  def total(chosen, constant):
    values = losses.kto_pair(chosen, *others, constant_baseline=constant)
    return values.sum()

  value, gradient = jax.value_and_grad(total)(start + 5, constant=True)
  other, with_baseline = jax.value_and_grad(total)(start + 5, constant=False)
  np.testing.assert_allclose(value, other, rtol=1e-6)
  lost = (others[0] - others[2]).mean()
  won = 0.1 * (start + 5 - others[1] - jnp.maximum(0, lost))
  expected = -0.1 * jax.nn.sigmoid(won) * jax.nn.sigmoid(-won)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4)
  assert np.all(with_baseline < gradient)  # it also lifts K


def test_ranked_candidates_pay_nothing_for_their_order():
  scores = jnp.array([[-1.0, -2.0, -3.0]])
  values = losses.rrhf(scores, jnp.ones((1, 3)), jnp.array([[3.0, 2.0, 1.0]]))
  np.testing.assert_allclose(values, [1.0])  # the best one's -log pi


def test_every_misplaced_pair_of_candidates_pays_its_gap():
  scores, lengths = jnp.array([-1.0, -2.0, -4.0]), jnp.array([1.0, 2.0, 2.0])
  values = losses.rrhf(scores, lengths, jnp.array([1.0, 2.0, 3.0]))
  gaps = (-1 + 1) + (-1 + 2) + (-1 + 2)  # of -1, -1 and -2
  np.testing.assert_allclose(values, gaps + 4 / 2)


def test_candidates_of_equal_reward_are_not_ranked():
  scores = jnp.array([-1.0, -5.0])
  value = losses.rrhf(scores, jnp.ones(2), jnp.zeros(2))
  np.testing.assert_allclose(value, 1.0)


def test_without_length_penalty_sums_are_ranked():
  scores, lengths = jnp.array([-2.0, -9.0]), jnp.array([1.0, 9.0])
  rewards = jnp.array([0.0, 1.0])
  plain = losses.rrhf(scores, lengths, rewards, length_penalty=0.0)
  np.testing.assert_allclose(plain, 7 + 1)
  np.testing.assert_allclose(losses.rrhf(scores, lengths, rewards), 0 + 1)


def test_a_candidate_that_does_not_count_may_be_anything():
  def value(scores, rewards, where=None):
    return losses.rrhf(scores, jnp.ones_like(scores), rewards, where=where)

  scores, rewards = jnp.array([-3.0, -2.0]), jnp.array([1.0, 0.0])
  where = jnp.array([True, True, False])
  more = jnp.append(scores, jnp.nan), jnp.append(rewards, jnp.inf)
  assert value(*more, where) == value(scores, rewards)
  assert value(*more, where=jnp.zeros(3)) == 0


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_beta_of_zero_is_refused(name):
  with pytest.raises(ValueError, match=f"{name}: beta=0.0; expected a value"):
    getattr(losses, name)(*_answers(), beta=0.0)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_unequal_numbers_of_answers_are_refused(name):
  first, *rest = _answers()
  with pytest.raises(ValueError, match=rf"{name}: chosen \(4,\), rejected \(5"):
    getattr(losses, name)(first[:4], *rest)


def test_more_than_half_of_the_labels_cannot_be_swapped():
  with pytest.raises(
    ValueError, match="label_smoothing=0.6; expected 0 to 0.5"
  ):
    losses.dpo(*_answers(), label_smoothing=0.6)


def test_candidates_without_a_reward_are_refused():
  with pytest.raises(ValueError, match=r"rrhf: log_probs \(3,\).*one shape"):
    losses.rrhf(jnp.zeros(3), jnp.ones(3), jnp.zeros(2))
