"""Transport plans are plans, and their losses see what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.losses.compiled import losses


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_plan_has_the_masses_it_was_given():
  source, target = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.6, 0.4])
  plan = losses.sinkhorn(
    _random(3, 2) ** 2, eps=0.5, iterations=200, source=source, target=target
  )
  np.testing.assert_allclose(plan.sum(1), source, atol=1e-6)
  np.testing.assert_allclose(plan.sum(0), target, atol=1e-6)


def test_columns_have_their_mass_after_one_iteration():
  plan = losses.sinkhorn(_random(4, 3), iterations=1)
  np.testing.assert_allclose(plan.sum(0), np.full(3, 1 / 3), rtol=1e-6)


def test_a_small_eps_gives_the_cheapest_permutation():
  cost = jnp.array([[0.0, 9.0, 9.0], [9.0, 9.0, 1.0], [9.0, 2.0, 9.0]])
  plan = losses.sinkhorn(cost, eps=1e-3, iterations=50)
  expected = jnp.eye(3)[jnp.array([0, 2, 1])] / 3
  np.testing.assert_allclose(plan, expected, atol=1e-4)


def test_a_large_eps_gives_independent_masses():
  source, target = jnp.array([0.3, 0.7]), jnp.array([0.1, 0.2, 0.7])
  plan = losses.sinkhorn(_random(2, 3), eps=1e6, source=source, target=target)
  np.testing.assert_allclose(plan, jnp.outer(source, target), rtol=1e-4)


def test_rows_and_columns_without_mass_are_left_out():
  cost = _random(4, 4) ** 2
  masses = jnp.array([1.0, 1.0, 0.0, 1.0])
  plan = losses.sinkhorn(cost, source=masses, target=masses)
  kept = np.array([0, 1, 3])
  expected = 3 * losses.sinkhorn(cost[np.ix_(kept, kept)])
  np.testing.assert_allclose(plan[np.ix_(kept, kept)], expected, rtol=1e-5)
  np.testing.assert_array_equal(plan[2], 0)
  np.testing.assert_array_equal(plan[:, 2], 0)


def test_no_mass_at_all_gives_an_empty_plan_and_no_gradient():
  def total(student):
    return losses.batch_transport(student, student + 1, where=jnp.zeros(3))

  value, gradient = jax.value_and_grad(total)(jnp.ones((3, 4)))
  np.testing.assert_array_equal(value, 0)
  np.testing.assert_array_equal(gradient, 0)


def test_an_infinite_cost_moves_nothing():
  cost = jnp.array([[0.0, jnp.inf], [jnp.inf, 0.0]])
  np.testing.assert_allclose(losses.sinkhorn(cost), jnp.eye(2) / 2, rtol=1e-6)


def test_the_order_of_the_teachers_examples_does_not_matter():
  student, teacher = _random(5, 4), _random(5, 4, seed=1)
  value = losses.batch_transport(student, teacher)
  permuted = losses.batch_transport(student, teacher[::-1])
  np.testing.assert_allclose(permuted, value, rtol=1e-5)


def test_one_example_costs_its_l1_distance():
  student, teacher = _random(1, 4), _random(1, 4, seed=1)
  gap = losses.TotalVariation()(student, teacher, temperature=2.0)
  value = losses.batch_transport(student, teacher)
  np.testing.assert_allclose(value, 2 * gap[0], rtol=1e-5)


def test_the_mean_divides_by_the_examples_that_count():
  student, teacher = _random(5, 4), _random(5, 4, seed=1)
  where = jnp.array([1, 1, 0, 1, 0])
  value = losses.batch_transport(student, teacher, where=where)
  mean = losses.batch_transport(student, teacher, where=where, mean=True)
  np.testing.assert_allclose(mean, value / 3, rtol=1e-6)


def test_a_far_class_costs_more_than_a_near_one():
  numbers = jnp.arange(3.0)
  cost = jnp.abs(numbers[:, None] - numbers[None])
  teacher, student = 50 * jnp.eye(3)[:1], 50 * jnp.eye(3)
  values = losses.class_transport(
    student, jnp.repeat(teacher, 3, 0), cost, temperature=1.0
  )
  np.testing.assert_allclose(values, [0, 1, 2], atol=1e-5)


def test_equal_costs_between_classes_give_total_variation():
  student, teacher = _random(4, 5), _random(4, 5, seed=1)
  values = losses.class_transport(
    student,
    teacher,
    1 - jnp.eye(5),
    temperature=1.0,
    eps=0.1,
    iterations=1000,
  )
  expected = losses.TotalVariation()(student, teacher)
  np.testing.assert_allclose(values, expected, atol=2e-3)


def test_a_balanced_assignment_fills_every_code():
  items = np.concatenate([0.01 * _random(8, 2), 5 + _random(8, 2)])
  codes = jnp.array([[0.0, 0.0], [5.0, 5.0], [5.0, 4.0], [0.1, 0.1]])
  cost = jnp.sum((items[:, None] - codes[None]) ** 2, axis=-1)
  counts = np.bincount(losses.balanced_assignment(cost, eps=0.01), minlength=4)
  assert counts.min() >= 2


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: losses.sinkhorn(jnp.zeros(3)),
      r"cost \(3,\); expected \[\.\.\., N",
    ),
    (lambda: losses.sinkhorn(jnp.eye(3), eps=0.0), "eps=0.0; expected"),
    (lambda: losses.sinkhorn(jnp.eye(3), iterations=0), "iterations=0; expect"),
    (
      lambda: losses.sinkhorn(jnp.eye(3), source=jnp.ones(2)),
      r"source \(2,\); expected \(3,\)",
    ),
    (
      lambda: losses.batch_transport(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4))),
      r"\(2, 3, 4\); expected \[B, C\]",
    ),
    (
      lambda: losses.class_transport(
        jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.eye(2)
      ),
      r"cost \(2, 2\); expected \(3, 3\)",
    ),
    (
      lambda: losses.balanced_assignment(jnp.zeros(3)),
      r"cost \(3,\); expected \[N, K\]",
    ),
  ],
)
def test_errors_say_what_was_given_and_what_is_expected(call, message):
  with pytest.raises(ValueError, match=message):
    call()
