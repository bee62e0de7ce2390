"""Hybrids of a meta network and others' modules equal the official ones.

Golden file: kamanphoebe/m2mKD@067fa1f, float32; tolerance 1e-5 relative for
logits and losses, 1e-4 for gradients.
"""

import functools

import jax
import numpy as np
import pytest

from jaxkd import losses, nets
from jaxkd.network import Network
from tests import golden_tools
from tests.nets import filling, modular_maps

GOLDEN = golden_tools.load("m2mkd__pair_loss")
PAIRS = golden_tools.section(GOLDEN, "pairs_")
HEADS = int(PAIRS["param_num_heads"])
DEPTHS = tuple(int(depth) for depth in PAIRS["param_teacher_depths"])
IMAGE = np.moveaxis(PAIRS["in_images"], 1, -1)
VALUES = {"rtol": 1e-5, "atol": 1e-6}
EACH = pytest.mark.parametrize("place", [0, 1, 2])
VIT = functools.partial(
  nets.ModularViT, patch=4, heads=HEADS, hidden_factor=2, num_classes=4
)
META = VIT(divided_depths=(1, 1, 1), width=8)
TEACHER = VIT(divided_depths=DEPTHS, width=8)
STUDENT = VIT(divided_depths=(2, 2, 2), width=6, stitch_width=8)


def _variables(arrays, prefix, rules):
  names = modular_maps.named(golden_tools.section(arrays, prefix))
  return golden_tools.convert(names, rules)


META_VARIABLES = _variables(
  PAIRS, "param_meta__", modular_maps.vit((1, 1, 1), HEADS)
)
TEACHER_VARIABLES = _variables(
  PAIRS, "param_teacher__", modular_maps.vit(DEPTHS, HEADS)
)


def _pair(place):
  """Arrays, name map and variables of a student's module."""
  arrays = golden_tools.section(GOLDEN, f"pair{place}_")
  rules = modular_maps.vit((2,), HEADS, first=place)
  return arrays, rules, _variables(arrays, "param_student__", rules)


def _hybrid(net, variables, place):
  """The three calls that make a hybrid's logits."""
  run = functools.partial(META.apply, META_VARIABLES, index=place)
  states = run(IMAGE, method="prefix")
  states = net.apply(variables, states, index=place, method="module")
  return run(states, method="suffix")


def _loss(params, place):
  return losses.module_pair(
    _hybrid(STUDENT, {"params": params}, place),
    _hybrid(TEACHER, TEACHER_VARIABLES, place),
    PAIRS["in_labels"],
    teacher_weight=float(PAIRS["param_alpha"]),
    temperature=float(PAIRS["param_temperature"]),
    kd_reduction="numel",
  ).mean()


@functools.cache
def _computed(place):
  """Both hybrids' logits, the loss and its gradients."""
  _, _, variables = _pair(place)

  @jax.jit
  def run(params):
    logits = (
      _hybrid(TEACHER, TEACHER_VARIABLES, place),
      _hybrid(STUDENT, {"params": params}, place),
    )
    return *logits, *jax.value_and_grad(_loss)(params, place)

  return run(variables["params"])


def test_networks_fit_into_the_harness():
  nets.check_harness(META, teacher=TEACHER, student=STUDENT)


@pytest.mark.parametrize("place", [1, 2])
def test_states_before_a_module_equal_the_reference(place):
  states = META.apply(META_VARIABLES, IMAGE, index=place, method="prefix")
  expected = GOLDEN[f"pair{place}_out_meta_prefix"]
  np.testing.assert_allclose(states, expected, **VALUES)


@EACH
def test_logits_and_loss_of_a_pair_equal_the_reference(place):
  arrays, _, _ = _pair(place)
  teacher, student, loss, _ = _computed(place)
  for ours, name in (
    (teacher, "teacher_logits"),
    (student, "student_logits"),
    (loss, "loss"),
  ):
    np.testing.assert_allclose(ours, arrays[f"out_{name}"], **VALUES)


@EACH
def test_gradients_through_the_frozen_suffix_equal_the_reference(place):
  arrays, rules, _ = _pair(place)
  expected = _variables(arrays, "grad_student__", rules)["params"]
  slopes = _computed(place)[-1]
  checked = 0

  def compare(path, theirs):
    nonlocal checked
    ours = slopes
    for key in path:
      ours = ours[key.key]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert float(np.abs(theirs).max()) > 0
    checked += 1

  jax.tree_util.tree_map_with_path(compare, expected)
  assert checked >= 4  # query, key, value and a stitch or the head


def test_the_last_pair_is_also_that_of_index_minus_one():
  _, _, variables = _pair(2)
  np.testing.assert_array_equal(
    _hybrid(STUDENT, variables, -1), _hybrid(STUDENT, variables, 2)
  )


@EACH
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_edits_and_taps_of_whole_runs_make_the_same_hybrids(place, who):
  here, before = f"module{place}", f"module{place - 1}"
  batch, edits = {"image": IMAGE}, {}
  meta, network, method = Network(META), Network(TEACHER), None
  variables = TEACHER_VARIABLES
  if who == "student":
    network, method = Network(STUDENT), "stitched"
    variables = filling.random_variables(STUDENT, IMAGE)
    variables["params"][here] = _pair(place)[2]["params"][here]

  @jax.jit
  def run(variables):
    if place:
      states = meta.apply(META_VARIABLES, batch, taps=(before,))[0].taps[before]
      edits[before] = lambda _: states
    outputs, _ = network.apply(
      variables, batch, taps=(here,), edits=edits, method=method
    )
    exchanged = {here: lambda _: outputs.taps[here]}
    return meta.apply(META_VARIABLES, batch, edits=exchanged)[0].logits

  expected = _computed(place)[("teacher", "student").index(who)]
  np.testing.assert_allclose(run(variables), expected, rtol=1e-5, atol=1e-6)
