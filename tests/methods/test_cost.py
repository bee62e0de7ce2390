"""What a step of MST-Distill costs: no teacher backward, shared prefixes."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxkd import nets
from jaxkd.methods import MSTDistill
from jaxkd.network import Network
from jaxkd.roles import Nets, initialise, usage
from jaxkd.training import state as states
from jaxkd.training.step import make_step

SIZE = 32
WIDE = {
  "student": Network(nets.MLP(features=(500, 200, 10))),
  "aux": Network(nets.MLP(features=(110, 60, 10)), inputs=("audio",)),
  "teacher": Network(
    nets.FusionMLP(features=(130, 70, 10)), inputs=("image", "audio")
  ),
  "teacher_layers": ("fc1", "fc2"),
  "aux_layers": ("fc1", "fc2"),
  "hidden_dim_factor": 16,
}
CONVOLUTIONS = {
  "student": Network(nets.LeNet5()),
  "aux": Network(nets.ThreeLayerCNN(), inputs=("audio",)),
  "teacher": Network(nets.CNNI(), inputs=("image", "audio")),
  "teacher_layers": ("concat", "fc1"),
  "aux_layers": ("conv2", "conv3"),
  "hidden_dim_factor": 8,
}
KINDS = {
  "perceptrons": (WIDE, (SIZE, 400), (SIZE, 300)),
  "convolutions": (CONVOLUTIONS, (2, 28, 28, 1), (2, 112, 112, 1)),
}
EACH = pytest.mark.parametrize(
  "kind",
  ["perceptrons", pytest.param("convolutions", marks=pytest.mark.slow)],
)


@functools.cache
def _stage_three(kind, accumulate_masks=True):
  """Returns the method, zeros for its state and frozen trees, and a batch."""
  options, image, audio = KINDS[kind]
  method = MSTDistill(accumulate_masks=accumulate_masks, **options)
  batch = {
    "image": jnp.zeros(image),
    "audio": jnp.zeros(audio),
    "label": jnp.zeros(image[0], jnp.int32),
    "mask": jnp.ones(image[0]),
  }
  found = usage(method, batch)

  def start():
    rng, phase = jax.random.key(0), method.phases[-1]
    variables = initialise(method, rng, found.inputs)
    used = found.roles[phase.name]
    return (
      states.create(method, phase, variables, rng=rng, memory={}),
      states.frozen(method, phase, variables, used=used),
    )

  return method, *jax.eval_shape(start), batch


def _flops(function, *arguments):
  return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def _view(method, frozen):
  return Nets(method.roles, frozen["params"], frozen["collections"])


@EACH
def test_a_step_costs_a_teacher_forward_and_a_student_step(kind):
  method, state, frozen, batch = _stage_three(kind)
  step = make_step(method, method.phases[-1], steps_per_epoch=1)

  def forward(frozen, batch):
    return method.specialist_logits(_view(method, frozen), batch)

  logits = jax.eval_shape(forward, frozen, batch)
  live = _flops(step, state, frozen, batch)
  teachers = _flops(forward, frozen, batch)
  student = _flops(step, state, frozen, {**batch, "specialists": logits})
  assert live == pytest.approx(teachers + student, rel=0.03)
  if kind == "perceptrons":  # neither part is within the tolerance
    assert 0.1 < student / live < 0.9


@EACH
def test_the_common_prefix_of_the_specialists_is_computed_once(kind):
  method, _, frozen, batch = _stage_three(kind, accumulate_masks=False)

  def together(frozen, batch):
    return method.specialist_logits(_view(method, frozen), batch)

  def alone(name, frozen, batch):
    return method.masked(_view(method, frozen), batch, name)[0]

  def prefix(role, frozen, batch):
    layer = getattr(method, f"{role}_layers")[0]
    outputs = _view(method, frozen)[role](batch, taps=(layer,))
    return outputs.taps[layer]

  def cost(function, name):
    return _flops(functools.partial(function, name), frozen, batch)

  separate = sum(cost(alone, name) for name in method.specialists)
  shared = sum(cost(prefix, role) for role in ("teacher", "aux"))
  saved = separate - _flops(together, frozen, batch)
  assert saved >= 0.99 * shared
  assert saved == pytest.approx(shared, rel=0.05)


def _products(jaxpr):
  """Returns the shapes of all matrix products, also in inner functions."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      yield equation.outvars[0].aval.shape
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from _products(inner)


def test_no_product_makes_a_gradient_of_a_frozen_kernel():
  method, state, frozen, batch = _stage_three("perceptrons")
  step = make_step(method, method.phases[-1], steps_per_epoch=1)
  made = set(_products(jax.make_jaxpr(step)(state, frozen, batch).jaxpr))

  def kernels(params):
    shapes = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2}
    return shapes | {shape[::-1] for shape in shapes}

  trained = kernels(state.params["student"])
  assert len(trained & made) == len(trained) / 2
  assert not kernels(frozen["params"]) & made


def test_only_trained_roles_have_gradients_and_moments():
  method, state, frozen, batch = _stage_three("perceptrons")
  moments = state.optimizer["loss"][0].mu
  assert set(moments) == set(state.params) == {"student", "gate"}
  assert set(frozen["params"]) == {"teacher", "aux", *method.specialists}
