"""Denoisers keep the shape, know time and class, and have stable taps."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import nets
from jaxkd.errors import ConfigError
from jaxkd.nets import denoisers
from jaxkd.network import Network
from tests.nets import filling

PERCEPTRON = nets.DenoisingMLP(features=16, blocks=2, num_classes=3)
UNET = nets.DenoisingUNet(widths=(6, 8), groups=4, num_classes=3)
SHAPES = {"mlp": (4, 10), "unet": (4, 5, 7, 2)}
NETS = {"mlp": PERCEPTRON, "unet": UNET}
EVERY = pytest.mark.parametrize("name", NETS)
KEY = jax.random.key(1)
T = jnp.array([0.0, 0.3, 0.6, 1.0])
CONDITION = jnp.array([0, 1, 2, 3])  # 3 is none of the classes


def _x(name):
  return jax.random.normal(jax.random.key(0), SHAPES[name])


@functools.cache
def _variables(name):
  return filling.random_variables(NETS[name], _x(name), T, CONDITION)


@functools.partial(jax.jit, static_argnums=0)
def _apply(net, variables, *inputs):
  return net.apply(variables, *inputs)


def _run(name, x=None, t=T, condition=CONDITION):
  x = _x(name) if x is None else x
  return _apply(NETS[name], _variables(name), x, t, condition)


def _under(parent, *children):
  return [parent, *(f"{parent}/{child}" for child in children)]


CONV = ("norm1", "conv1", "time", "norm2", "conv2")
EMBEDDING = _under("embedding", "fc1", "fc2", "classes")
PATHS = {
  "mlp": [
    *EMBEDDING,
    "stem",
    *_under("block1", "norm", "fc1", "time", "fc2"),
    *_under("block2", "norm", "fc1", "time", "fc2"),
    *("norm", "out"),
  ],
  "unet": [
    *EMBEDDING,
    "stem",
    *_under("down1", *CONV),
    "shrink1",
    *_under("down2", *CONV),
    *_under("middle", *CONV),
    *_under("up2", *CONV, "shortcut"),
    "grow1",
    *_under("up1", *CONV, "shortcut"),
    *("norm", "out"),
  ],
}


@EVERY
def test_tap_paths_are_exactly_the_documented_ones(name):
  network = Network(NETS[name], inputs=("x", "t", "condition"))
  batch = {"x": _x(name), "t": T, "condition": CONDITION}
  found = network.paths(batch)
  assert sorted(found) == sorted(PATHS[name])
  documented = type(NETS[name]).__doc__
  assert all(path.split("/")[0].rstrip("12") in documented for path in found)


@EVERY
def test_a_network_of_two_inputs_has_no_classes(name):
  net = NETS[name].clone(num_classes=None)
  found = Network(net, inputs=("x", "t")).paths({"x": _x(name), "t": T})
  assert "embedding/fc2" in found
  assert "embedding/classes" not in found


@EVERY
def test_the_prediction_has_the_shape_of_the_example(name):
  x = _x(name)
  assert _run(name).shape == x.shape
  assert np.isfinite(_run(name)).all()


def test_a_perceptron_takes_images():
  x = jnp.ones((2, 3, 3, 1))
  net = nets.DenoisingMLP(features=8, blocks=1)
  shape = jax.eval_shape(lambda k: net.init_with_output(k, x, T[:2])[0], KEY)
  assert shape.shape == x.shape


@pytest.mark.parametrize("size", [(8, 8, 1), (16, 16, 3), (32, 31, 3), (1, 1)])
def test_a_unet_of_three_levels_takes_any_size(size):
  x = jnp.ones((2, *size[:2], size[-1]))
  net = nets.DenoisingUNet(widths=(8, 12, 16))
  shape = jax.eval_shape(lambda k: net.init_with_output(k, x, T[:2])[0], KEY)
  assert shape.shape == x.shape


@EVERY
def test_an_example_does_not_depend_on_the_others(name):
  x = _x(name)
  changed = _run(name, x.at[1:].set(7.0))
  np.testing.assert_allclose(changed[0], _run(name)[0], rtol=1e-4, atol=1e-5)


@EVERY
@pytest.mark.parametrize("what", ["x", "t", "condition"])
def test_every_input_matters_for_its_own_example(name, what):
  inputs = {"x": _x(name), "t": T, "condition": CONDITION}
  other = {"x": 1.0, "t": 0.5, "condition": 2}
  changed = inputs | {what: inputs[what].at[0].set(other[what])}
  gap = jnp.abs(_run(name, **changed) - _run(name, **inputs))
  gap = gap.reshape(4, -1).max(-1)
  assert gap[0] > 1e-3
  np.testing.assert_allclose(gap[1:], 0, atol=1e-5)


@EVERY
def test_no_condition_is_the_class_that_is_none(name):
  none = _run(name, condition=jnp.full(4, 3))
  np.testing.assert_allclose(_run(name, condition=None), none, rtol=1e-5)
  assert jnp.abs(none - _run(name)).max() > 1e-3


@EVERY
def test_a_class_that_does_not_exist_is_not_taken_for_another(name):
  values = _run(name, condition=jnp.array([0, 1, 2, 4]))
  assert np.isnan(values[3]).all()
  assert np.isfinite(values[:3]).all()


@pytest.mark.slow
@EVERY
def test_every_weight_learns(name):
  def loss(params):
    values = NETS[name].apply({"params": params}, _x(name), T, CONDITION)
    return jnp.mean((values - 1) ** 2)

  slopes = jax.jit(jax.grad(loss))(_variables(name)["params"])
  for path, slope in flax.traverse_util.flatten_dict(slopes, sep="/").items():
    assert np.isfinite(slope).all(), path
    assert float(jnp.abs(slope).max()) > 0, path


@EVERY
def test_half_precision_is_close_and_keeps_float32_weights(name):
  net = NETS[name].clone(dtype=jnp.bfloat16)
  inputs = _x(name), T, CONDITION
  made = jax.eval_shape(net.init, KEY, *inputs)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))
  rough, exact = _apply(net, _variables(name), *inputs), _run(name)
  assert rough.dtype == jnp.bfloat16
  scale = float(jnp.abs(exact).max())
  np.testing.assert_allclose(
    rough.astype(jnp.float32), exact, atol=0.05 * scale
  )


def test_time_embeddings_equal_the_formula_in_float64():
  t = np.linspace(0, 1, 37, dtype=np.float32)
  frequencies = 1000 * 10_000.0 ** (-np.arange(8) / 8)
  angles = t.astype(np.float64)[:, None] * frequencies
  expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
  ours = denoisers.time_embedding(jnp.asarray(t), 16)
  np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
  ("t", "size"), [(jnp.ones(2), 7), (jnp.ones((2, 1)), 8)]
)
def test_embeddings_of_odd_size_or_other_shape_are_refused(t, size):
  with pytest.raises(ConfigError, match=r"expected an even size and \[B\]"):
    denoisers.time_embedding(t, size)


@EVERY
@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"t": jnp.ones(1)}, r"of shape \(1,\), \(4,\) for x of shape \(4, "),
    ({"condition": jnp.zeros((4, 1), int)}, r"per example, \(4,\)"),
  ],
)
def test_times_and_classes_are_one_per_example(name, changed, message):
  inputs = {"x": _x(name), "t": T, "condition": CONDITION} | changed
  with pytest.raises(ConfigError, match=message):
    NETS[name].apply(_variables(name), *inputs.values())


@EVERY
def test_a_condition_needs_classes(name):
  net = NETS[name].clone(num_classes=None)
  with pytest.raises(ConfigError, match="a condition, but num_classes=None"):
    net.init(KEY, _x(name), T, CONDITION)


def test_a_unet_refuses_what_is_no_image():
  with pytest.raises(ConfigError, match=r"DenoisingUNet: x of shape \(4, 10\)"):
    nets.DenoisingUNet().init(KEY, _x("mlp"), T)
