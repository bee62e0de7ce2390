"""Companions of feature losses learn, and let nothing through to teachers."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import errors, losses, nets
from tests.nets import filling

RANDOM = np.random.default_rng(5)


def _map(*shape):
  return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def _layers(*stems):
  return [f"{stem}{i}" for stem in stems for i in (1, 2, 3)]


FIT, HINT = nets.FitNetRegressor(), nets.HintRegressor()
SMALL, LARGE, VECTOR = (3, 4, 4, 4), (3, 8, 8, 6), (3, 10)
TWO = (SMALL, (3, 4))
# net, student's and teacher's shapes, loss of its output, tap paths
COMPANIONS = {
  "FitNet_equal": (FIT, SMALL, SMALL, losses.fitnet, ["conv", "bn"]),
  "FitNet_half": (FIT, LARGE, SMALL, losses.fitnet, ["conv", "bn"]),
  "FitNet_double": (FIT, SMALL, LARGE, losses.fitnet, ["conv", "bn"]),
  "Hint_1d1d": (HINT, VECTOR, (3, 4), losses.fitnet, ["conv"]),
  "Hint_2d1d": (HINT, SMALL, VECTOR, losses.fitnet, ["conv", "fc"]),
  "Hint_up": (HINT, SMALL, LARGE, losses.fitnet, ["conv"]),
  "VID": (
    nets.VIDRegressor(),
    LARGE,
    SMALL,
    lambda value, _: losses.vid(*value),
    _layers("conv"),
  ),
  "Connector": (nets.Connector(), SMALL, LARGE, losses.ickd, ["conv", "bn"]),
  "SimKDTransfer": (
    nets.SimKDTransfer(),
    LARGE,
    SMALL,
    losses.fitnet,
    _layers("conv", "bn"),
  ),
  "MGDGenerator": (
    nets.MGDGenerator(),
    LARGE,
    SMALL,
    losses.mgd,
    ["align", "conv1", "conv2"],
  ),
  "Translator": (
    nets.Translator(),
    SMALL,
    LARGE,
    lambda value, _: losses.factor_transfer(value, value[::-1]),
    [*_layers("encoder"), *(f"encoder{i}_bn" for i in (1, 2, 3))],
  ),
  "ReviewFusion": (
    nets.ReviewFusion(),
    TWO,
    (LARGE, (3, 6)),
    lambda value, teacher: losses.review_kd(value, list(teacher)),
    [
      *("block1", "block2", "block1/attention"),
      *(f"block{b}/{k}{i}" for b in "12" for k in ("conv", "bn") for i in "12"),
    ],
  ),
}
EVERY = pytest.mark.parametrize("name", COMPANIONS)


def _arrays(shape):
  return (
    tuple(_map(*s) for s in shape)
    if shape is TWO or isinstance(shape[0], tuple)
    else _map(*shape)
  )


def _case(name):
  net, *shapes, loss, paths = COMPANIONS[name]
  student, teacher = map(_arrays, shapes)
  return (
    net,
    filling.random_variables(net, student, teacher),
    (
      student,
      teacher,
    ),
    loss,
    paths,
  )


def _run(net, variables, *arrays, train=True):
  options = {"rngs": {"dropout": jax.random.key(1)}}
  if "batch_stats" in variables or isinstance(net, nets.MGDGenerator):
    options["train"] = train
  return net.apply(variables, *arrays, mutable=["batch_stats"], **options)[0]


@EVERY
def test_every_weight_of_a_companion_learns(name):
  net, variables, arrays, loss, _ = _case(name)

  def total(params):
    value = _run(net, {**variables, "params": params}, *arrays)
    return loss(value, arrays[1]).mean()

  slopes = jax.jit(jax.grad(total))(variables["params"])
  for path, slope in flax.traverse_util.flatten_dict(slopes, sep="/").items():
    assert np.isfinite(slope).all(), path
    assert float(jnp.abs(slope).max()) > 0, path


@EVERY
def test_no_gradient_reaches_the_teacher_through_a_companion(name):
  net, variables, (student, teacher), _, _ = _case(name)

  def total(student, teacher):
    value = _run(net, variables, student, teacher)
    if isinstance(value, tuple):  # VID hands the teacher's feature on
      value = value[::2]
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(value))

  ours, theirs = jax.jit(jax.grad(total, argnums=(0, 1)))(student, teacher)
  assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(ours))
  for slope in jax.tree.leaves(theirs):
    np.testing.assert_array_equal(slope, 0)


@EVERY
def test_tap_paths_of_a_companion_are_the_documented_ones(name):
  net, variables, arrays, _, paths = _case(name)
  _, state = jax.eval_shape(
    lambda: net.apply(
      variables, *arrays, capture_intermediates=True, mutable=["intermediates"]
    )
  )
  taps = flax.traverse_util.flatten_dict(state["intermediates"], sep="/")
  found = {path.removesuffix("/__call__") for path in taps} - {"__call__"}
  assert found == set(paths)
  documented = type(net).__doc__
  assert all(path.split("/")[0].rstrip("123") in documented for path in found)


def test_the_paraphraser_learns_by_reconstruction_alone():
  net, teacher = nets.Paraphraser(), _map(2, 4, 4, 6)
  variables = filling.random_variables(net, teacher)

  def total(params):
    factor, rebuilt = net.apply({"params": params}, teacher)
    assert factor.shape == (2, 4, 4, 3)
    return losses.fitnet(rebuilt, teacher).mean()

  slopes = jax.grad(total)(variables["params"])
  assert set(slopes) == set(_layers("encoder", "decoder"))
  assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(slopes))


def test_the_generator_hides_that_share_of_the_places():
  net = nets.MGDGenerator(masked=0.25)
  student = jnp.ones((8, 32, 32, 1))
  variables = filling.random_variables(net, student, student)
  variables["params"]["conv1"]["kernel"] *= 0
  variables["params"]["conv1"]["kernel"][1, 1] = 1
  variables["params"]["conv1"]["bias"] *= 0
  _, state = net.apply(
    variables,
    student,
    student,
    train=True,
    rngs={"dropout": jax.random.key(0)},
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  shown = state["intermediates"]["conv1"]["__call__"][0]
  assert abs(float((shown == 0).mean()) - 0.25) < 0.02


@pytest.mark.parametrize(
  ("net", "student", "teacher", "message"),
  [
    (FIT, (2, 4, 4, 3), (2, 7, 7, 3), "FitNetRegressor: student feature"),
    (FIT, (2, 5, 6, 3), (2, 4, 4, 3), "half, double, or as much less"),
    (HINT, (2, 4, 4, 3), (2, 7, 7, 3), "equal, half or double"),
    (nets.ReviewFusion(), [(2, 3)], [], "1 student stages, 0 teacher"),
  ],
)
def test_shapes_without_a_form_are_refused(net, student, teacher, message):
  arrays = [
    [jnp.ones(s) for s in given] if isinstance(given, list) else jnp.ones(given)
    for given in (student, teacher)
  ]
  with pytest.raises(errors.ConfigError, match=message):
    net.init(jax.random.key(0), *arrays)
