"""The three stages of MST-Distill equal the official code.

Golden files: Gray-OREO/MST-Distill@093b2fe, float32. Tolerances: stage 1 rtol
2e-5, atol 2e-6; stage 3 rtol 5e-5, atol 2e-6; specialised teachers rtol 5e-5,
atol 5e-6, for two implementations of float32 attention.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.method import Step
from jaxkd.methods import MSTDistill
from jaxkd.methods.mst_distill import TRIO
from jaxkd.network import Network, Pure
from jaxkd.roles import Nets
from tests import golden_tools
from tests.nets import name_maps

FIRST = golden_tools.cases("mst_distill__stage1_objective")
THIRD = golden_tools.cases("mst_distill__stage3_objective")
GROUP = golden_tools.cases("mst_distill__specialised_group")["case0"]
FIRST_TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}
THIRD_TOLERANCE = {"rtol": 5e-5, "atol": 2e-6}
GROUP_TOLERANCE = {"rtol": 5e-5, "atol": 5e-6}
LAYERS = ("fc1", "fc2")
BOTH_STAGE_ONE = pytest.mark.parametrize("name", FIRST)


def _given(entry):
  """A network that returns a batch entry plus its parameter."""

  def init(rng, logits):
    del rng
    return {"params": {"shift": jnp.zeros_like(logits)}}

  def apply(variables, logits):
    return logits + variables["params"]["shift"]

  return Network(Pure(init, apply), inputs=(entry,))


def _method(**options):
  roles = {role: _given(f"{role}_logits") for role in TRIO}
  layers = {"teacher_layers": LAYERS, "aux_layers": LAYERS}
  return MSTDistill(**roles, **layers, **options)


def _first_batch(case):
  logits = {f"{role}_logits": case[f"in_{role}_logits"] for role in TRIO}
  mask = np.ones(len(case["in_labels"]), np.float32)
  return {**logits, "label": case["in_labels"], "mask": mask}


def _first_stage(name, objective=None):
  """Returns the mean loss of stage 1 and the gradients of the logits."""
  batch, method = _first_batch(FIRST[name]), _method()

  def mean(params):
    loss = (objective or method.collaborate)(
      Nets(method.roles, params, training=TRIO), batch
    )
    return loss.total / loss.weight

  zeros = {
    role: {"shift": jnp.zeros_like(batch[f"{role}_logits"])} for role in TRIO
  }
  value, gradients = jax.jit(jax.value_and_grad(mean))(zeros)
  return value, {role: gradients[role]["shift"] for role in TRIO}


@BOTH_STAGE_ONE
def test_stage_one_equals_the_reference_in_value_and_all_gradients(name):
  value, gradients = _first_stage(name)
  case = FIRST[name]
  np.testing.assert_allclose(value, case["out_loss_total"], **FIRST_TOLERANCE)
  for role, gradient in gradients.items():
    expected = case[f"grad_{role}_logits"]
    np.testing.assert_allclose(gradient, expected, **FIRST_TOLERANCE)


@BOTH_STAGE_ONE
@pytest.mark.parametrize("role", TRIO)
def test_stage_one_of_each_network_equals_the_reference(name, role):
  batch, method = _first_batch(FIRST[name]), _method()
  own = batch[f"{role}_logits"]
  value = method.task(own, batch) + sum(
    method.kd(own, batch[f"{other}_logits"]) for other in TRIO if other != role
  )
  expected = FIRST[name][f"out_loss_{role}"]
  np.testing.assert_allclose(value.mean(), expected, **FIRST_TOLERANCE)


@BOTH_STAGE_ONE
def test_stage_one_teaches_both_sides_of_every_pair(name):
  class Detached(MSTDistill):
    def kd(self, student, teacher):
      return super().kd(student, jax.lax.stop_gradient(teacher))

  method = _method()
  fields = {f: getattr(method, f) for f in (*TRIO, "teacher_layers")}
  detached = Detached(**fields, aux_layers=LAYERS)
  value, gradients = _first_stage(name)
  same, other = _first_stage(name, detached.collaborate)
  np.testing.assert_allclose(value, same, rtol=1e-6)
  for role in TRIO:
    assert np.abs(gradients[role] - other[role]).max() > 1e-2


def _third_method(case):
  """Returns the method of a case and its parameters."""
  weights = (float(weight) for weight in case["param_w_task_kl_lb"])
  method = _method(
    k=int(case["param_k"]),
    lb="cv" if case["param_mode_is_cv"] else "kl",
    **dict(zip(("w_task", "w_kl", "w_lb"), weights, strict=True)),
  )
  gate = golden_tools.convert(
    golden_tools.section(case, "w_"), name_maps.GATE_NET
  )
  student = {"shift": jnp.zeros_like(case["in_student_logits"])}
  return method, {"student": student, "gate": {"net": gate["params"]}}


def _third_stage(name):
  """Returns the loss of stage 3 and gradients of student and gate."""
  case = THIRD[name]
  method, params = _third_method(case)
  batch = {
    "student_logits": case["in_student_logits"],
    "specialists": np.moveaxis(case["in_teacher_logits"], 0, 1),
    "label": case["in_labels"],
    "mask": np.ones(len(case["in_labels"]), np.float32),
  }

  def mean(params):
    step = Step(index=jnp.int32(0), epoch=jnp.int32(0))
    loss = method.distil(Nets(method.roles, params), batch, step)
    return loss.total / loss.weight, loss

  (value, loss), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(
    params
  )
  terms = {name: total / w for name, (total, w) in loss.metrics.items()}
  return case, value, terms, gradients


@pytest.mark.parametrize("name", ["case0", "case1"])
def test_stage_three_equals_the_reference_in_every_term(name):
  case, value, terms, _ = _third_stage(name)
  np.testing.assert_allclose(value, case["out_loss_total"], **THIRD_TOLERANCE)
  for term, key in (("task", "task"), ("kd", "kl"), ("load_balance", "lb")):
    expected = case[f"out_loss_{key}"]
    np.testing.assert_allclose(terms[term], expected, **THIRD_TOLERANCE)
  counts = np.bincount(case["out_topk_indices"].ravel(), minlength=4)
  shares = [terms[f"route/{r}_{n}"] for r in ("teacher", "aux") for n in (1, 2)]
  np.testing.assert_allclose(shares, counts / counts.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ["case0", "case1"])
def test_stage_three_equals_the_reference_in_every_gradient(name):
  case, _, _, gradients = _third_stage(name)
  np.testing.assert_allclose(
    gradients["student"]["shift"],
    case["grad_student_logits"],
    **THIRD_TOLERANCE,
  )
  expected = golden_tools.convert(
    golden_tools.section(case, "gradw_"), name_maps.GATE_NET
  )
  chex.assert_trees_all_close(
    gradients["gate"]["net"], expected["params"], **THIRD_TOLERANCE
  )


def test_the_weights_of_a_hundred_epochs_are_those_of_the_reference():
  case = THIRD["case2"]
  w_kl, w_lb = jax.vmap(_method().weights)(jnp.arange(100))
  np.testing.assert_allclose(w_kl, case["out_w_kl_by_epoch"], rtol=1e-6)
  np.testing.assert_allclose(w_lb, case["out_w_lb_by_epoch"], rtol=1e-5)


def test_weights_scale_with_those_given():
  plain, scaled = _method(), _method(w_kl=3.0, w_lb=0.5)
  for epoch in (0, 1, 31):
    w_kl, w_lb = plain.weights(epoch)
    assert scaled.weights(epoch) == (3 * w_kl, 0.5 * w_lb)


def _group(**options):
  """Returns the specialised teachers' logits [B, 4, C] under given weights."""
  features = (12, 6, 5)
  fusion = Network(nets.FusionMLP(features=features), inputs=("m1", "m2"))
  method = MSTDistill(
    student=Network(nets.MLP(features=features), inputs=("m1",)),
    aux=Network(nets.MLP(features=features), inputs=("m2",)),
    teacher=fusion,
    teacher_layers=LAYERS,
    aux_layers=LAYERS,
    heads=int(GROUP["param_num_heads"]),
    **options,
  )
  params = {}
  for role in ("teacher", "aux"):
    weights = golden_tools.section(GROUP, f"{role}_w_")
    params[role] = golden_tools.convert(weights, name_maps.MLP)["params"]
    for n in range(2):
      weights = golden_tools.section(GROUP, f"{role}_mask{n}_w_")
      rules = name_maps.mask_net_1d(method.heads)
      mask = golden_tools.convert(weights, rules)["params"]
      params[f"{role}_{n + 1}"] = {"net": mask}
  batch = {"m1": GROUP["in_m1"], "m2": GROUP["in_m2"]}
  return method.specialist_logits(Nets(method.roles, params), batch)


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("accumulated", {}),
    ("independent", {"accumulate_masks": False}),
    ("plain", {"use_masks": False}),
  ],
)
def test_specialised_teachers_equal_the_reference(kind, options):
  logits = np.moveaxis(_group(**options), 1, 0)
  expected = [
    np.broadcast_to(GROUP[f"out_{kind}_{role}_logits"], (2, 4, 5))
    for role in ("teacher", "aux")
  ]
  np.testing.assert_allclose(
    logits, np.concatenate(expected), **GROUP_TOLERANCE
  )


def test_masks_accumulate_from_the_second_masked_layer_on():
  together, alone = _group(), _group(accumulate_masks=False)
  gap = np.abs(together - alone).max((0, 2))
  assert gap[0] == gap[2] == 0
  assert min(gap[1], gap[3]) > 1e-3
