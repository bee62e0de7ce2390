"""KL equals the official distillation loss in value and both gradients.

Golden file: Gray-OREO/MST-Distill@093b2fe, float32; tolerance rtol 2e-5, atol
1e-6, and rtol 1e-4 for logits of several hundred.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from jaxkd import losses
from tests import golden_tools

CASES = golden_tools.cases("mst_distill__kd_loss")
LARGE = "case3"
NAMES = pytest.mark.parametrize("name", CASES)
RUNS = pytest.mark.parametrize("run", [jax.jit, lambda f: f], ids=["jit", "no"])


def _last(array):
  return np.moveaxis(array, 1, -1)


def _case(name):
  """Returns student, teacher, temperature, the arrays and the tolerance."""
  case = CASES[name]
  logits = [_last(case[f"in_{who}_logits"]) for who in ("student", "teacher")]
  tolerance = {"rtol": 1e-4 if name == LARGE else 2e-5, "atol": 1e-6}
  return *logits, float(case["param_temperature"]), case, tolerance


@RUNS
@NAMES
def test_value_and_both_gradients_equal_the_reference(name, run):
  student, teacher, temperature, case, tolerance = _case(name)

  def mean(student, teacher):
    return losses.kl(student, teacher, temperature=temperature).mean()

  value, gradients = run(jax.value_and_grad(mean, (0, 1)))(student, teacher)
  np.testing.assert_allclose(value, case["out_loss"], **tolerance)
  for gradient, key in zip(
    gradients,
    ("grad_student_logits", "grad_teacher_logits_nondetached"),
    strict=True,
  ):
    np.testing.assert_allclose(gradient, _last(case[key]), **tolerance)


@RUNS
@NAMES
def test_a_caller_that_stops_the_teacher_gets_the_detached_form(name, run):
  student, teacher, temperature, case, tolerance = _case(name)

  def mean(student, teacher):
    teacher = stop_gradient(teacher)
    return losses.kl(student, teacher, temperature=temperature).mean()

  to_student, to_teacher = run(jax.grad(mean, (0, 1)))(student, teacher)
  expected = _last(case["grad_student_logits_detached"])
  np.testing.assert_allclose(to_student, expected, **tolerance)
  np.testing.assert_array_equal(to_teacher, np.zeros_like(teacher))


@NAMES
def test_examples_under_vmap_give_the_values_of_the_batch(name):
  student, teacher, temperature, case, tolerance = _case(name)

  def value(student, teacher):
    return losses.kl(student, teacher, temperature=temperature)

  values = jax.vmap(value)(student, teacher)
  assert values.shape == student.shape[:-1]
  np.testing.assert_allclose(values, value(student, teacher), rtol=1e-6)
  np.testing.assert_allclose(values.mean(), case["out_loss"], **tolerance)


def test_the_class_axis_can_be_any():
  student, teacher, temperature, case, _ = _case("case2")
  first = losses.kl(
    case["in_student_logits"],
    case["in_teacher_logits"],
    temperature=temperature,
    axis=1,
  )
  last = losses.kl(student, teacher, temperature=temperature)
  np.testing.assert_allclose(first, last, rtol=1e-5)


def test_at_high_temperature_it_is_the_squared_error_of_centred_logits():
  student, teacher, _, _, _ = _case("case0")
  student, teacher = 0.1 * student, 0.1 * teacher  # float32 allows T = 10
  values = losses.kl(student, teacher, temperature=10.0)
  gap = student - teacher
  gap -= gap.mean(-1, keepdims=True)
  expected = (gap**2).sum(-1) / (2 * gap.shape[-1])
  np.testing.assert_allclose(values, expected, rtol=3e-2)


def test_a_class_that_the_teacher_excludes_adds_nothing():
  student = jnp.array([[1.0, 2.0, 3.0]])
  teacher = jnp.array([[0.5, -0.5, -jnp.inf]])
  p = jax.nn.softmax(teacher[:, :2])
  log_q = jax.nn.log_softmax(student)[:, :2]
  expected = jnp.sum(p * (jnp.log(p) - log_q), -1)
  np.testing.assert_allclose(losses.kl(student, teacher), expected, rtol=1e-6)


def test_logits_of_two_shapes_are_refused():
  with pytest.raises(ValueError, match=r"\(2, 3\) and teacher logits \(2, 4\)"):
    losses.kl(jnp.ones((2, 3)), jnp.ones((2, 4)))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
  with pytest.raises(ValueError, match=f"temperature={temperature}: expected"):
    losses.kl(jnp.ones((2, 3)), jnp.ones((2, 3)), temperature=temperature)
