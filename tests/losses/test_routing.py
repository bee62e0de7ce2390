"""Routing and load balance equal the official ones in value and gradient.

Golden files: Gray-OREO/MST-Distill@093b2fe, float32; tolerance rtol 2e-5, atol
1e-6 for routing and rtol 5e-5, atol 1e-6 for load balance; indices exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from jaxkd import losses
from tests import golden_tools

BALANCE = golden_tools.cases("mst_distill__load_balance")
ROUTING = golden_tools.cases("mst_distill__topk_routing")
BALANCE_TOLERANCE = {"rtol": 5e-5, "atol": 1e-6}
ROUTING_TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}
RUNS = pytest.mark.parametrize("run", [jax.jit, lambda f: f], ids=["jit", "no"])


def _balance(case):
  """Returns the loss as the official code scales it: KL with 1/n."""
  if case["param_mode_is_cv"]:
    return losses.load_balance_cv
  ways = case["in_gate_logits"].shape[1]
  return lambda gate: losses.load_balance_kl(gate) / ways


@RUNS
@pytest.mark.parametrize("name", BALANCE)
def test_load_balance_equals_the_reference(name, run):
  case = BALANCE[name]
  value, gradient = run(jax.value_and_grad(_balance(case)))(
    case["in_gate_logits"]
  )
  np.testing.assert_allclose(value, case["out_loss"], **BALANCE_TOLERANCE)
  expected = case.get("grad_gate_logits", np.zeros_like(gradient))
  np.testing.assert_allclose(gradient, expected, **BALANCE_TOLERANCE)


def test_load_balance_of_stacked_gates_under_vmap():
  gates = np.stack([BALANCE[f"case{n}"]["in_gate_logits"] for n in (0, 1)])
  for loss in (losses.load_balance_kl, losses.load_balance_cv):
    values = jax.vmap(loss)(gates)
    expected = [loss(gate) for gate in gates]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["load_balance_kl", "load_balance_cv"])
def test_load_balance_of_no_example_is_zero(name):
  loss = getattr(losses, name)
  gate = BALANCE["case0"]["in_gate_logits"]
  value, gradient = jax.value_and_grad(loss)(gate, where=np.zeros(len(gate)))
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_array_equal(gradient, np.zeros_like(gate))


def test_the_variation_of_a_uniform_gate_has_no_gradient():
  value, gradient = jax.value_and_grad(losses.load_balance_cv)(jnp.ones((3, 4)))
  assert value == 0
  np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


def _routing(name):
  """Returns student, teachers `[B, W, ..., C]` and gate of a case."""
  case = ROUTING[name]
  student = np.moveaxis(case["in_student_logits"], 1, -1)
  teachers = np.moveaxis(case["in_teacher_logits"], (0, 2), (1, -1))
  return case, student, teachers, case["in_gate_logits"]


def _routed(case, student, teachers, gate):
  chosen = losses.top_k_teachers(gate, int(case["param_k"]))
  temperature = float(case["param_temperature"])
  return losses.routed_kl(student, teachers, chosen, temperature=temperature)


@RUNS
@pytest.mark.parametrize("name", ROUTING)
def test_routed_loss_and_gradients_equal_the_reference(name, run):
  case, *arrays = _routing(name)

  def mean(student, teachers, gate):
    return _routed(case, student, stop_gradient(teachers), gate).mean()

  value, gradients = run(jax.value_and_grad(mean, (0, 1, 2)))(*arrays)
  np.testing.assert_allclose(value, case["out_loss"], **ROUTING_TOLERANCE)
  expected = np.moveaxis(case["grad_student_logits"], 1, -1)
  np.testing.assert_allclose(gradients[0], expected, **ROUTING_TOLERANCE)
  assert not gradients[1].any()
  assert not gradients[2].any()


@pytest.mark.parametrize("name", ROUTING)
def test_chosen_teachers_and_their_counts_are_exactly_the_reference(name):
  case, _, teachers, gate = _routing(name)
  chosen = losses.top_k_teachers(gate, int(case["param_k"]))
  np.testing.assert_array_equal(chosen, case["out_topk_indices"])
  counts = np.bincount(np.ravel(chosen), minlength=teachers.shape[1])
  np.testing.assert_array_equal(counts, case["out_routing_counts"])


@pytest.mark.slow  # compiles every case again
@pytest.mark.parametrize("name", ROUTING)
def test_routing_one_example_at_a_time_under_vmap(name):
  case, *arrays = _routing(name)

  def one(*example):
    return _routed(case, *(x[None] for x in example))[0]

  np.testing.assert_allclose(
    jax.vmap(one)(*arrays), _routed(case, *arrays), rtol=1e-5
  )


@pytest.mark.slow  # compiles every case again
@RUNS
@pytest.mark.parametrize("name", ROUTING)
def test_the_detached_mixture_equals_the_reference(name, run):
  case, student, teachers, gate = _routing(name)
  temperature = float(case["param_temperature"])

  def mean(student):
    return losses.mixture_kl(
      student, teachers, gate, temperature=temperature
    ).mean()

  value, gradient = run(jax.value_and_grad(mean))(student)
  np.testing.assert_allclose(
    value, case["out_weighted_loss"], **ROUTING_TOLERANCE
  )
  expected = np.moveaxis(case["grad_weighted_student_logits"], 1, -1)
  np.testing.assert_allclose(gradient, expected, **ROUTING_TOLERANCE)


def test_two_examples_learn_from_two_teachers():
  student, teachers = np.zeros((2, 3)), np.eye(2, 3)[None].repeat(2, 0)
  both = losses.routed_kl(student, teachers, jnp.array([[0], [1]]))
  for example, teacher in enumerate(range(2)):
    alone = losses.kl(student[example], teachers[example, teacher])
    np.testing.assert_allclose(both[example], alone, rtol=1e-6)


def test_weights_scale_the_terms_of_the_chosen_teachers():
  _, student, teachers, gate = _routing("case1")
  chosen = losses.top_k_teachers(gate, 2)
  weights = jnp.array([[2.0, 0.0]]).repeat(len(student), 0)
  weighted = losses.routed_kl(student, teachers, chosen, weights=weights)
  first = losses.routed_kl(student, teachers, chosen[:, :1])
  np.testing.assert_allclose(weighted, first, rtol=1e-6)


@pytest.mark.parametrize("k", [0, 5])
def test_more_choices_than_teachers_are_refused(k):
  with pytest.raises(ValueError, match=f"k={k}: expected 1 to 4"):
    losses.top_k_teachers(jnp.ones((2, 4)), k)


def test_more_chosen_than_there_are_teachers_are_refused():
  with pytest.raises(ValueError, match="k=3 teachers chosen, .* only 2"):
    losses.routed_kl(
      jnp.ones((1, 5)), jnp.ones((1, 2, 5)), jnp.zeros((1, 3), jnp.int32)
    )


@pytest.mark.parametrize("loss", [losses.routed_kl, losses.mixture_kl])
def test_teachers_of_another_shape_are_refused(loss):
  with pytest.raises(ValueError, match=r"\(2, 4, 3\) must have the shape"):
    loss(jnp.ones((2, 5)), jnp.ones((2, 4, 3)), jnp.zeros((2, 1), jnp.int32))
