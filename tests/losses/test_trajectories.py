"""Learned data: which gradient they get, what it costs, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses

RANDOM = np.random.default_rng(0)
A, B = (jnp.asarray(RANDOM.normal(size=s)) for s in ((4, 3), (2,)))
START = {"w": A[0], "b": B[0]}
DATA = {"x": A, "y": jnp.asarray(RANDOM.normal(size=4))}
STEPS = jnp.array([[0, 1], [2, 3], [1, 2]])


def _loss(parameters, data, rows):
  guess = jnp.tanh(data["x"][rows] @ parameters["w"]) + parameters["b"]
  return jnp.mean((guess - data["y"][rows]) ** 2)


def _descend(data, rates=0.5, steps=STEPS, **options):
  return losses.gradient_descent(
    _loss, START, data, steps, learning_rates=rates, **options
  )


def _by_hand(data, rates, constant):
  """The same steps one after the other; `constant` is put on theta_k."""
  parameters, total = START, jax.tree.map(jnp.zeros_like, START)
  for rows in STEPS:
    gradients = jax.grad(_loss)(constant(parameters), data, rows)
    total = jax.tree.map(jnp.add, total, gradients)
    parameters = jax.tree.map(
      lambda p, r, g: p - r * g, parameters, rates, gradients
    )
  whole = jax.tree.map(lambda p, r, g: p - r * g, START, rates, total)
  return parameters, whole


def _square(tree):
  return sum(jnp.sum(jnp.sin(x) ** 2) for x in jax.tree.leaves(tree))


RATES = {"w": jnp.asarray(0.5), "b": jnp.asarray(0.1)}


def test_the_end_is_that_of_plain_gradient_descent():
  expected, _ = _by_hand(DATA, RATES, lambda p: p)
  for through in (False, True):
    found = _descend(DATA, RATES, through_parameters=through)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, expected
    )


@pytest.mark.parametrize("through", [False, True])
def test_data_and_rates_get_the_gradient_that_was_asked_for(through):
  constant = (lambda p: p) if through else jax.lax.stop_gradient
  ours = jax.grad(
    lambda d, r: _square(_descend(d, r, through_parameters=through)), (0, 1)
  )(DATA, RATES)
  expected = jax.grad(
    lambda d, r: _square(_by_hand(d, r, constant)[0 if through else 1]), (0, 1)
  )(DATA, RATES)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    ours,
    expected,
  )


def test_the_two_gradients_differ_from_the_second_step_on():
  def slope(steps, through):
    loss = lambda d: _square(
      _descend(d, steps=steps, through_parameters=through)
    )
    return jax.grad(loss)(DATA)["x"]

  first = [slope(STEPS[:1], through) for through in (False, True)]
  np.testing.assert_allclose(*first, rtol=1e-5, atol=1e-7)
  both = [slope(STEPS, through) for through in (False, True)]
  assert float(jnp.abs(both[0] - both[1]).max()) > 1e-3


def test_a_gradient_that_is_taken_again_leaves_the_end_where_it_was():
  same, other = (_descend(DATA, retaken=steps) for steps in (None, STEPS[::-1]))
  jax.tree.map(np.testing.assert_array_equal, same, other)

  def slope(retaken):
    return jax.grad(lambda d: _square(_descend(d, retaken=retaken)))(DATA)["x"]

  plain = slope(None)
  np.testing.assert_allclose(slope(STEPS), plain, rtol=1e-5, atol=1e-7)
  assert float(jnp.abs(slope(STEPS[::-1]) - plain).max()) > 1e-3


def test_a_step_more_costs_parameters_not_activations():
  wide = {"x": jnp.ones((4096, 3)), "y": jnp.ones(4096)}
  everything = jnp.arange(4096)

  def bytes_of(count):
    steps = jnp.tile(everything, (count, 1))
    program = jax.jit(jax.grad(lambda d: _square(_descend(d, steps=steps))))
    return program.lower(wide).compile().memory_analysis().temp_size_in_bytes

  # The indices of a step are 16 kB, one activation [4096] as much; without
  # being redone a step keeps several of these.
  assert (bytes_of(12) - bytes_of(2)) / 10 < 1.5 * everything.nbytes


def test_matching_is_relative_to_the_way_of_the_expert():
  start, target = {"w": jnp.zeros(3)}, {"w": jnp.full(3, 2.0)}
  found = losses.trajectory_matching({"w": jnp.ones(3)}, target, start=start)
  assert float(found) == pytest.approx(0.25)
  assert float(losses.trajectory_matching(start, target, start=start)) == 1


def test_merged_branches_weigh_by_how_far_their_expert_went():
  start = {"image": jnp.zeros(1), "text": jnp.zeros(1)}
  target = {"image": jnp.full(1, 10.0), "text": jnp.full(1, 1.0)}
  student = {"image": jnp.full(1, 10.0), "text": jnp.full(1, 0.0)}
  merged = losses.trajectory_matching(student, target, start=start)
  apart = [
    losses.trajectory_matching(student[k], target[k], start=start[k])
    for k in start
  ]
  assert float(merged) == pytest.approx(1 / 101)
  assert float(sum(apart)) == pytest.approx(1)


def test_an_expert_that_did_not_move_gives_zero():
  here = {"w": jnp.ones(2)}
  loss = lambda p: losses.trajectory_matching(p, here, start=here)
  value, gradient = jax.value_and_grad(loss)({"w": jnp.zeros(2)})
  assert float(value) == 0
  np.testing.assert_array_equal(gradient["w"], 0)


@pytest.mark.parametrize("other", [{"w": jnp.ones(2)}, {"v": jnp.ones(3)}])
def test_other_parameters_are_refused(other):
  here = {"w": jnp.ones(3)}
  with pytest.raises(ValueError, match="trajectory_matching: student has arr"):
    losses.trajectory_matching(here, other, start=here)


def test_all_modalities_have_the_same_partners_and_share():
  order, share = jnp.array([2, 0, 1]), 0.25
  rows = {"image": jnp.eye(3), "text": jnp.arange(3.0)}
  mixed = losses.blend(rows, order=order, share=share)
  np.testing.assert_allclose(mixed["image"][0], [0.25, 0, 0.75])
  np.testing.assert_allclose(mixed["text"], [1.5, 0.25, 1.25])


def test_a_share_of_one_leaves_the_examples():
  x = jnp.asarray(A)
  mixed = losses.blend(x, order=jnp.arange(4)[::-1], share=1.0)
  np.testing.assert_array_equal(mixed, x)


def test_a_blend_of_other_examples_is_refused():
  with pytest.raises(ValueError, match="blend: examples .* order"):
    losses.blend(A, order=jnp.arange(3), share=0.5)
