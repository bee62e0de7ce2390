"""Contrastive losses and partial rankings: identities, limits, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses


def _normal(seed, *shape):
  random = np.random.default_rng(seed)
  return jnp.asarray(random.normal(size=shape), jnp.float32)


S, T = _normal(0, 5, 4), _normal(1, 5, 4)


def test_info_nce_is_the_cross_entropy_of_the_own_column():
  unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
  scores = unit(S) @ unit(T).T / 0.2
  own = jnp.arange(5)
  there = losses.cross_entropy(scores, own).mean()
  back = losses.cross_entropy(scores.T, own).mean()
  one_way = losses.info_nce(S, T, temperature=0.2)
  both = losses.info_nce(S, T, temperature=0.2, symmetric=True)
  np.testing.assert_allclose(one_way, there, rtol=1e-5)
  np.testing.assert_allclose(both, (there + back) / 2, rtol=1e-5)


def test_one_group_leaves_no_negatives():
  groups = jnp.zeros(5, jnp.int32)
  np.testing.assert_allclose(losses.info_nce(S, T, groups=groups), 0, atol=1e-6)


def test_groups_of_one_change_nothing():
  groups = jnp.arange(5)
  np.testing.assert_allclose(
    losses.info_nce(S, T, groups=groups), losses.info_nce(S, T), rtol=1e-6
  )


def test_equal_embeddings_cost_the_logarithm_of_the_candidates():
  same = jnp.ones((5, 4))
  np.testing.assert_allclose(losses.info_nce(same, same), np.log(5), rtol=1e-5)
  np.testing.assert_allclose(losses.nt_xent(same, same), np.log(9), rtol=1e-5)


def test_a_temperature_may_be_learned():
  f = lambda t: losses.info_nce(S, T, temperature=t)
  slope = (f(0.51) - f(0.49)) / 0.02
  np.testing.assert_allclose(jax.grad(f)(0.5), slope, rtol=1e-2)


def test_views_may_change_places():
  np.testing.assert_allclose(
    losses.nt_xent(S, T), losses.nt_xent(T, S), rtol=1e-6
  )


def test_without_valid_candidates_there_is_no_loss_and_no_gradient():
  f = lambda s: losses.partial_ranking(s, T, threshold=99.0).sum()
  value, gradient = jax.value_and_grad(f)(S)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("valid", [1, 2, 4])
def test_equal_scores_cost_the_logarithms_of_what_is_left(valid):
  teacher = jnp.arange(4.0)[None]
  value = losses.partial_ranking(
    jnp.zeros((1, 4)), teacher, threshold=3.5 - valid
  )
  expected = sum(np.log(4 - j) for j in range(valid))
  np.testing.assert_allclose(value[0], expected, rtol=1e-6)
  mean = losses.partial_ranking(
    jnp.zeros((1, 4)), teacher, threshold=3.5 - valid, reduction="mean"
  )
  np.testing.assert_allclose(mean[0], expected / valid, rtol=1e-6)


def test_one_valid_candidate_is_a_cross_entropy():
  best = T.argmax(1)
  top = jax.nn.one_hot(best, 4)
  value = losses.partial_ranking(S, top, threshold=0.5, temperature=0.5)
  expected = losses.cross_entropy(S / 0.5, best)
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_s_scores_matter_by_their_order_alone():
  run = lambda t: losses.partial_ranking(S, t, threshold=0.0)
  np.testing.assert_allclose(run(jnp.exp(3 * T)), run(jnp.exp(T)), rtol=1e-6)


def test_hard_negatives_leave_out_what_is_right():
  scores = jnp.array([[0.9, 0.1, 0.8, 0.5]])
  positive = jnp.array([[True, False, False, False]])
  found = losses.hard_negatives(scores, positive, 2)
  np.testing.assert_array_equal(found, [[2, 3]])


def test_clear_targets_make_soft_info_nce_that_of_clip():
  unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
  scores = unit(S) @ unit(T).T / 0.2
  np.testing.assert_allclose(
    losses.soft_info_nce(scores, jnp.eye(5)),
    losses.info_nce(S, T, temperature=0.2, symmetric=True),
    rtol=1e-5,
  )


def test_similarities_start_as_the_identity():
  value = losses.low_rank_similarity(
    jnp.ones(5), _normal(2, 5, 2), jnp.zeros((5, 2)), scale=3.0
  )
  np.testing.assert_array_equal(value, np.eye(5))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: losses.info_nce(S, T, temperature=0.0),
      "info_nce: temperature=0.0; expected a value above 0",
    ),
    (
      lambda: losses.info_nce(S, T, groups=jnp.ones(5)),
      "info_nce: labels are float32; expected integers",
    ),
    (
      lambda: losses.partial_ranking(S, T, reduction="max"),
      "partial_ranking: reduction='max'; expected one of sum, mean",
    ),
    (
      lambda: losses.hard_negatives(S, S > 0, 9),
      "hard_negatives: count=9; expected 1 to 4",
    ),
    (
      lambda: losses.similarity_mse(S, T[:3]),
      r"similarity_mse: scores \(5, 4\), similarities \(3, 4\)",
    ),
  ],
)
def test_what_does_not_fit_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
