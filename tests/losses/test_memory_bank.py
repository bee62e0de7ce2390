"""Banks of CRD: how they start, what a batch leaves in them, its negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses

KEY = jax.random.key(0)
N, D = 12, 4
INDEX = jnp.array([2, 5, 7])
NEGATIVES = jnp.array([[0, 1], [3, 3], [11, 4]])


def _unit(seed, rows):
  x = np.random.default_rng(seed).normal(size=(rows, D))
  return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


S, T = _unit(0, 3), _unit(1, 3)


def _bank():
  return losses.MemoryBank.create(KEY, N, D)


def test_banks_start_uniform_unnormalised_and_unlike_each_other():
  bank = losses.MemoryBank.create(KEY, 1000, 128)
  bound = 1 / np.sqrt(128 / 3)
  for rows in (bank.student, bank.teacher):
    assert bound > np.abs(rows).max() > 0.99 * bound
    np.testing.assert_allclose(rows.std(), bound / np.sqrt(3), rtol=0.01)
    assert np.linalg.norm(rows, axis=1).std() > 0.01
  assert (bank.student != bank.teacher).any()
  assert not bank.ready


def test_the_loss_is_the_probability_form():
  temperature, bank = 0.5, _bank()
  values, after = losses.crd(
    S, T, bank, INDEX, NEGATIVES, temperature=temperature
  )
  picked = jnp.concatenate([INDEX[:, None], NEGATIVES], 1)
  expected, c = 0, 2 / N
  for e, m in ((S, bank.teacher), (T, bank.student)):
    p = np.exp(np.einsum("bkd,bd->bk", m[picked], e) / temperature)
    p /= p.mean() * N
    expected -= np.log(p[:, 0] / (p[:, 0] + c))
    expected -= np.log(c / (p[:, 1:] + c)).sum(1)
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert after.ready


def test_normalisers_are_those_of_the_first_batch():
  _, first = losses.crd(S, T, _bank(), INDEX, NEGATIVES)
  _, second = losses.crd(T, S, first, INDEX, NEGATIVES)
  assert second.student_log_z == first.student_log_z
  assert second.teacher_log_z == first.teacher_log_z
  assert (second.student != first.student).any()


def test_rows_of_the_batch_move_and_no_others():
  bank = _bank()
  _, after = losses.crd(S, T, bank, INDEX, NEGATIVES, momentum=0.25)
  moved = 0.25 * bank.student[INDEX] + 0.75 * S
  moved /= jnp.linalg.norm(moved, axis=1, keepdims=True)
  np.testing.assert_allclose(after.student[INDEX], moved, rtol=1e-5, atol=1e-6)
  others = np.setdiff1d(np.arange(N), INDEX)
  np.testing.assert_array_equal(after.teacher[others], bank.teacher[others])


def test_masked_examples_leave_the_banks_and_normalisers_alone():
  where = jnp.array([1, 0, 1])
  real = np.flatnonzero(where)
  bad = S.at[1].set(jnp.nan)
  values, after = losses.crd(bad, T, _bank(), INDEX, NEGATIVES, where=where)
  expected, banks = losses.crd(
    S[real], T[real], _bank(), INDEX[real], NEGATIVES[real]
  )
  np.testing.assert_allclose(values[real], expected, rtol=1e-5)
  assert values[1] == 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, banks
  )


def test_a_first_batch_of_which_nothing_counts_fixes_nothing():
  values, after = losses.crd(
    S * jnp.nan, T, _bank(), INDEX, NEGATIVES, where=jnp.zeros(3)
  )
  np.testing.assert_array_equal(values, 0)
  assert not after.ready
  assert np.isfinite(after.student_log_z)


def test_banks_and_normalisers_get_no_gradient_and_both_embeddings_do():
  def loss(s, t, student, teacher):
    bank = _bank().replace(student=student, teacher=teacher)
    values, after = losses.crd(s, t, bank, INDEX, NEGATIVES)
    return values.sum() + after.student.sum() + after.student_log_z

  bank = _bank()
  gradients = jax.grad(loss, (0, 1, 2, 3))(S, T, bank.student, bank.teacher)
  assert all(np.abs(g).max() > 0 for g in gradients[:2])
  assert all(np.abs(g).max() == 0 for g in gradients[2:])


@pytest.mark.parametrize("replace", [True, False])
def test_negatives_are_of_other_classes_and_all_of_them_come(replace):
  all_labels = jnp.array([0, 2, 1, 0, 2, 2, 1, 0, 2, 0])
  labels = jnp.array([0, 1, 2])
  draw = jax.jit(
    lambda key: losses.crd_negatives(
      key, labels, all_labels, count=6, replace=replace
    )
  )
  drawn = np.concatenate(
    [draw(jax.random.fold_in(KEY, i)) for i in range(40)], axis=1
  )
  for row, label in zip(drawn, labels, strict=True):
    assert set(row) == set(np.flatnonzero(all_labels != label))


def test_negatives_repeat_only_where_there_are_too_few():
  all_labels = jnp.array([0] * 10 + [1] * 4)
  drawn = losses.crd_negatives(KEY, jnp.array([0, 1]), all_labels, count=8)
  assert len(set(np.asarray(drawn[1]).tolist())) == 8
  assert set(np.asarray(drawn[0]).tolist()) <= {10, 11, 12, 13}


def test_negatives_with_replacement_are_uniform():
  all_labels = jnp.array([1, 0, 1, 0, 2, 0])
  drawn = losses.crd_negatives(
    KEY, jnp.array([0]), all_labels, count=9000, replace=True
  )
  counts = np.bincount(np.asarray(drawn[0]), minlength=6)
  np.testing.assert_allclose(counts[[0, 2, 4]], 3000, atol=200)


def test_labels_that_are_no_integers_are_refused():
  with pytest.raises(ValueError, match="crd_negatives: labels are float32"):
    losses.crd_negatives(KEY, jnp.ones(2), jnp.ones(3, jnp.int32))


def test_banks_of_another_width_are_refused():
  with pytest.raises(ValueError, match=r"crd: banks \(4,\), embeddings \(3,\)"):
    losses.crd(S[:, :3], T[:, :3], _bank(), INDEX, NEGATIVES)
