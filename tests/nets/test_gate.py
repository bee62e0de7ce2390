"""Gates equal the official ones in value and gradient.

Golden file: Gray-OREO/MST-Distill@093b2fe, float32; tolerance rtol 2e-5, atol
1e-6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.nets import gate
from tests import golden_tools
from tests.nets import name_maps

CASES = golden_tools.cases("mst_distill__gatenet")
NETS = {
  "case0": (gate.GateNet(ways=4), name_maps.GATE_NET),
  "case1": (gate.DenseGateNet(ways=4), name_maps.DENSE_GATE_NET),
}
TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}


@functools.cache
def _run(name):
  """Returns gate logits and the gradient of `sum(logits * cotangent)`."""
  case, (net, rules) = CASES[name], NETS[name]
  variables = golden_tools.convert(golden_tools.section(case, "w_"), rules)

  def objective(student_logits):
    logits = net.apply(variables, student_logits)
    return jnp.sum(logits * case["in_cotangent"]), logits

  student_logits = np.moveaxis(case["in_student_logits"], 1, -1)
  gradient, logits = jax.jit(jax.grad(objective, has_aux=True))(student_logits)
  return logits, np.moveaxis(gradient, -1, 1)


@pytest.mark.parametrize("name", NETS)
def test_gate_logits_and_probabilities_equal_the_reference(name):
  case = CASES[name]
  logits, _ = _run(name)
  np.testing.assert_allclose(logits, case["out_gate_logits"], **TOLERANCE)
  probabilities = jax.nn.softmax(logits)
  np.testing.assert_allclose(probabilities, case["out_gate_probs"], **TOLERANCE)


@pytest.mark.parametrize("name", NETS)
def test_gradient_of_the_student_logits_equals_the_reference(name):
  _, gradient = _run(name)
  expected = CASES[name]["grad_student_logits"]
  np.testing.assert_allclose(gradient, expected, **TOLERANCE)


def test_the_gate_is_an_affine_map():
  net = gate.GateNet(ways=3)
  logits = jax.random.normal(jax.random.key(0), (2, 5))
  variables = net.init(jax.random.key(1), logits)
  middle = net.apply(variables, logits.mean(0, keepdims=True))
  ends = net.apply(variables, logits)
  np.testing.assert_allclose(middle[0], ends.mean(0), rtol=1e-5, atol=1e-6)
